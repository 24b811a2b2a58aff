"""Recipes of every built-in method and every kind of setting: each passes the check, and mergekit merges it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.merge_methods import registered_methods
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings

pytestmark = pytest.mark.integration
Family = Callable[..., list[Path]]

# BASE, A, B and C stand for a family's models.
EXAMPLES = """
ties_gradients:
  merge_method: ties
  base_model: BASE
  models:
    - {model: A, parameters: {density: [1, 0.6, 0.2], weight: 1.0}}
    - {model: B, parameters: {density: 0.4, weight: [0, 0.2, 0.8, 1]}}
    - {model: C, parameters: {density: 0.3, weight: [{filter: mlp, value: 0.4}, {value: 0}]}}
  parameters: {normalize: true, int8_mask: true}
  dtype: float16
ties_base_listed_with_nothing:
  merge_method: ties
  base_model: BASE
  models:
    - {model: BASE, parameters: null}
    - {model: A, parameters: {density: 0.6, weight: 0.4}}
    - {model: B, parameters: {density: 0.5, weight: 0.4}}
  parameters:
  dtype: bfloat16
linear:
  merge_method: linear
  models:
    - {model: A, parameters: {weight: 1.0}}
    - {model: B, parameters: {weight: 0.2}}
    - {model: C, parameters: {weight: 0.6}}
  dtype: float16
linear_global_weight:
  {merge_method: linear, models: [{model: A}, {model: B}], parameters: {weight: 0.5, normalize: false}}
linear_of_slices:
  merge_method: linear
  slices:
    - sources: [{model: A, layer_range: [0, 1], parameters: {weight: 1}}, {model: B, layer_range: [1, 2]}]
      parameters: {weight: 0.5}
    - sources: [{model: C, layer_range: [0, 2], parameters: {weight: 2}}]
slerp_of_slices:
  merge_method: slerp
  base_model: A
  slices: [{sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}]}]
  parameters:
    t: [{filter: self_attn, value: [0, 0.4, 0.2, 0.8, 1]}, {filter: mlp, value: [1, 0.6, 0]}, {value: 0.5}]
  dtype: bfloat16
passthrough_stack:
  merge_method: passthrough
  slices:
    - {sources: [{model: A, layer_range: [0, 2]}]}
    - {sources: [{model: B, layer_range: [1, 2]}]}
  dtype: bfloat16
passthrough_scaled:
  merge_method: passthrough
  models: [{model: A, parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}}]
arcee_fusion: {merge_method: arcee_fusion, base_model: A, models: [{model: A}, {model: B}], dtype: bfloat16}
dare_ties:
  merge_method: dare_ties
  base_model: BASE
  models: [{model: BASE}, {model: A, parameters: {weight: 0.4, density: 0.5}}, {model: B, parameters: {weight: 0.6}}]
  parameters: {int8_mask: true}
dare_linear: {merge_method: dare_linear, base_model: BASE, models: [{model: A}], parameters: {weight: 1, density: 0.5}}
task_arithmetic:
  merge_method: task_arithmetic
  base_model: BASE
  models: [{model: A, parameters: {weight: 0.7}}, {model: B, parameters: {weight: -0.3}}]
  parameters: {lambda: 0.9}
breadcrumbs:
  merge_method: breadcrumbs
  base_model: BASE
  models: [{model: A, parameters: {weight: 1, density: 0.9, gamma: 0.01}}, {model: B, parameters: {weight: 1}}]
breadcrumbs_ties: {merge_method: breadcrumbs_ties, base_model: BASE, models: [{model: A}], parameters: {weight: 1}}
della:
  merge_method: della
  base_model: BASE
  models: [{model: A}, {model: B}]
  parameters: {weight: 0.5, density: 0.7, epsilon: 0.1, lambda: 1.1, normalize: false}
della_linear: {merge_method: della_linear, base_model: BASE, models: [{model: A}], parameters: {weight: 1}}
model_stock: {merge_method: model_stock, base_model: BASE, models: [{model: A}, {model: B}, {model: C}]}
nuslerp: {merge_method: nuslerp, models: [{model: A, parameters: {weight: 0.3}}, {model: B, parameters: {weight: 0.7}}]}
nuslerp_task_vectors:
  {merge_method: nuslerp, base_model: BASE, models: [{model: A}, {model: B}], parameters: {weight: 0.5}}
karcher: {merge_method: karcher, models: [{model: A}, {model: B}, {model: C}], parameters: {max_iter: 10, tol: "1e-5"}}
multislerp: {merge_method: multislerp, models: [{model: A}, {model: B}], parameters: {weight: 1}}
sce: {merge_method: sce, base_model: BASE, models: [{model: A}, {model: B}], parameters: {select_topk: 0.5}}
nearswap: {merge_method: nearswap, base_model: A, models: [{model: A}, {model: B}], parameters: {t: 0.01}}
ram: {merge_method: ram, base_model: BASE, models: [{model: A}, {model: B}]}
ramplus_tl: {merge_method: ramplus_tl, base_model: BASE, models: [{model: A}, {model: B}], parameters: {r: 0.1}}
tokenizer_union:
  merge_method: linear
  models: [{model: A}, {model: B}]
  parameters: {weight: 0.5}
  tokenizer: {source: union, pad_to_multiple_of: 8, tokens: {"<eos>": {source: A, force: true}}}
  chat_template: chatml
tokenizer_base:
  {merge_method: ties, base_model: BASE, models: [{model: A}], parameters: {weight: 1}, tokenizer_source: base}
tokens_in_other_words:
  merge_method: linear
  models: [{model: A}, {model: B}]
  parameters: {weight: 0.5}
  tokenizer:
    source: A
    tokens: {"a": {source: {kind: zero}}, "b": {source: {kind: model_token, model: A, token: "c"}, force: true}}
modules:
  merge_method: linear
  modules:
    default: {models: [{model: A}, {model: B}], parameters: {weight: 0.5}}
modules_of_slices:
  merge_method: slerp
  base_model: A
  modules:
    default:
      slices: [{sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}], parameters: {t: 0.3}}]
model_in_other_words:
  {merge_method: linear, models: [{model: {model: {path: A}}}, {model: {model: {path: B}}}], parameters: {weight: 1}}
parameter_selection:
  merge_method: parameter_selection
  models:
    - {model: A, parameters: {weight: [0, 1]}}
    - {model: B, parameters: {weight: [{filter: mlp, value: 2}, {value: 1}]}}
  parameters: {seed: 3, granularity: [{filter: norm, value: tensor}, {value: row}]}
parameter_selection_resample:
  {merge_method: parameter_selection_resample, base_model: BASE, models: [{model: A}, {model: B}], dtype: bfloat16}
half_reset:
  merge_method: half_reset
  base_model: BASE
  models: [{model: A, parameters: {weight: 2}}, {model: B}]
  parameters: {base_share: [{filter: mlp, value: [0, 1]}, {value: 0.3}], seed: 1}
graft:
  merge_method: graft
  base_model: BASE
  models: [{model: A, parameters: {density: 0.2, threshold: "1e-3"}}, {model: B, parameters: {threshold: 0}}]
  parameters: {lambda: [0.5, 1], strict: true}
pcb: {merge_method: pcb, base_model: BASE, models: [{model: A}, {model: B}, {model: C}], parameters: {ratio: [0.1, 1]}}
"""
RECIPES: dict[str, dict[str, Any]] = yaml.safe_load(EXAMPLES)


def named(node: Any, family: list[Path]) -> Any:
    """Put a family's paths in the place of the letters."""
    names = dict(zip(("BASE", "A", "B", "C"), map(str, family), strict=True))
    if isinstance(node, dict):
        return {key: named(item, family) for key, item in node.items()}
    if isinstance(node, list):
        return [named(item, family) for item in node]
    return names.get(node, node) if isinstance(node, str) else node


def merge(recipe: dict[str, Any], folder: Path, *options: str) -> Path:
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(mergekit_yaml, [str(path), str(folder / "out"), "--quiet", *options])
    assert done.exit_code == 0, repr(done.exception)
    return folder / "out"


def rewrite(folder: Path, *, add_copy: bool = False, strip: str = "", only_head: bool = False) -> None:
    """Store a checkpoint in one of the other ways in which the same model is met."""
    tensors = load_file(folder / "model.safetensors")
    embedding = next(name for name in tensors if "embed_tokens" in name or "wte" in name)
    if add_copy or only_head:
        tensors["lm_head.weight"] = tensors[embedding].clone()
    if only_head:
        del tensors[embedding]
    tensors = {name.removeprefix(strip): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_every_builtin_method_has_an_example() -> None:
    assert {m.spec.name for m in registered_methods()} == {recipe["merge_method"] for recipe in RECIPES.values()}


@pytest.mark.parametrize("name", RECIPES)
def test_legal_recipe_passes_and_merges(name: str, close_family: list[Path], tmp_path: Path) -> None:
    recipe = named(RECIPES[name], close_family)
    assert check_recipe(recipe) == []
    assert recipe_warnings(recipe) == []
    merged = load_file(merge(recipe, tmp_path) / "model.safetensors")
    assert all(torch.isfinite(tensor.float()).all() for tensor in merged.values())


@pytest.mark.parametrize("kind", ["llama_tied", "qwen2_tied", "gpt2"])
def test_tied_models_pass_whichever_copies_they_store(kind: str, make_family: Family, tmp_path: Path) -> None:
    family = make_family(kind, count=2)
    rewrite(family[1], add_copy=True)
    recipe = {"merge_method": "linear", "models": [{"model": str(p)} for p in family], "parameters": {"weight": 1}}
    assert check_recipe(recipe) == []
    merge(recipe, tmp_path)


def test_gpt2_passes_with_and_without_its_prefix(make_family: Family, tmp_path: Path) -> None:
    family = make_family("gpt2", count=2)
    rewrite(family[1], strip="transformer.")
    recipe = {"merge_method": "linear", "models": [{"model": str(p)} for p in family], "parameters": {"weight": 1}}
    assert check_recipe(recipe) == []
    merge(recipe, tmp_path)


def test_embedding_stored_only_as_head_is_explained(make_family: Family, tmp_path: Path) -> None:
    base, first = make_family("llama_tied", count=1)
    rewrite(base, only_head=True)
    recipe = {"merge_method": "linear", "models": [{"model": str(base)}, {"model": str(first)}]}
    assert check_recipe({**recipe, "parameters": {"weight": 1}}) == [
        f"model {base} stores its tied embedding only as `lm_head.weight`, where mergekit requires "
        f"`model.embed_tokens.weight`; load it with transformers and save it once with `save_pretrained`; "
        f"they can be merged by tensor name instead: `ordermerge merge --by-name`"
    ]


def test_pickled_checkpoints_and_mixed_layouts_pass(close_family: list[Path], tmp_path: Path) -> None:
    pickled, sharded = (Path(shutil.copytree(close_family[k], tmp_path / f"copy{k}")) for k in (1, 2))
    tensors = load_file(pickled / "model.safetensors")
    torch.save(tensors, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(close_family[2]).save_pretrained(sharded, max_shard_size="20KB")
    assert json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    models = [{"model": str(path)} for path in (pickled, sharded, close_family[3])]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    assert check_recipe(recipe) == []
    assert recipe_warnings(recipe) == []
    with safe_open(merge(recipe, tmp_path) / "model.safetensors", "pt") as merged:
        assert set(merged.keys()) == set(tensors)
