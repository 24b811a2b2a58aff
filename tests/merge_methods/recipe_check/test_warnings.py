"""Warnings from the models' contents: each is given where it should be, and not where models are as they should be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings

Move = Callable[[Path, Path, float, int], None]
RESAMPLE = "parameter_selection_resample"


@pytest.fixture
def family(close_family: list[Path], tmp_path: Path) -> list[Path]:
    """Return copies of a base model and three sub-models, to be spoilt."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in close_family]


def warn(family: list[Path], method: str = RESAMPLE, *, own_companions: bool = False, **more: Any) -> list[str]:
    base, *models = map(str, family)
    recipe = {"merge_method": method, "base_model": base, "models": [{"model": m} for m in models], **more}
    return recipe_warnings(recipe, own_companions=own_companions)


def convert(folder: Path, dtype: torch.dtype, *, noise: float = 0) -> None:
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    moved = {name: (tensor * (1 + noise * torch.randn(tensor.shape))).to(dtype) for name, tensor in tensors.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("method", [RESAMPLE, "parameter_selection", "task_arithmetic", "ties", "linear", "karcher"])
def test_fine_tuned_models_of_their_base_get_no_warning(method: str, family: list[Path]) -> None:
    assert warn(family, method) == []


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7])
def test_near_and_far_fine_tuning_get_no_warning(share: float, family: list[Path], move: Move) -> None:
    for seed, folder in enumerate(family[1:]):
        move(folder, family[0], share, seed)
    assert warn(family) == []


@pytest.mark.parametrize("method", [RESAMPLE, "ties", "model_stock", "nuslerp", "sce"])
def test_unrelated_base_is_noticed(method: str, family: list[Path], move: Move) -> None:
    tensors = load_file(family[0] / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    other = {n: (t.float().std() * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in tensors.items()}
    save_file(other, family[0] / "model.safetensors", {"format": "pt"})
    base, *models = family
    (problem,) = warn(family[:3], method)
    assert problem.startswith(f"{base} does not look like the base model of {models[0]} (1.4")
    assert f"), {models[1]} (1.4" in problem
    assert problem.endswith("name the model that they were fine-tuned from as `base_model`")


def test_model_stock_of_updates_that_point_apart_is_noticed(family: list[Path]) -> None:
    assert warn(family, "model_stock") == []
    base, first = (load_file(folder / "model.safetensors") for folder in family[:2])
    against = {name: (2 * base[name].float() - first[name].float()).to(base[name].dtype) for name in base}
    save_file(against, family[2] / "model.safetensors", {"format": "pt"})
    (problem,) = warn(family, "model_stock")
    found = re.fullmatch(
        r"in (\d+) of \1 tensors sampled the sub-models' updates point apart \(mean cosine down to -0\.3\d\): there "
        r"`model_stock` extrapolates, to the other side of the base model \((-\d\.\d\d) times their mean\); use "
        r"`linear`, or leave out the sub-model that differs",
        problem,
    )
    assert found, problem
    # The mean cosine of u, -u and an unrelated update is -1/3, give or take some for few values: t = 3c / (1 + 2c).
    assert -5 < float(found[2]) < -2
    assert warn(family, "linear") == []


def test_parent_of_the_sub_models_that_is_not_their_base_is_noticed(family: list[Path], move: Move) -> None:
    base, parent, *models = family
    move(parent, base, 0.3, 9)
    for seed, folder in enumerate(models):
        move(folder, parent, 0.01, seed)
    assert warn([base, *models]) == [
        f"the sub-models are at least 20 times closer to each other than to {base}: if they were fine-tuned from "
        f"another model, name that as `base_model`; if not, their training differed so little that the merge will "
        f"hardly differ from any of them"
    ]
    assert warn([parent, *models]) == []


@pytest.mark.parametrize("method", ["slerp", "nearswap", "arcee_fusion", "linear", "parameter_selection"])
def test_methods_that_do_not_compare_with_a_base_are_not_nagged(
    method: str, make_family: Callable[..., list[Path]]
) -> None:
    base, first, second = make_family(count=2)  # as unrelated as can be
    assert (
        warn([first, second] if method in ("slerp", "nearswap", "arcee_fusion") else [base, first, second], method)
        == []
    )


def test_stacking_unrelated_layers_is_not_nagged(make_family: Callable[..., list[Path]]) -> None:
    family = make_family(count=2)
    edit(family[1] / "generation_config.json", eos_token_id=7)
    slices = [{"sources": [{"model": str(folder), "layer_range": [0, 2]}]} for folder in family]
    assert recipe_warnings({"merge_method": "passthrough", "slices": slices}) == []


def test_copies_are_noticed(family: list[Path]) -> None:
    base, first, second, third = family
    shutil.copy(first / "model.safetensors", third / "model.safetensors")
    copied = (
        f"{third} looks like a copy of {first} (every value sampled is the same): "
        f"it adds nothing to the merge but its weight; check that both are what you mean"
    )
    assert warn(family) == [copied]
    assert warn(family, "linear") == [copied]
    shutil.copy(base / "model.safetensors", second / "model.safetensors")
    unchanged = (
        f"{second} looks like a copy of the base model {base} (every value sampled is the same): "
        f"it changes nothing; check that it was fine-tuned"
    )
    assert warn(family) == [copied, unchanged]
    assert warn(family, "linear") == [copied]


def test_models_that_differ_in_one_tensor_are_no_copies(family: list[Path]) -> None:
    tensors = load_file(family[1] / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, family[2] / "model.safetensors", {"format": "pt"})
    assert not any("copy" in warning for warning in warn(family))


ROUNDED = "are not: compared in float32 nothing looks unchanged, and nothing is resampled; say `dtype: bfloat16`"


def test_bfloat16_sub_models_of_a_float32_base_are_noticed(family: list[Path]) -> None:
    base, first, *_ = family
    convert(base, torch.float32, noise=0.001)
    expected = [f"the values of {first} are bfloat16 numbers and those of {base} {ROUNDED}"]
    assert warn(family) == expected
    assert warn(family, dtype="float32") == expected
    assert warn(family, "parameter_selection", parameters={"resample": 2}) == expected
    assert warn(family, dtype="bfloat16") == []
    assert warn(family, "parameter_selection") == []
    assert warn(family, "ties") == []


def test_float32_sub_models_of_a_bfloat16_base_are_noticed(family: list[Path]) -> None:
    base, first, *others = family
    for folder in (first, *others):
        convert(folder, torch.float32, noise=0.001)
    assert warn(family) == [f"the values of {base} are bfloat16 numbers and those of {first} {ROUNDED}"]


def test_bfloat16_values_in_float32_files_are_fine(family: list[Path]) -> None:
    convert(family[0], torch.float32)
    assert warn(family, dtype="float32") == []
    for folder in family:
        convert(folder, torch.float32, noise=0.001)
    assert warn(family) == []


def test_different_vocabularies_are_noticed(family: list[Path]) -> None:
    _, first, second, third = family
    file = second / "tokenizer.json"
    assert file.read_text() != json.dumps(json.loads(file.read_text()))
    file.write_text(json.dumps(json.loads(file.read_text())))  # the same in other words
    assert warn(family) == []
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {"a": content["model"]["vocab"]["b"], "b": content["model"]["vocab"]["a"]}
    file.write_text(json.dumps(content))
    told = f"not the same vocabulary in {first} as in {second}"
    remedy = "say which it is to be: `tokenizer: {source: MODEL}`, base or union"
    assert warn(family) == [f"{told}: the merged model gets the base model's; {remedy}"]
    assert warn(family, own_companions=True) == [f"{told}: the merged model gets the first sub-model's; {remedy}"]
    assert recipe_warnings({"merge_method": "karcher", "models": [{"model": str(p)} for p in family[1:]]}) == [
        f"{told}: the merged model gets that of one of them; {remedy}"
    ]
    assert warn(family, tokenizer_source="base") == []
    assert warn(family, tokenizer={"source": str(third)}) == []
    file.write_text("{}")
    assert len(warn(family)) == 1


def test_different_chat_templates_are_noticed(family: list[Path]) -> None:
    base, first, second, third = family
    for folder in (first, second, third):
        (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    told = f"not the same chat template in {first} as in"
    remedy = "say which it is to be with `chat_template`"
    assert warn(family) == [f"{told} {base}: the merged model gets the base model's; {remedy}"]
    assert warn(family, own_companions=True) == []
    assert warn(family, chat_template="chatml") == []
    (third / "chat_template.jinja").unlink()
    edit(third / "tokenizer_config.json", chat_template="{{ messages }}")
    assert warn(family, own_companions=True) == []
    edit(third / "tokenizer_config.json", chat_template="{{ other }}")
    assert warn(family, own_companions=True) == [
        f"{told} {third}: the merged model gets the first sub-model's; {remedy}"
    ]


def test_different_special_tokens_are_noticed(family: list[Path]) -> None:
    _, first, second, _ = family
    edit(second / "tokenizer_config.json", eos_token={"content": "<eos>", "__type": "AddedToken"})
    assert warn(family) == []
    edit(second / "special_tokens_map.json", eos_token="<pad>")
    assert warn(family) == [
        f"not the same special tokens in {first} as in {second}: the merged model gets the base model's; "
        f"correct tokenizer_config.json in the merged model"
    ]


def test_different_end_tokens_are_noticed(family: list[Path]) -> None:
    _, first, second, third = family
    edit(second / "generation_config.json", eos_token_id=[1])
    assert warn(family) == []
    edit(second / "generation_config.json", eos_token_id=[1, 0])
    edit(third / "generation_config.json", eos_token_id=0)
    assert warn(family) == [
        f"not the same end-of-text token for generation in {first} as in {second}, {third}: the merged model gets "
        f"the base model's; correct generation_config.json in the merged model"
    ]


def test_adapters_bring_their_own_tokenizer(family: list[Path], tmp_path: Path) -> None:
    base, first, *_ = family
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    edit(adapter / "adapter_config.json")
    pair = [base, first, Path(f"{base}+{adapter}")]
    assert warn(pair) == []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    (told,) = warn(pair)
    assert told.startswith(f"not the same chat template in {first} as in {base}+{adapter}: ")


def test_hub_models_and_unreadable_companions_are_passed_over(family: list[Path]) -> None:
    assert recipe_warnings({"merge_method": "karcher", "models": [{"model": "org/a"}, {"model": "org/b"}]}) == []
    for name in ("tokenizer_config.json", "tokenizer.json", "generation_config.json"):
        (family[2] / name).unlink(missing_ok=True)
    assert warn(family) == []
