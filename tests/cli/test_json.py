"""`--json`, one spelling for all commands: numbers on standard output and nothing else there."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ordermerge.cli import main

COMMANDS = ("check", "compare", "curve", "eval", "inspect", "noise", "orders", "pareto", "report", "run")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_numbers_takes_json_alike(name: str) -> None:
    (option,) = [parameter for parameter in main.commands[name].params if "--json" in parameter.opts]
    assert (option.name, getattr(option, "flag_value", None)) == ("json_file", "-")


def test_check_says_what_is_wrong_as_json_too(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text("merge_method: linear\nmodels: [{model: org/a}, {model: org/b}]\nparameters: {weight: 1}\n")
    done = CliRunner().invoke(main, ["check", str(recipe), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"file": str(recipe), "kind": "recipe", "problems": []}
    recipe.write_text(recipe.read_text().replace("weight", "wieght"))
    done = CliRunner().invoke(main, ["check", str(recipe), "--json"])
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert problems[0].startswith("unknown parameter `parameters.wieght` for linear")
    assert problems[0] in done.stderr


def test_inspect_gives_its_numbers(family: list[Path]) -> None:
    base, *models = map(str, family)
    done = CliRunner().invoke(main, ["inspect", *models, "--base", base, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["overall"]["values"] > 0
