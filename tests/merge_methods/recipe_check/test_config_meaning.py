"""Same shapes, other meaning: configs that differ, adapters of another base model, values that are no numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings


@pytest.fixture
def models(close_family: list[Path], tmp_path: Path) -> list[Path]:
    """Return copies of a base model and two sub-models, to be spoilt."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in close_family[:3]]


def recipe(models: list[Path]) -> dict[str, Any]:
    base, *subs = map(str, models)
    method = {"merge_method": "task_arithmetic", "base_model": base, "parameters": {"weight": 1}}
    return {**method, "models": [{"model": m} for m in subs]}


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters.factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}, "num_attention_heads"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
    ids=str,
)
def test_what_makes_another_model_of_the_same_numbers_is_refused(
    changes: dict[str, Any], field: str, models: list[Path]
) -> None:
    configure(models[2], **changes)
    problems = check_recipe(recipe(models))
    assert len(problems) == 1
    assert problems[0].startswith(
        f"the weights of {models[1]} and {models[2]} do not mean the same: config.json says `"
    )
    assert f"`{field}`" in problems[0]
    assert problems[0].endswith("such models cannot be mixed (`--allow-crimes` makes this a warning)")
    permitted = MergeOptions(allow_crimes=True)
    assert check_recipe(recipe(models), options=permitted) == []
    assert problems[0] in recipe_warnings(recipe(models), options=permitted)


def test_other_differences_are_warned_of_and_harmless_ones_are_not(models: list[Path]) -> None:
    configure(models[2], use_cache=False, initializer_range=1.0, attention_dropout=0.5, dtype="float16")
    assert recipe_warnings(recipe(models)) == []
    configure(models[2], rms_norm_eps=1e-3, new_field=[1])
    assert check_recipe(recipe(models)) == []
    assert recipe_warnings(recipe(models)) == [
        f"config.json of {models[1]} and of {models[2]} differ: `new_field` None and [1], `rms_norm_eps` 1e-06 and "
        f"0.001; the merged model gets the first one's"
    ]


def test_base_model_of_another_rope_base_is_only_warned_of(models: list[Path]) -> None:
    configure(models[0], rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert check_recipe(recipe(models)) == []
    (warning,) = recipe_warnings(recipe(models))
    assert f"and of the base model {models[0]} differ: `rope_parameters.rope_theta` 10000.0 and 500000.0" in warning


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_tensors_that_are_no_numbers_are_named(value: float, kind: str, models: list[Path]) -> None:
    tensors = load_file(models[2] / "model.safetensors")
    for name in ("lm_head.weight", "model.norm.weight"):
        tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, models[2] / "model.safetensors", {"format": "pt"})
    assert check_recipe(recipe(models)) == [
        f"model {models[2]}: `lm_head.weight` and 1 more tensors holds {kind} values (a training that diverged?); "
        f"leave it out"
    ]


def test_adapters_of_another_base_model_are_told_and_of_a_copy_are_not(models: list[Path], tmp_path: Path) -> None:
    base, other, _ = models
    copy = shutil.copytree(base, tmp_path / "copy")
    adapters = []
    for index, named in enumerate((base, copy, "base", other, "/gone/elsewhere")):
        adapters.append(tmp_path / f"adapter{index}")
        adapters[-1].mkdir()
        (adapters[-1] / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(named)}))
    entries = [{"model": f"{base}+{adapter}"} for adapter in adapters]
    warnings = recipe_warnings({"merge_method": "linear", "models": entries, "parameters": {"weight": 1}})
    assert warnings == [
        f"adapter {adapters[index]} was trained on {named!r}, as its adapter_config.json says "
        f"(base_model_name_or_path), and the recipe adds it to {base}: make sure that these are the same"
        for index, named in ((3, str(other)), (4, "/gone/elsewhere"))
    ]
