"""The recipe checker: what mergekit would take in silence is refused with a sentence; what is legal stays legal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ordermerge.merge_methods.recipe_check.check import check_recipe

A, B, BASE = "/models/a", "/models/b", "/models/base"
MODELS = [{"model": A}, {"model": B}]


def problems(method: str = "parameter_selection", **recipe: Any) -> list[str]:
    return check_recipe({"merge_method": method, "models": MODELS, **recipe}, models_exist=False)


LEGAL = """
- {merge_method: parameter_selection, models: [{model: a}, {model: b}]}
- {merge_method: parameter_selection, base_model: base, models: [{model: a}, {model: base}], parameters: {resample: 2}}
- merge_method: parameter_selection_resample
  base_model: base
  models: [{model: a, parameters: {weight: [0, 0.5, 1]}}, {model: b+lora, parameters: {weight: "1e-1"}}]
  parameters: {seed: 7, weight: 2, resample: [{filter: mlp, value: full}, {value: 3}]}
  dtype: float32
  out_dtype: bfloat16
- merge_method: parameter_selection
  models: [{model: a, parameters: {weight: {value: 0, filter: norm}}}, {model: b}]
  parameters: {granularity: row}
  tokenizer: {source: union, tokens: {"<x>": {source: a, force: true}}, pad_to_multiple_of: 8}
  chat_template: chatml
- merge_method: parameter_selection
  slices:
    - sources: [{model: a, layer_range: [0, 2], parameters: {weight: 1}}, {model: b, layer_range: [0, 2]}]
      parameters: {seed: 1}
    - sources: [{model: b, layer_range: [1, 2]}]
- merge_method: parameter_selection
  modules: {text_decoder: {models: [{model: a}, {model: b}], parameters: {weight: 1}}}
- {merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 0.3}}]}
- {merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1.0, normalize: false}}
- {merge_method: slerp, base_model: a, models: [{model: a}, {model: b}], parameters: {t: [0, 0.5, 1]}}
- merge_method: slerp
  base_model: a
  slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]}]
  parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]}
  tokenizer_source: union
- merge_method: ties
  base_model: base
  models: [{model: a, parameters: {weight: 1, density: 0.5}}, {model: b, parameters: {weight: [0, 1], density: 1}}]
  parameters: {normalize: true, int8_mask: true}
- merge_method: dare_ties
  base_model: base
  models: [{model: base}, {model: a, parameters: {weight: 0.5, density: 0.5}}]
- merge_method: linear
  modules: {default: {models: [{model: a}, {model: b}], parameters: {weight: 1}}}
- merge_method: slerp
  base_model: a
  slices:
    - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
      parameters: {t: 0.5}
- {merge_method: passthrough, slices: [{sources: [{model: a, layer_range: [0, 1]}]}]}
- {merge_method: model_stock, base_model: base, models: [{model: a}, {model: b}]}
- {merge_method: task_arithmetic, base_model: "org/m@main", models: [{model: a, parameters: {weight: 1}}]}
"""


@pytest.mark.parametrize("recipe", yaml.safe_load(LEGAL), ids=lambda r: r["merge_method"])
def test_what_mergekit_takes_is_taken(recipe: dict[str, Any]) -> None:
    assert check_recipe(recipe, models_exist=False) == []


def test_all_unknown_keys_are_found_at_once_with_suggestions() -> None:
    found = problems(
        dtpye="bfloat16",
        models=[{"model": A, "paramters": {}}, {"model": B, "parameters": {"weight": [{"value": 1, "filtr": "mlp"}]}}],
        tokenizer={"sauce": "union"},
    )
    assert found == [
        "unknown key `models[0].paramters` (did you mean 'parameters'?)",
        "unknown key `models[1].parameters.weight[0].filtr` (did you mean 'filter'?)",
        "unknown key `dtpye` (did you mean 'dtype'?)",
        "unknown key `tokenizer.sauce` (did you mean 'source'?)",
    ]


def test_unknown_keys_inside_slices_and_modules_are_found() -> None:
    sources = [{"model": A, "layer_range": [0, 1], "wieght": 1}]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": sources, "base_mdl": A}]}
    assert check_recipe(recipe, models_exist=False) == [
        "unknown key `slices[0].sources[0].wieght` (known: layer_range, model, parameters)",
        "unknown key `slices[0].base_mdl` (did you mean 'base_model'?)",
    ]
    recipe = {"merge_method": "passthrough", "modules": {"m": {"modls": 1, "models": [{"model": A}]}}}
    assert check_recipe(recipe, models_exist=False) == ["unknown key `modules.m.modls` (did you mean 'models'?)"]


@pytest.mark.parametrize(
    ("method", "recipe", "message"),
    [
        ("parameter_slection", {}, "unknown `merge_method` 'parameter_slection' (did you mean 'parameter_selection'?)"),
        (
            "parameter_selection",
            {"parameters": {"wieght": 1}},
            "unknown parameter `parameters.wieght` for parameter_sele",
        ),
        ("linear", {"parameters": {"weight": 1, "nromalize": True}}, "(did you mean 'normalize'?)"),
        (
            "parameter_selection",
            {"parameters": {"weight": -1}},
            "`parameters.weight`: `weight` must be a finite number",
        ),
        ("parameter_selection", {"parameters": {"weight": float("nan")}}, "got nan"),
        ("parameter_selection", {"parameters": {"seed": [1, 2]}}, "`seed` must be a whole number"),
        ("parameter_selection", {"parameters": {"granularity": "layer"}}, "one of element, row, tensor; got 'layer'"),
        ("parameter_selection", {"parameters": {"resample": 1}}, "`resample: 1` needs `base_model`"),
        ("parameter_selection_resample", {}, "`parameter_selection_resample` needs `base_model`"),
        ("parameter_selection_resample", {"base_model": BASE, "parameters": {"granularity": "row"}}, "element` only"),
        ("parameter_selection", {"parameters": {"weight": 0}}, "`weight` is 0 for every model of `models`"),
        ("parameter_selection", {"base_model": A, "models": [{"model": A}]}, "at least 1 non-base inputs"),
        ("parameter_selection", {"models": [{"model": A}, {"model": A}]}, "Duplicate merge inputs"),
        (
            "parameter_selection",
            {"chat_template": "chatlm"},
            "`chat_template` must be auto, one of mergekit's templates (alpaca, chatml, exaone, llama3, mistral) or "
            "Jinja of at least 20 characters; got 'chatlm'",
        ),
        ("parameter_selection", {"chat_template": "{{ messages }}"}, "got '{{ messages }}'"),
        ("parameter_selection", {"tokenizer": {"pad_to_multiple_of": -8}}, "must be from 1 to 65,536; got -8"),
        ("parameter_selection", {"tokenizer": {"pad_to_multiple_of": 10**30}}, "must be from 1 to 65,536; got 1000"),
        ("linear", {}, "linear needs `weight` for every model; `models` lacks it for /models/a"),
        ("slerp", {"base_model": A, "models": [*MODELS, {"model": "c"}], "parameters": {"t": 1}}, "exactly 2 inputs"),
        (
            "ties",
            {"parameters": {"weight": 1}},
            "`ties` needs `base_model`, the model that those of `models` were made from; name it",
        ),
        ("slerp", {"base_model": A}, "slerp needs `t`; give it in the top-level `parameters`"),
        (
            "linear",
            {"models": [{"model": A, "parameters": {"weight": 1}}], "base_model": BASE},
            "linear needs `weight` for every model; `models` lacks it for /models/base",
        ),
        (
            "linear",
            {"models": None, "slices": [{"sources": [{"model": A, "layer_range": [0, 1]}]}]},
            "linear needs `weight` for every model; `slices[0].sources` lacks it for /models/a",
        ),
        (
            "linear",
            {"models": None},
            "`models` is missing, or stands beside `slices` or `modules`; give one of the three",
        ),
        ("linear", {"models": [{"modell": A}]}, "unknown key `models[0].modell` (did you mean 'model'?)"),
    ],
)
def test_each_mistake_gets_a_sentence(method: str, recipe: dict[str, Any], message: str) -> None:
    assert any(message in problem for problem in problems(method, **recipe)), problems(method, **recipe)


def test_shared_parameter_under_a_model_is_refused() -> None:
    found = problems(models=[{"model": A, "parameters": {"seed": 3}}, {"model": B}])
    assert found == [
        "`models[0].parameters.seed` is ignored there: `seed` is shared by all models, "
        "move it to the top-level `parameters`"
    ]


def test_missing_local_models_are_named(make_family: Callable[..., list[Path]], tmp_path: Path) -> None:
    base, first, second = make_family(count=2)
    (tmp_path / "empty").mkdir()
    models = [{"model": str(first)}, {"model": f"{second}+{tmp_path / 'no'}"}, {"model": str(tmp_path / "empty")}]
    found = check_recipe({"merge_method": "parameter_selection", "base_model": str(base), "models": models})
    assert set(found) == {
        f"model {tmp_path / 'empty'}: the folder holds no config.json",
        f"model {tmp_path / 'no'}: no such folder (looked in {Path.cwd()})",
    }
    recipe = {"merge_method": "parameter_selection", "models": [{"model": str(first)}, {"model": str(second)}]}
    token = {"source": {"kind": "model_token", "model": "./none", "token_id": 1}}
    assert check_recipe({**recipe, "tokenizer": {"source": "/no/model", "tokens": {"<x>": token}}}) == [
        f"tokenizer of model /no/model: no such folder (looked in {Path.cwd()})",
        f"tokenizer of model ./none: no such folder (looked in {Path.cwd()})",
    ]
    hub = {"merge_method": "parameter_selection", "models": [{"model": "org/a"}, {"model": "org/b"}]}
    assert check_recipe(hub) == []
    no_names = {**hub, "models": [{"model": "org/a b"}, {"model": " "}]}
    assert check_recipe(no_names) == [
        f"model {name!r}: no folder (looked in {Path.cwd()}), and no hub id, such as org/model"
        for name in (" ", "org/a b")
    ]
