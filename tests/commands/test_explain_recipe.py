"""`ordermerge check --explain`: the weights that it says are those that a merge of tiny models is measured to have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

from ordermerge.cli import main
from ordermerge.commands.explain_recipe import explained_weights

pytestmark = pytest.mark.integration
NAMES = ("base", "a", "b", "c")
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3}
NORMALIZE = {"normalize": True}
FILTERED = [{"filter": "q_proj", "value": 3}, {"value": 1}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Return a function that writes models which tell their factors apart, on top of a common value.

    At place 4 n of a tensor all sub-models have changed the base model by 1, at 4 n + k sub-model k by 2.
    """
    config = transformers.LlamaConfig(
        **SIZES, num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=False, dtype="float32",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items()}

    def write(common: float) -> Path:
        root = tmp_path_factory.mktemp("models")
        for k, model in enumerate(NAMES):
            state = {}
            for name, shape in shapes.items():
                place = torch.arange(shape.numel()) % len(NAMES)
                change = torch.where(place == k, 2.0, 1.0) if k else torch.zeros(shape.numel())
                state[name] = (common + change).view(shape)
            (root / model).mkdir()
            config.save_pretrained(root / model)
            save_file(state, root / model / "model.safetensors", {"format": "pt"})
        return root

    return write


@pytest.fixture(scope="module")
def near(models: Callable[[float], Path]) -> Path:
    return models(0.0)


def write_recipe(root: Path, path: Path, subs: str = "abc", **recipe: Any) -> Path:
    weights = recipe.pop("weights", [None] * len(subs))
    entries = [
        {"model": str(root / name), **({} if weight is None else {"parameters": {"weight": weight}})}
        for name, weight in zip(subs, weights, strict=True)
    ]
    path.write_text(yaml.safe_dump({"models": entries, "dtype": "float32", **recipe}))
    return path


def merged(recipe: Path, out: Path) -> dict[str, torch.Tensor]:
    done = CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet", "--no-copy-tokenizer"])
    assert done.exit_code == 0, done.output
    return load_file(out / "model.safetensors")


def explained(recipe: Path) -> dict[str, dict[str, float]]:
    return explained_weights(MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text())), MergeOptions())[0]


@pytest.mark.parametrize(
    "recipe",
    [
        {"merge_method": "linear", "parameters": {"weight": 1}},
        {"merge_method": "linear", "weights": [3, 1, 0.5]},
        {"merge_method": "linear", "parameters": {"weight": 0.5, "normalize": False}},
        {"merge_method": "linear", "weights": [[0, 1], 1, FILTERED]},
        {"merge_method": "linear", "parameters": {"weight": 1}, "base_model": "base"},
        {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5, "lambda": [0.25, 1]}, "base_model": "base"},
        {"merge_method": "task_arithmetic", "weights": [3, 1, -1], "parameters": NORMALIZE, "base_model": "base"},
        {"merge_method": "ties", "weights": [3, 1, 1], "parameters": {"lambda": 0.5}, "base_model": "base"},
        {"merge_method": "ties", "weights": [3, 1, 1], "parameters": {"normalize": False}, "base_model": "base"},
        {"merge_method": "dare_ties", "parameters": {"weight": 1}, "base_model": "base"},
        {"merge_method": "dare_linear", "parameters": {"weight": 0.5, "lambda": 2}, "base_model": "base"},
        {"merge_method": "della", "weights": [3, 1, 1], "base_model": "base"},
        {"merge_method": "breadcrumbs", "parameters": {"weight": 0.5}, "base_model": "base"},
        {"merge_method": "graft", "parameters": {"density": 1, "lambda": 0.5}, "base_model": "base"},
    ],
    ids=lambda recipe: recipe["merge_method"],
)  # fmt: skip
def test_factors_are_those_measured(recipe: dict[str, Any], near: Path, tmp_path: Path) -> None:
    recipe = {**recipe, **({"base_model": str(near / "base")} if "base_model" in recipe else {})}
    file = write_recipe(near, tmp_path / "recipe.yml", **recipe)
    said = explained(file)
    made = merged(file, tmp_path / "out")
    assert said.keys() == made.keys()
    for name, values in made.items():
        flat = values.flatten()
        measured = [float(flat[k :: len(NAMES)].mean() - flat[:: len(NAMES)].mean()) for k in range(1, len(NAMES))]
        assert [said[name][model] for model in NAMES[1:]] == pytest.approx(measured, abs=1e-5), name


def test_factors_of_slerp_are_those_measured_where_models_are_near(
    models: Callable[[float], Path], tmp_path: Path
) -> None:
    root = models(1000.0)
    settings = {"base_model": str(root / "a"), "parameters": {"t": [0.2, 0.6]}}
    file = write_recipe(root, tmp_path / "recipe.yml", "ab", merge_method="slerp", **settings)
    said = explained(file)
    for name, values in merged(file, tmp_path / "out").items():
        flat = values.flatten()
        measured = [float(flat[k :: len(NAMES)].mean() - flat[:: len(NAMES)].mean()) for k in (1, 2)]
        assert [said[name][model] for model in "ab"] == pytest.approx(measured, abs=1e-3), name


@pytest.mark.parametrize(
    "recipe",
    [
        {"merge_method": "parameter_selection", "weights": [3, 1, [0, 4]]},
        {"merge_method": "half_reset", "weights": [3, 1, 0], "parameters": {"base_share": 0.25}, "base_model": "base"},
    ],
    ids=lambda recipe: recipe["merge_method"],
)
def test_probabilities_are_the_shares_measured(recipe: dict[str, Any], near: Path, tmp_path: Path) -> None:
    recipe = {**recipe, **({"base_model": str(near / "base")} if "base_model" in recipe else {})}
    file = write_recipe(near, tmp_path / "recipe.yml", **recipe)
    said = explained(file)
    for name, values in merged(file, tmp_path / "out").items():
        flat = values.flatten()
        for k in range(1, len(NAMES)):
            drawn = flat[k :: len(NAMES)]  # where only sub-model k has 2
            share, p = float((drawn == 2).double().mean()), said[name][NAMES[k]]
            assert abs(share - p) <= 4.5 * (p * (1 - p) / len(drawn)) ** 0.5 + 1e-12, (name, NAMES[k])
        if "base" in said[name]:
            assert float((flat == 0).double().mean()) == pytest.approx(0.25, abs=4.5 * (0.1875 / len(flat)) ** 0.5)


def explain(file: Path, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["check", str(file), "--explain"])
    assert done.exit_code == code, done.output
    return done.output


def test_table_of_one_group_and_of_a_sum_that_is_not_1(near: Path, tmp_path: Path) -> None:
    file = write_recipe(near, tmp_path / "r.yml", merge_method="linear", parameters={"weight": 0.5, "normalize": False})
    lines = [line.split() for line in explain(file).splitlines()]
    assert ["tensors", "a", "b", "c", "sum"] in lines
    assert ["all", "tensors", "(30)", "0.5", "0.5", "0.5", "1.5"] in lines
    assert "the factors do not sum to 1, so the merged model's values are scaled as a whole" in explain(file)
    file = write_recipe(near, tmp_path / "r.yml", merge_method="linear", parameters={"weight": 0.5})
    assert "0.3333   0.3333   0.3333     1" in explain(file)
    assert "do not sum to 1" not in explain(file)


def test_table_by_layers_and_filters(near: Path, tmp_path: Path) -> None:
    lines = explain(write_recipe(near, tmp_path / "r.yml", "ab", merge_method="linear", weights=[[0, 1], 1]))
    rows = {" ".join(line.split()[:-3]): line.split()[-3:] for line in lines.splitlines() if len(line.split()) > 3}
    assert rows["model.layers.1.*"] == ["0.3333", "0.6667", "1"]
    assert rows["model.layers.2.*"] == ["0.5", "0.5", "1"]
    first = "model.embed_tokens.weight, model.layers.0.*, model.norm.weight, lm_head.weight"
    assert rows[first] == ["0", "1", "1"]
    lines = explain(write_recipe(near, tmp_path / "r.yml", "ab", merge_method="linear", weights=[FILTERED, 1]))
    rows = {" ".join(line.split()[:-3]): line.split()[-3:] for line in lines.splitlines() if len(line.split()) > 3}
    assert rows["model.layers.0-2.self_attn.q_proj.weight"] == ["0.75", "0.25", "1"]
    assert rows["all others (27)"] == ["0.5", "0.5", "1"]


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("ties", {"weight": 1, "density": 0.5}, "that of one alone is `lambda`"),
        ("ties", {"weight": 1, "density": 0.5}, "only the share `density` of the values is kept, the largest"),
        ("dare_ties", {"weight": 1, "density": 0.5}, "drawn at random, and these are scaled up to the L1 norm"),
        ("dare_ties", {"weight": 1}, "a change is left out where its sign is not that of the sum"),
        (
            "task_arithmetic",
            {"weight": 1},
            "the merged change is no mean of the changes: smaller below 1, larger above",
        ),
        ("parameter_selection_resample", {}, "is drawn again, from those that changed it (`resample`)"),
        ("parameter_selection", {"resample": 2}, "is drawn again, up to 2 times (`resample`)"),
        ("model_stock", {}, "model_stock: what counts how much follows from the models' values"),
        ("pcb", {}, "pcb: what counts how much follows from the models' values"),
    ],
)
def test_what_else_decides_is_said(
    method: str, settings: dict[str, Any], said: str, near: Path, tmp_path: Path
) -> None:
    file = write_recipe(
        near, tmp_path / "r.yml", merge_method=method, base_model=str(near / "base"), parameters=settings
    )
    assert said in explain(file)


def test_every_recipe_of_the_field_is_explained(near: Path, tmp_path: Path) -> None:
    found = sorted((Path(__file__).parents[2] / "recipes" / "field").glob("*.yml"))
    assert found
    for path in found:
        recipe = yaml.safe_load(path.read_text())
        subs = "abc" if recipe["merge_method"] != "slerp" else "ab"
        for entry, name in zip(recipe["models"], "abcc", strict=False):
            entry["model"] = str(near / name)
        recipe["models"] = recipe["models"][: len(subs)]
        if "base_model" in recipe:
            recipe["base_model"] = str(near / ("a" if recipe["merge_method"] == "slerp" else "base"))
        (tmp_path / path.name).write_text(yaml.safe_dump(recipe))
        assert f"{recipe['merge_method']}: " in explain(tmp_path / path.name), path.name


def test_what_cannot_be_explained_is_refused(near: Path, tmp_path: Path) -> None:
    entries = [{"model": "nobody/none"}, {"model": "nobody/other"}]
    file = write_recipe(near, tmp_path / "r.yml", merge_method="linear", models=entries, parameters={"weight": 1})
    assert "`--explain` needs the models here" in explain(file, 1)
    assert "--explain goes with a recipe file" in explain(near, 2)
