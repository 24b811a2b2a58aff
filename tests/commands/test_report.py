"""The report's page and figures, and what the report refuses."""

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.commands.html import html_page
from ordermerge.commands.report import tallies
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.run_figures import effect_figure, learning_figure

SVG = '<?xml version="1.0"?>\n<!DOCTYPE svg>\n<svg><path style="fill: #ffffff"/><path style="stroke: #000000"/></svg>\n'


def comparison(model: str, reference: str, difference: float, p_value: float) -> Comparison:
    return Comparison(
        *("sums", "exact_match", "none", True, 500, model, reference, ["order_0"]),
        *(0.5 + difference, 0.5, difference, difference - 0.02, difference + 0.03, p_value, p_value, False, 0.04),
    )


COMPARISONS = [
    comparison("average", "single_mean", 0.2, 0.001),
    comparison("selected", "single_mean", -0.1, 0.049),
    comparison("selected", "weighted_average", -0.3, 0.2),
]
REPORT = ComparisonReport(COMPARISONS, [], [], "test_score", None, 0.95, 0.8, 9999, 0, {}, {}, {}, {})


def test_page_inlines_pictures_in_the_colours_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "one.svg").write_text(SVG)
    page = html_page("# Title\n\n![What it shows](one.png)", "Title", tmp_path, [tmp_path / "one.png"])
    assert '<svg><path style="fill: none"/><path style="stroke: currentColor"/></svg>' in page
    assert "<figcaption>What it shows</figcaption>" in page
    assert "<?xml" not in page
    assert "one.png" not in page


def test_page_shows_markup_of_names_as_text_and_lets_wide_tables_scroll(tmp_path: Path) -> None:
    page = html_page("| a<script>b |\n| --- |\n| 1 |", "x<y", tmp_path, [])
    assert "<script>" not in page
    assert "a&lt;script&gt;b" in page
    assert "<title>x&lt;y</title>" in page
    assert '<div class="wide" tabindex="0" role="region" aria-label="table"><table>' in page


def test_tallies_count_what_the_corrected_p_tells_apart() -> None:
    assert tallies(REPORT) == (
        "| merged models | against the mean of the single models | against the weighted average |\n"
        "| --- | ---: | ---: |\n"
        "| sums exact_match ↑ | 1 higher, 1 lower | 1 not told apart |\n\n"
        "By p corrected for 3 comparisons."
    )


def test_figures_come_with_their_data_and_the_same_bytes_again(tmp_path: Path) -> None:
    files = effect_figure(REPORT, tmp_path / "effects")
    first = [file.read_bytes() for file in files]
    assert [file.name for file in files] == ["effects.png", "effects.svg", "effects.csv"]
    assert [file.read_bytes() for file in effect_figure(REPORT, tmp_path / "effects")] == first
    with open(files[2], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["reference"], float(row["low"])) for row in rows] == [
        (one.model, one.reference, one.low) for one in COMPARISONS
    ]
    *_, data = learning_figure({"order_0": [(5, 2.0), (10, 1.0)]}, {"order_0": [(10, 1.5)]}, tmp_path / "learning")
    assert data.read_text() == (
        "model,data,step,loss\norder_0,train,5,2.0\norder_0,train,10,1.0\norder_0,validation,10,1.5\n"
    )


@pytest.mark.parametrize("command", ["report", "card"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, [command, str(tmp_path)])
    assert refused.exit_code == 1
    assert f"{tmp_path}: no run directory" in refused.output
