"""Every recipe that we ship is well-formed; none needs the network to be found so."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.merge_methods.recipe_check.check import check_recipe, needs_first_pass
from ordermerge.yaml_json import read_yaml

ROOT = Path(__file__).resolve().parents[1] / "recipes"
FILES = sorted(path for path in ROOT.rglob("*.yml") if "results" not in path.parts)
FIELD = ROOT / "field"
HUB = [path for path in FILES if path.parent.name.startswith("olmo-2-")]  # of models on the hub
RECIPES = [path for path in FILES if path.parent in (ROOT, FIELD)] + HUB
EXPERIMENTS = [path for path in FILES if path not in RECIPES]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_recipes_were_found() -> None:
    assert len(EXPERIMENTS) >= 3
    assert len(RECIPES) >= 28


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_plain_recipe_is_well_formed_but_for_its_models(path: Path) -> None:
    assert check_recipe(read_yaml(path), models_exist=False) == []


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_plain_recipe_names_its_own_command(path: Path) -> None:
    recipe = read_yaml(path)
    program = "ordermerge merge" if needs_first_pass(recipe) else "mergekit-yaml"
    command = f"#   {program} recipes/{name(path)} {path.stem.removesuffix('_k4')}"
    if recipe["merge_method"].startswith(("dare_", "della")):  # their draw is global
        command += " --random-seed 0"
    assert command in path.read_text().splitlines()
    assert path.parent == FIELD or path.stem.startswith(recipe["merge_method"])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiment_passes_the_dry_run(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["run", str(path), "--dry-run", "--runs-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "train order_0, order_1" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_check_command_accepts_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(ROOT)
    monkeypatch.chdir(tmp_path)  # the checkout may hold the quickstart's sub-models in runs/
    done = CliRunner().invoke(main, ["check", str(path)])
    if path in EXPERIMENTS or path in HUB:
        assert done.exit_code == 0, done.output
        assert f"the {'recipe' if path in HUB else 'experiment'} is well-formed" in done.output
    else:  # its sub-models do not exist yet, and that is all there is to say
        assert done.exit_code == 1
        missing = len(set(re.findall(r"\./runs/\S+", path.read_text())))
        assert done.output.count("no such folder") == missing
        assert missing == 1 or f"{missing} problems" in done.output
