"""What the documents say holds: numbers come from committed results, links and commands exist."""

import io
import json
import re
import shlex
from pathlib import Path

import precision
import pytest
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from ordermerge.cli import main
from ordermerge.eval.comparison.curve import load_curves, print_curves
from ordermerge.eval.comparison.noise import NoiseReport, print_noise
from ordermerge.eval.comparison.record import load_comparison
from ordermerge.eval.comparison.table import print_comparison
from ordermerge.merge_methods import METHODS
from ordermerge.merge_methods.recipe_check.check import check_recipe

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "recipes", "studies", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.md"))])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def priced_rows(text: str) -> list[str]:
    """Return the lines of a table of prices, less the mark of the best of equal price."""
    table = re.search(r"^\| model \| samples \| price, runs.*?(?=^$)", text, re.DOTALL | re.MULTILINE)
    assert table
    return [re.sub(r"\*\*| \|[^|]*\|$", "", line) for line in table.group().splitlines()[2:]]


def test_readme_scores_are_those_of_the_committed_results() -> None:
    report = ROOT / "recipes" / "quickstart" / "results" / "quickstart" / "report.md"
    rows = priced_rows(report.read_text(encoding="utf-8"))
    assert len(rows) == 11
    assert priced_rows(README) == rows


def test_scores_on_other_cpus_are_those_of_the_committed_results() -> None:
    page, results = (ROOT / "recipes" / "quickstart" / name for name in ("README.md", "results/cpus.md"))
    table = results.read_text(encoding="utf-8")
    assert table in page.read_text(encoding="utf-8")
    scores = dict(re.findall(r"^\| (\w+) \| (\d\.\d+) ", table, re.MULTILINE))
    for row in priced_rows(README):
        name, score = re.match(r"\| ([\w ]+) \|(?:[^|]*\|){2} (\d\.\d+)", row).groups()
        assert scores.get(name, score) == score  # on the kind of CPU of the committed report


def test_tables_in_the_docs_are_those_of_the_committed_studies() -> None:
    prices, questions = (ROOT / "studies" / "price" / "results" / "answers.md").read_text().strip().split("\n\n")
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert prices in README
    assert prices in evidence
    assert questions in evidence
    for study in ("banking77", "position", "order_noise", "merges", "mixes", "four_epochs"):
        for table in (ROOT / "studies" / study / "results" / "answers.md").read_text().strip().split("\n\n"):
            assert table in evidence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if "results" not in page.parts}
    assert pages <= named, "name the page under `nav` in mkdocs.yml"


def test_readme_commands_exist() -> None:
    commands = [
        shlex.split(line) for line in re.findall(r"^\$ (ordermerge .*?)(?:\s+#.*|\s*\\)?$", README, re.MULTILINE)
    ]
    assert {command[1] for command in commands} >= {"run", "train", "eval", "merge", "check"}
    for command in commands:
        done = CliRunner().invoke(main, [command[1], "--help"])
        assert done.exit_code == 0
        for option in (word for word in command if word.startswith("--")):
            assert option in done.output


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^\$ make (\w+)", README, re.MULTILINE)
    assert targets == ["quickstart", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_readme_recipe_is_well_formed() -> None:
    recipe = yaml.safe_load(re.search(r"```yaml\n(# recipe.yml.*?)```", README, re.DOTALL).group(1))
    assert check_recipe(recipe, models_exist=False) == []


def test_every_merge_method_is_documented() -> None:
    page = (ROOT / "docs" / "merge_methods.md").read_text(encoding="utf-8")
    for method in METHODS:
        assert f"`{method.spec.name}`" in page
        for parameter in method.spec.parameters:
            assert f"`{parameter.name}`" in page


def test_statistics_in_the_docs_are_those_of_the_committed_results() -> None:
    folder = ROOT / "recipes" / "quickstart" / "results" / "statistics"
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    shown = io.StringIO()
    print_comparison(load_comparison(folder / "comparison.json"), shown)
    print_noise(TypeAdapter(NoiseReport).validate_json((folder / "noise.json").read_bytes()), shown)
    print_curves(load_curves(folder / "curve.json"), shown)
    numbers = [" ".join(line.split()) for line in shown.getvalue().splitlines() if re.search(r"\d\.\d{3}", line)]
    assert len(numbers) >= 10
    for line in numbers:
        assert line in page


def test_table_of_all_methods_is_that_of_the_committed_results() -> None:
    folder = ROOT / "recipes" / "quickstart"
    comparison = load_comparison(folder / "results" / "methods" / "comparison.json")
    merges = yaml.safe_load((folder / "methods.yml").read_text(encoding="utf-8"))["merges"]
    assert {*merges, "base"} - {"uniform_soup"} <= {found.model for found in comparison.comparisons}
    shown = io.StringIO()
    print_comparison(comparison, shown)
    page = " ".join((ROOT / "docs" / "methods_of_the_field.md").read_text(encoding="utf-8").split())
    rows = [" ".join(line.split()) for line in shown.getvalue().splitlines() if re.search(r" to [^\d]\d", line)]
    assert len(rows) == len(comparison.comparisons)
    for row in rows:
        assert row in page


def test_experiment_with_all_methods_has_the_settings_of_the_recipes() -> None:
    merges = yaml.safe_load((ROOT / "recipes" / "quickstart" / "methods.yml").read_text(encoding="utf-8"))["merges"]
    for file in (ROOT / "recipes" / "field").glob("*.yml"):
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        if file.stem in merges:
            assert merges[file.stem].get("parameters") == recipe.get("parameters"), file.stem
            assert merges[file.stem]["merge_method"] == recipe["merge_method"], file.stem
        else:
            assert len(recipe["models"]) < 3, file.stem


def test_shares_of_unchanged_values_are_those_of_the_committed_results() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text(encoding="utf-8"))
    assert len(results["rows"]) == 10
    assert precision.markdown(results["rows"]) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
