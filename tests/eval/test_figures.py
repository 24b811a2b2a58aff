"""Figures: three files of one name, the same bytes every time, in one style."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from ordermerge.eval.figures import COLOURS, STYLE, hint, save_figure


def paint(figure: Figure) -> None:
    axis = figure.subplots()
    axis.plot([1, 2], [3, 4], color=COLOURS[0], label="line")
    axis.legend()


def test_figure_and_data_lie_side_by_side_and_are_reproducible(tmp_path: Path) -> None:
    rows = [("a, b", 1.5), ("c", None)]
    first = save_figure(tmp_path / "one" / "v1.0 plot", (3, 2), paint, ["name", "value"], rows)
    second = save_figure(tmp_path / "two" / "v1.0 plot", (3, 2), paint, ["name", "value"], iter(rows))
    assert [file.name for file in first] == ["v1.0 plot.png", "v1.0 plot.svg", "v1.0 plot.csv"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert COLOURS[0].lower() in first[1].read_text()
    assert list(csv.reader(first[2].read_text().splitlines())) == [["name", "value"], ["a, b", "1.5"], ["c", ""]]
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == sorted(file.name for file in first)


def test_hint_is_a_title_of_what_is_drawn_whatever_its_text(tmp_path: Path) -> None:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, text in enumerate(['a <b> & "c"', "one,\nand two"]):
            hint(axes.plot([1, 2], [number, number])[0], text)

    _, drawing, _ = save_figure(tmp_path / "hints", (2, 2), draw, [], [])
    titles = [title.text for title in ElementTree.parse(drawing).iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ['a <b> & "c"', "one, and two"]


def test_style_does_not_leak_into_other_figures(tmp_path: Path) -> None:
    before = {key: matplotlib.rcParams[key] for key in STYLE}
    seen = {}
    save_figure(tmp_path / "plot", (2, 2), lambda _: seen.update({k: matplotlib.rcParams[k] for k in STYLE}), [], [])
    assert seen["svg.hashsalt"] == STYLE["svg.hashsalt"]
    assert {key: matplotlib.rcParams[key] for key in STYLE} == before
