"""Methods that must know the whole model: `ordermerge merge` measures it, and leaves a recipe for the stock command."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from mergekit.merge_methods.base import TensorGroup
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file, save_file

from ordermerge.cli import main
from ordermerge.commands.recipes import write_recipe
from ordermerge.merge_methods import graft, pcb, pcb_limits
from ordermerge.merge_methods.recipe_check.check import check_recipe, needs_first_pass

pytestmark = pytest.mark.integration
Family = Callable[..., list[Path]]
Tensors = dict[str, torch.Tensor]


def recipe_of(family: list[Path], method: str = "graft", **more: Any) -> dict[str, Any]:
    base, *models = map(str, family)
    return {"merge_method": method, "base_model": base, "models": [{"model": m} for m in models], **more}


def ours(recipe: dict[str, Any], out: Path, *options: str) -> Result:
    out.parent.mkdir(exist_ok=True)
    (out.parent / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return CliRunner().invoke(main, ["merge", str(out.parent / "recipe.yml"), str(out), "--quiet", *options])


def stock(recipe: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(mergekit_yaml, [str(recipe), str(out), "--quiet", *options])


def weights(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first
    )


def thresholds(folder: Path) -> list[float]:
    recipe = yaml.safe_load((folder / "mergekit_config.yml").read_text())
    return [entry["parameters"]["threshold"] for entry in recipe["models"]]


def kth_largest(model: Tensors, base: Tensors, density: float) -> float:
    changes = torch.cat([(model[name].float() - base[name].float()).abs().flatten() for name in base])
    return changes.sort(descending=True).values[int(density * len(changes)) - 1].item()


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gpt2"])
def test_graft_keeps_the_largest_changes_of_the_whole_model(kind: str, make_family: Family, tmp_path: Path) -> None:
    family = make_family(kind, count=2)
    recipe = recipe_of(family, parameters={"density": 0.2})
    recipe["models"][1]["parameters"] = {"density": 0.05}
    done = ours(recipe, tmp_path / "out")
    assert done.exit_code == 0, done.output
    base, first, second = map(weights, family)
    expected = [kth_largest(first, base, 0.2), kth_largest(second, base, 0.05)]
    assert thresholds(tmp_path / "out") == expected
    merged = weights(tmp_path / "out")
    assert same(merged, {name: graft([first[name], second[name]], base[name], expected) for name in merged})


def test_completed_recipe_gives_the_same_bytes_by_the_stock_command_in_a_shell(
    make_family: Family, tmp_path: Path
) -> None:
    assert ours(recipe_of(make_family()), tmp_path / "out").exit_code == 0
    completed = tmp_path / "out" / "mergekit_config.yml"
    assert completed.read_text().startswith(
        "# `threshold`: measured over the whole model by `ordermerge merge`.\nmerge_m"
    )
    command = Path(sys.executable).with_name("mergekit-yaml")
    done = subprocess.run(
        [command, completed, "stock"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert same(weights(tmp_path / "stock"), weights(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"threshold: {thresholds(tmp_path / 'out')[0]}" in card


def test_pcb_over_the_whole_model(make_family: Family, tmp_path: Path) -> None:
    family = make_family(count=2)
    done = ours(recipe_of(family, "pcb", parameters={"scope": "model", "ratio": 0.3}), tmp_path / "out")
    assert done.exit_code == 0, done.output
    base, *models = map(weights, family)
    groups = [TensorGroup.from_tensors([base[name], *(m[name] for m in models)], base_index=0) for name in base]
    limits = list(pcb_limits(lambda: groups, 0.3).values())
    expected = {name: pcb([model[name] for model in models], base[name], limits=limits) for name in base}
    assert same(weights(tmp_path / "out"), expected)
    completed = tmp_path / "out" / "mergekit_config.yml"
    given = [entry["parameters"] for entry in yaml.safe_load(completed.read_text())["models"]]
    assert given == [limit._asdict() for limit in limits]
    assert stock(completed, tmp_path / "again").exit_code == 0
    assert same(weights(tmp_path / "again"), expected)


@pytest.mark.parametrize(
    ("method", "parameters"), [("graft", {}), ("pcb", {"scope": "model"}), ("pcb", {}), ("half_reset", {})]
)
def test_threads_shards_and_writers_do_not_matter(
    method: str, parameters: dict[str, Any], make_family: Family, tmp_path: Path
) -> None:
    recipe = recipe_of(make_family(count=2), method, parameters=parameters)
    results = []
    before = torch.get_num_threads()
    for index, options in enumerate(([], ["--out-shard-size", "10k", "--async-write", "--random-seed", "5"])):
        torch.set_num_threads(index + 1)
        assert ours(recipe, tmp_path / str(index), *options).exit_code == 0
        results.append(weights(tmp_path / str(index)))
    torch.set_num_threads(before)
    assert same(*results)


def test_both_copies_of_a_tied_tensor_count_once_and_stay_equal(make_family: Family, tmp_path: Path) -> None:
    family = make_family("llama_tied", count=1)
    assert ours(recipe_of(family), tmp_path / "one").exit_code == 0
    for folder in family:
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    for method in ("graft", "half_reset", "pcb"):
        assert ours(recipe_of(family, method), tmp_path / method).exit_code == 0
        merged = weights(tmp_path / method)
        assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert thresholds(tmp_path / "graft") == thresholds(tmp_path / "one")


def test_slices_and_what_is_given_already(make_family: Family, tmp_path: Path) -> None:
    base, first, second = make_family(count=2)
    whole = recipe_of([base, first, second])
    whole["models"][1]["parameters"] = {"threshold": 0.25}
    assert ours(whole, tmp_path / "whole").exit_code == 0
    assert thresholds(tmp_path / "whole")[1] == 0.25
    sources = [{"layer_range": [0, 2], **entry} for entry in [*whole["models"], {"model": str(base)}]]
    sliced = {**{key: item for key, item in whole.items() if key != "models"}, "slices": [{"sources": sources}]}
    assert ours(sliced, tmp_path / "sliced").exit_code == 0
    completed = yaml.safe_load((tmp_path / "sliced" / "mergekit_config.yml").read_text())
    found = [source.get("parameters") for source in completed["slices"][0]["sources"]]
    assert found == [{"threshold": threshold} for threshold in thresholds(tmp_path / "whole")] + [None]
    assert same(weights(tmp_path / "sliced"), weights(tmp_path / "whole"))


def test_a_recipe_that_needs_nothing_is_kept_as_written(make_family: Family, tmp_path: Path) -> None:
    recipe = recipe_of(make_family(count=1), parameters={"threshold": 0.5})
    for method in (recipe, {**recipe, "merge_method": "pcb", "parameters": {"ratio": 0.5}}):
        assert ours(method, tmp_path / method["merge_method"]).exit_code == 0
        text = (tmp_path / "recipe.yml").read_text()
        assert (tmp_path / method["merge_method"] / "mergekit_config.yml").read_text() == text


@pytest.mark.parametrize(
    ("method", "parameters", "needed"),
    [
        ("graft", {}, "a `threshold` for every sub-model"),
        ("pcb", {"scope": "model"}, "`floor`, `ceiling`, `threshold`, `maximum` for every sub-model"),
    ],
)
def test_stock_command_says_what_to_run_instead(
    method: str, parameters: dict[str, Any], needed: str, family: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe_of(family, method, parameters=parameters)))
    message = str(stock(path, tmp_path / "out").exception)
    assert needed in message
    assert "merge with `ordermerge merge`" in message
    write_recipe(yaml.safe_load(path.read_text()), path, tmp_path / "out", {})
    assert path.read_text().startswith(f"# ordermerge merge {path} {tmp_path / 'out'}\n")


@pytest.mark.parametrize(
    ("method", "parameters", "problem"),
    [
        ("graft", {"density": [0.1, 0.2]}, "`parameters.density` holds for the whole model; give one value instead of"),
        ("pcb", {"scope": "model", "ratio": [{"filter": "mlp", "value": 0.5}, {"value": 0.1}]}, "`parameters.ratio`"),
        ("pcb", {"scope": [{"value": "model"}]}, "`parameters.scope` holds for the whole model; give one value"),
        ("graft", {"density": 0}, "`parameters.density`: `density` must be a number above 0 and at most 1; got 0"),
        ("half_reset", {"base_share": 2}, "`base_share` must be a number from 0 to 1; got 2"),
        ("half_reset", {"weight": 0}, "`weight` is 0 for every model of `models`"),
    ],
)
def test_check_names_bad_settings(method: str, parameters: dict[str, Any], problem: str, family: list[Path]) -> None:
    (found,) = check_recipe(recipe_of(family, method, parameters=parameters))
    assert problem in found


def test_settings_that_differ_between_slices_are_refused(family: list[Path], tmp_path: Path) -> None:
    def piece(layer: int, density: float) -> dict[str, Any]:
        ends = {"layer_range": [layer, layer + 1]}
        tuned = {"model": str(family[1]), **ends, "parameters": {"density": density}}
        return {"sources": [tuned, {"model": str(family[0]), **ends}]}

    recipe = {"merge_method": "graft", "base_model": str(family[0]), "slices": [piece(0, 0.1), piece(1, 0.2)]}
    done = ours(recipe, tmp_path / "out")
    assert done.exit_code == 1
    assert "`density` holds for the whole model; give one value instead of filters or a list" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["graft", "pcb", "half_reset"])
def test_missing_base_is_named(method: str, family: list[Path]) -> None:
    recipe = {key: item for key, item in recipe_of(family, method).items() if key != "base_model"}
    assert check_recipe(recipe) == [
        f"`{method}` needs `base_model`, and `models` has none; name the model that the sub-models were fine-tuned from"
    ]


def test_filters_of_the_ratio_are_legal_for_single_tensors(family: list[Path]) -> None:
    recipe = recipe_of(family, "pcb", parameters={"ratio": [0.1, 0.5]})
    assert check_recipe(recipe) == []
    assert not needs_first_pass(recipe)
    assert needs_first_pass(recipe_of(family))
    assert not needs_first_pass(recipe_of(family, "linear"))
