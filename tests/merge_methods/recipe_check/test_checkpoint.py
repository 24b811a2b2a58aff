"""Packed numbers and weights that are there twice, told from a model's config and headers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings
from ordermerge.weights import stored_tensors

NAME = "model.layers.0.mlp.up_proj.weight"
UNPACK = "merge the models that it was made from, or load it with transformers, `dequantize()` it and save it"


@pytest.fixture
def models(close_family: list[Path], tmp_path: Path) -> list[Path]:
    """Return copies of two models, to be spoilt."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in close_family[1:3]]


def recipe(models: list[Path], **more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": str(m)} for m in models], "parameters": {"weight": 1}} | more


def rewrite(folder: Path, changes: dict[str, torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **changes}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "mxfp4"])
def test_quantised_models_are_named_by_their_config(method: str, models: list[Path]) -> None:
    file = models[1] / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": method}}))
    assert check_recipe(recipe(models)) == [
        f"model {models[1]} is quantised (`quantization_config` in config.json: {method}): its bytes are no weights; "
        f"{UNPACK}"
    ]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.uint8, "U8"),
        (torch.int8, "I8"),
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.int16, "I16"),
    ],
)
def test_packed_numbers_are_named_by_their_dtype(dtype: torch.dtype, name: str, models: list[Path]) -> None:
    rewrite(models[0], {NAME: torch.ones(64, 32).to(dtype)})
    assert check_recipe(recipe(models)) == [
        f"model {models[0]} holds packed numbers, quantised or of 8 bits (1 tensor, such as `{NAME}`: {name}): their "
        f"bytes are no weights; {UNPACK}"
    ]


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales", "g_idx", "weight_scale_inv", "absmax", "SCB"])
def test_scales_beside_weights_are_named(suffix: str, models: list[Path]) -> None:
    scale = f"model.layers.0.mlp.up_proj.{suffix}"
    rewrite(models[0], {scale: torch.ones(4, dtype=torch.int32 if suffix[0] in "qg" else torch.float32)})
    assert check_recipe(recipe(models)) == [
        f"model {models[0]} holds the scales of quantised weights (`{scale}`): its bytes are no weights; {UNPACK}"
    ]


def test_whole_file_counts_before_an_index_and_the_rest_is_told(models: list[Path]) -> None:
    tensors = load_file(models[0] / "model.safetensors")
    old = {name: torch.zeros_like(value) for name, value in tensors.items()}
    save_file(old, models[0] / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = models[0] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}))
    torch.save(old, models[0] / "pytorch_model.bin")
    assert {stored.file.name for stored in stored_tensors(models[0]).values()} == {"model.safetensors"}
    assert check_recipe(recipe(models)) == []
    assert recipe_warnings(recipe(models)) == [
        f"{models[0]} holds weights twice: model.safetensors is read, as transformers does, and "
        f"model-00001-of-00001.safetensors, model.safetensors.index.json, pytorch_model.bin is not (an index or shards "
        f"of another save?)"
    ]


def test_left_over_shards_beside_an_index_are_told(models: list[Path]) -> None:
    (models[0] / "model.safetensors").rename(models[0] / "model-00001-of-00001.safetensors")
    shutil.copy(models[1] / "model.safetensors", models[0] / "model-00001-of-00003.safetensors")
    names = stored_tensors(models[1])
    index = models[0] / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    (warning,) = recipe_warnings(recipe(models))
    assert "model-00001-of-00001.safetensors is read" in warning
    assert "model-00001-of-00003.safetensors is not" in warning


def test_adapter_beside_a_whole_model_is_refused(models: list[Path]) -> None:
    (models[0] / "adapter_config.json").write_text("{}")
    assert check_recipe(recipe(models)) == [
        f"model {models[0]} holds an adapter beside the whole model, which transformers adds when it loads that; "
        f"write `{models[0]}+{models[0]}` to merge both, or remove adapter_config.json"
    ]


def test_tensors_of_pickles_are_known(models: list[Path]) -> None:
    tensors = load_file(models[0] / "model.safetensors")
    (models[0] / "model.safetensors").unlink()
    tensors.pop(NAME)
    torch.save(tensors, models[0] / "pytorch_model.bin")
    (problem,) = check_recipe(recipe(models))
    assert problem.startswith(f"model {models[0]} lacks `{NAME}`, which mergekit requires")


@pytest.mark.parametrize(
    ("key", "name", "meant"),
    [
        ("dtype", "bfloat", " (did you mean 'bfloat16'?)"),
        ("dtype", "bf16", " (did you mean 'bfloat16'?)"),
        ("out_dtype", "fp16", " (did you mean 'float16'?)"),
        ("out_dtype", "int64", " (known: bfloat16, float16, float32, float64)"),
    ],
)
def test_dtypes_that_mergekit_does_not_know_are_found(key: str, name: str, meant: str, models: list[Path]) -> None:
    assert check_recipe(recipe(models, **{key: name})) == [f"`{key}`: mergekit has no dtype {name!r}{meant}"]
    assert check_recipe(recipe(models, **{key: "torch.float16"})) == []
