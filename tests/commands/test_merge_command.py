"""The real commands on real checkpoint files: `mergekit-yaml` from a shell, and its click command in this process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.integration
Family = Callable[..., list[Path]]
BITS = {2: torch.int16, 4: torch.int32}


def write_recipe(path: Path, family: list[Path], method: str = "parameter_selection_resample", **more: Any) -> Path:
    base, *models = map(str, family)
    recipe = {"merge_method": method, "base_model": base, "models": [{"model": m} for m in models], **more}
    path.write_text(yaml.safe_dump({"dtype": "bfloat16", **recipe}))
    return path


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    assert found
    return {name: tensor.view(BITS[tensor.element_size()]) for name, tensor in found.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def merge(recipe: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    done = CliRunner().invoke(mergekit_yaml, [str(recipe), str(out), "--quiet", *options])
    assert done.exit_code == 0, done.exception
    return weights(out)


def generates(directory: Path) -> bool:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    ids = torch.tensor([[5, 6, 7]])
    return model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 7)


@pytest.mark.parametrize("method", ["parameter_selection", "parameter_selection_resample"])
def test_stock_command_merges_in_a_shell_from_another_directory(
    method: str, make_family: Family, tmp_path: Path
) -> None:
    family = make_family()
    recipe = write_recipe(tmp_path / "recipe.yml", family, method)
    command = Path(sys.executable).with_name("mergekit-yaml")
    outs = []
    for threads, hash_seed in (("1", "1"), ("2", "2")):
        outs.append(tmp_path / f"out{threads}")
        done = subprocess.run(
            [command, recipe.name, outs[-1].name, "-j", threads, "--random-seed", hash_seed],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert same(weights(outs[0]), weights(outs[1]))
    assert "Parameter Selection" in (outs[0] / "README.md").read_text()
    assert generates(outs[0])


@pytest.mark.parametrize("kind", ["llama", "qwen2_tied", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_merged_values_are_sub_model_values(kind: str, dtype: torch.dtype, make_family: Family, tmp_path: Path) -> None:
    family = make_family(kind, dtype=dtype)
    recipe = write_recipe(tmp_path / "recipe.yml", family, dtype=str(dtype).removeprefix("torch."))
    merged = merge(recipe, tmp_path / "out")
    base, *models = (weights(path) for path in family)
    for name, tensor in merged.items():
        assert torch.stack([tensor == model[name] for model in models]).any(0).all(), name
        changed = torch.stack([model[name] != base[name] for model in models]).any(0)
        assert torch.equal(tensor == base[name], ~changed), name
    assert merged.keys() == base.keys()
    assert generates(tmp_path / "out")


@pytest.mark.parametrize("options", [["--out-shard-size", "4k"], ["--async-write", "--out-shard-size", "4k"]])
def test_same_weights_however_they_are_written(options: list[str], make_family: Family, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", make_family())
    merged = [merge(recipe, tmp_path / "whole"), merge(recipe, tmp_path / "parts", *options)]
    assert same(*merged)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("kind", ["llama_tied", "qwen2_tied", "gpt2"])
def test_tied_embeddings_stay_tied_when_both_copies_are_stored(kind: str, make_family: Family, tmp_path: Path) -> None:
    family = make_family(kind)
    once = merge(write_recipe(tmp_path / "once.yml", family), tmp_path / "once")
    assert "lm_head.weight" not in once
    for path in family:
        store_twice(path)
    family = [path.rename(path.with_name(f"{path.name}_twice")) for path in family]
    twice = merge(write_recipe(tmp_path / "twice.yml", family), tmp_path / "twice")
    assert torch.equal(twice["lm_head.weight"], once[embedding_name(once)])
    assert torch.equal(twice["lm_head.weight"], twice[embedding_name(twice)])
    assert same(once, {name: tensor for name, tensor in twice.items() if name != "lm_head.weight"})


def test_untied_embeddings_are_drawn_apart(make_family: Family, tmp_path: Path) -> None:
    family = make_family("llama")
    for path in family:
        store_twice(path)  # equal values, but not tied by the config
    family = [path.rename(path.with_name(f"{path.name}_equal")) for path in family]
    merged = merge(write_recipe(tmp_path / "recipe.yml", family), tmp_path / "out")
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def embedding_name(names: dict[str, torch.Tensor]) -> str:
    return next(name for name in names if name.endswith(("embed_tokens.weight", "wte.weight")))


def store_twice(directory: Path) -> None:
    file = directory / "model.safetensors"
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    tensors["lm_head.weight"] = tensors[embedding_name(tensors)].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def test_weights_filters_and_gradients_reach_the_draw(make_family: Family, tmp_path: Path) -> None:
    family = make_family(count=2)
    weight = [{"filter": "self_attn", "value": 0}, {"filter": "mlp", "value": [0, 1]}, {"value": 1}]
    models = [{"model": str(family[1]), "parameters": {"weight": weight}}, {"model": str(family[2])}]
    parameters = {"resample": [{"filter": "norm", "value": "full"}, {"value": 0}], "weight": 1}
    merged = merge(
        write_recipe(tmp_path / "recipe.yml", family, "parameter_selection", models=models, parameters=parameters),
        tmp_path / "out",
    )
    base, first, second = (weights(path) for path in family)
    for name, tensor in merged.items():
        only_second = "self_attn" in name or "layers.0.mlp" in name
        assert torch.equal(tensor, second[name]) == (only_second or torch.equal(first[name], second[name])), name
        if "norm" in name:
            unchanged = (first[name] == base[name]) & (second[name] == base[name])
            assert torch.equal(tensor == base[name], unchanged), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": None}, "`parameter_selection_resample` needs `base_model`"),
        ({"parameters": {"weight": -1}}, "`weight` must be a finite number >= 0; got -1"),
        ({"parameters": {"weight": float("nan")}}, "`weight` must be a finite number >= 0; got nan"),
        ({"parameters": {"weight": 0}}, "`weight` must be >= 0 and finite .* not 0 for all; .* for tensor '"),
        ({"parameters": {"resample": 1.5}}, "`resample` must be a whole number >= 0 or `full`; got 1.5"),
        ({"parameters": {"resample": "some"}}, "`resample` must be a whole number >= 0 or `full`; got 'some'"),
        ({"parameters": {"resample": ["full", "full"]}}, "`resample` .* lists .gradients. .* not possible"),
        ({"parameters": {"resample": True}}, "`resample` must be .* got True"),
        ({"parameters": {"seed": [1, 2]}}, "`seed` must be a whole number; .*lists .gradients. .* not possible"),
        ({"parameters": {"granularity": ["row", "row"]}}, "`granularity` must be one of element, row, tensor"),
        ({"parameters": {"granularity": "row"}}, "`resample` goes with `granularity: element` only"),
    ],
    ids=str,
)
def test_stock_command_refuses_bad_values_by_name(
    change: dict[str, Any], message: str, make_family: Family, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yml", make_family(count=2), **change)
    done = CliRunner().invoke(mergekit_yaml, [str(recipe), str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(str(done.exception).replace("\n", " "))
