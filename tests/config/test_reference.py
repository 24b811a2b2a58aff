"""The page of all keys is that of the schema; the JSON Schema takes what the loader takes."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.config.commented import commented_experiment
from ordermerge.config.reference import experiment_schema, keys, reference_page

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path for path in [*ROOT.glob("recipes/*/experiment.yml"), *ROOT.glob("studies/*/*.yml")]
                     if "orders" in yaml.safe_load(path.read_text()))  # fmt: skip


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    """Return a validator of experiments, from what the command prints."""
    printed = CliRunner().invoke(main, ["check", "--schema"])
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == reference_page(), "run: python scripts/reference.py"


def test_each_key_of_ours_has_a_meaning() -> None:
    assert [key.place for key in keys(experiment_schema()) if not key.meaning] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_schema_takes_shipped_experiments(schema: jsonschema.Draft202012Validator, path: Path) -> None:
    assert list(schema.iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [("sft.learning_rat", 1e-3), ("lora.rank", 8), ("orders.count", 0), ("controls.annealed", "yes"), ("modle", "x")],
)
def test_schema_refuses_what_the_loader_refuses(
    schema: jsonschema.Draft202012Validator, place: str, value: object
) -> None:
    content = yaml.safe_load((ROOT / "recipes" / "quickstart" / "experiment.yml").read_text())
    section, _, key = place.rpartition(".")
    (content.setdefault(section, {}) if section else content)[key] = value
    assert len(list(schema.iter_errors(content))) >= 1


def test_commented_experiment_sets_what_it_is_given_and_shows_the_rest() -> None:
    text = commented_experiment({"name": "a", "model.path": "b", "orders.count": 2, "merges": {"m": {"x": 1}}})
    held = yaml.safe_load(text)
    assert held["name"], held["model"] == ("a", {"path": "b"})
    assert held["orders"] == {"count": 2}
    assert held["merges"] == {"m": {"x": 1}}
    assert "\n#   learning_rate: 2.0e-05" in text
