"""Models that do not fit together are named before anything is merged, from their headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from ordermerge.merge_methods.recipe_check import check as checks
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.layout import fit

AGAIN = "copy or download it again"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def models(close_family: list[Path], tmp_path: Path) -> list[Path]:
    """Return copies of three models, to be spoilt."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in close_family[1:]]


def check(*models: object, method: str = "linear", options: MergeOptions | None = None, **more: Any) -> list[str]:
    recipe = {"merge_method": method, "models": [{"model": str(m)} for m in models], "parameters": {"weight": 1}}
    return check_recipe({**recipe, **more}, options=options)


def make(folder: Path, config: transformers.PretrainedConfig) -> Path:
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def llama(folder: Path, **changes: Any) -> Path:
    sizes = {**SIZES, "vocab_size": 40, "num_hidden_layers": 2, **changes}
    return make(folder, transformers.LlamaConfig(**sizes, tie_word_embeddings=False))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_different_architectures_are_named_and_mergekits_option_permits_them(tmp_path: Path) -> None:
    one = llama(tmp_path / "one")
    sizes = {**SIZES, "vocab_size": 40, "num_hidden_layers": 2}
    two = make(tmp_path / "two", transformers.MistralConfig(**sizes, tie_word_embeddings=False))
    assert check(one, two) == [
        f"models of different architectures cannot be merged: {one} is LlamaForCausalLM (llama); "
        f"{two} is MistralForCausalLM (mistral) (mergekit tries with `--allow-crimes`)"
    ]
    assert check(one, two, options=MergeOptions(allow_crimes=True)) == []


def test_architectures_must_be_said(models: list[Path]) -> None:
    config = json.loads((models[1] / "config.json").read_text())
    del config["architectures"]
    (models[1] / "config.json").write_text(json.dumps(config))
    assert check(*models) == [
        f"model {models[1]}: `architectures` in config.json must name one architecture, got []; "
        f"save the model with `save_pretrained`"
    ]
    said = {"model": {"path": str(models[1])}, "override_architecture": "LlamaForCausalLM"}
    recipe = {"merge_method": "linear", "models": [{"model": str(models[0])}, {"model": said}]}
    assert check_recipe({**recipe, "parameters": {"weight": 1}}) == []


def test_missing_tensors_are_named(models: list[Path]) -> None:
    edit(models[1], lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name])
    edit(models[2], lambda tensors: tensors.pop("model.norm.weight"))
    remedy = "if transformers loads that model, saving it once with `save_pretrained` gives its tensors the usual names"
    layer = "model.layers.1"
    assert check(*models) == [
        f"model {models[1]} lacks `{layer}.input_layernorm.weight`, `{layer}.self_attn.q_proj.weight`, "
        f"`{layer}.self_attn.k_proj.weight` and 6 more tensors, which mergekit requires; {remedy}",
        f"model {models[2]} lacks `model.norm.weight`, which mergekit requires; {remedy}",
    ]


def test_different_shapes_are_named(tmp_path: Path) -> None:
    one, two = llama(tmp_path / "one"), llama(tmp_path / "two", intermediate_size=48)
    layer = "model.layers.0.mlp"
    assert check(one, two) == [
        f"tensors of different shapes: `{layer}.up_proj.weight` is [32, 16] in {one}, [48, 16] in {two}; "
        f"`{layer}.gate_proj.weight` is [32, 16] in {one}, [48, 16] in {two}; "
        f"`{layer}.down_proj.weight` is [16, 32] in {one}, [16, 48] in {two}; and 3 more tensors; "
        f"only models of the same sizes can be merged"
    ]


def test_vocabularies_may_differ_only_where_mergekit_aligns_them(tmp_path: Path) -> None:
    one, two = llama(tmp_path / "one"), llama(tmp_path / "two", vocab_size=44)
    assert check(one, two) == [
        f"tensors of different shapes: `model.embed_tokens.weight` is [40, 16] in {one}, [44, 16] in {two}; "
        f"`lm_head.weight` is [40, 16] in {one}, [44, 16] in {two}; "
        f"add `tokenizer: {{source: base}}` (or union) to the recipe to align the vocabularies"
    ]
    assert check(one, two, tokenizer={"source": "union"}) == []
    assert check(one, two, tokenizer_source="union") == []
    assert check(one, two, options=MergeOptions(unsafe_truncate_embeddings=True)) == []


def test_different_depths_are_named_unless_sliced(tmp_path: Path) -> None:
    one, two = llama(tmp_path / "one"), llama(tmp_path / "two", num_hidden_layers=3)
    assert check(one, two) == [
        f"`models` puts different numbers of layers together: 2 of {one}, 3 of {two}; they must be equal"
    ]
    sources = [{"model": str(one), "layer_range": [0, 2]}, {"model": str(two), "layer_range": [1, 3]}]
    assert check(models=None, slices=[{"sources": sources}]) == []


def test_layer_ranges_must_fit(models: list[Path]) -> None:
    sources = [{"model": str(models[0]), "layer_range": [0, 2]}, {"model": str(models[1]), "layer_range": [1, 3]}]
    assert check(models=None, slices=[{"sources": sources}]) == [
        f"`slices[0]`: layer_range [1, 3] does not fit the 2 layers of {models[1]}"
    ]
    sources[1]["layer_range"] = [1, 2]
    assert check(models=None, slices=[{"sources": sources}]) == [
        f"`slices[0]` puts different numbers of layers together: 2 of {models[0]}, 1 of {models[1]}; they must be equal"
    ]


def test_unknown_module_is_refused(models: list[Path]) -> None:
    modules = {"text": {"models": [{"model": str(model)} for model in models]}}
    assert check(models=None, modules=modules) == ["unknown module `text` for LlamaForCausalLM (known: default)"]


def test_cut_off_weights_are_found(models: list[Path]) -> None:
    file = models[1] / "model.safetensors"
    whole = file.read_bytes()
    for content, problem in (
        (whole[:-100], f"model.safetensors has {len(whole) - 100} bytes where its header tells of {len(whole)}"),
        (whole[:50], "model.safetensors (50 bytes) is cut off or no safetensors file"),
        (b"", "model.safetensors (0 bytes) is cut off or no safetensors file"),
        (b"<html>nothing of the kind</html>", "model.safetensors (32 bytes) is cut off or no safetensors file"),
    ):
        file.write_bytes(content)
        assert check(*models) == [f"model {models[1]}: {problem}; {AGAIN}"]
    file.write_bytes((3).to_bytes(8, "little") + b"{,}")
    (problem,) = check(*models)
    assert problem.startswith(f"model {models[1]}: the header of model.safetensors is damaged (ValueError(")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert check(*models) == [
        f"model {models[1]}: model.safetensors is a Git LFS pointer, not the weights; "
        f"run `git lfs pull` in its repository"
    ]


def test_missing_weights_shards_and_config_are_found_together(models: list[Path]) -> None:
    for model in models:
        (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = models[1] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    (models[2] / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    names = "model.safetensors or pytorch_model.bin or an index of shards"
    shard = "model-00001-of-00002.safetensors"
    assert check(*models) == [
        f"model {models[0]}: no weights where mergekit looks for them, {names} (found: {shard}); "
        f"save the model with `save_pretrained`, or {AGAIN}",
        f"model {models[1]}: shard model-00002-of-00002.safetensors, named in {index.name}, is missing; {AGAIN}",
        f"model {models[2]}: tensor a is not in {shard}, where {index.name} puts it; {AGAIN}, shards and index",
    ]
    index.write_text("{}")
    assert f"model {models[1]}: {index.name} is no index of shards (KeyError('weight_map')); {AGAIN}" in check(*models)
    (models[0] / "config.json").write_text("{")
    assert check(*models)[0].startswith(f"model {models[0]}: config.json is not valid JSON (")


def test_adapters_need_their_base_model_and_their_config(models: list[Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    edit(models[1], lambda tensors: tensors.pop("model.norm.weight"))  # merging the adapter writes the tensors anew
    assert check(models[0], f"{models[1]}+{adapter}") == []
    assert check(models[0], adapter) == [
        f"model {adapter}: the folder holds no config.json, only an adapter; write BASE_MODEL+{adapter}"
    ]
    (adapter / "adapter_config.json").unlink()
    assert check(models[0], f"{models[2]}+{adapter}") == [f"model {adapter}: the folder holds no adapter_config.json"]


def test_hub_models_are_passed_over(models: list[Path]) -> None:
    assert check(models[0], "org/model", "org/model@main+org/adapter") == []


def test_architecture_that_mergekit_infers_is_compared_by_shape(tmp_path: Path) -> None:
    def nemo(name: str, wide: int) -> Path:
        sizes = {**SIZES, "intermediate_size": wide, "vocab_size": 40, "num_hidden_layers": 2}
        return make(tmp_path / name, transformers.NemotronConfig(**sizes))

    one, two, three = nemo("one", 32), nemo("two", 32), nemo("three", 48)
    assert check(one, two) == []
    (problem,) = check(one, three)
    assert "`model.layers.0.mlp.down_proj.weight` is [16, 32]" in problem


def test_buffers_of_whole_numbers_may_differ(models: list[Path]) -> None:
    config = {**json.loads((models[0] / "config.json").read_text()), "architectures": ["OwnForCausalLM"]}
    for count, model in enumerate(models, 1):
        (model / "config.json").write_text(json.dumps(config))
        edit(model, lambda tensors, n=count: tensors.update(position_ids=torch.arange(n)))  # type: ignore[misc]
    assert check(*models) == []
    edit(models[1], lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))
    (problem,) = check(*models)
    assert problem.startswith(f"tensors of different shapes: `model.norm.weight` is [32] in {models[0]}, [3] in")


def test_recipes_that_differ_in_parameters_alone_are_looked_at_once(
    models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    monkeypatch.setattr(checks, "fit", lambda stage, options: (looked.append(stage), fit(stage, options))[1])
    for weight in (1, 2, 3):
        assert check(*models, parameters={"weight": weight}) == []
    assert len(looked) == 1
    assert check(*models[:2]) == []
    assert len(looked) == 2
    edit(models[1], lambda tensors: tensors.update(other=torch.ones(2)))
    assert check(*models) != []
    assert len(looked) == 3
