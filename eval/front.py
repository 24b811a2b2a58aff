"""Merges that trade one task's score for another's: the points that were scored, as a table and as a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import IO, Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ordermerge.eval.figures import COLOURS, label, save_figure
from ordermerge.eval.scoring.table import Row, column_title, digits, notes, score_cell
from ordermerge.eval.tables import print_columns, with_minus

MOST_PANELS = 12
_GREY = "#888888"
Kind = Literal["model alone", "sample", "promised"]


@dataclass(frozen=True)
class FrontPoint:
    """A merge that was scored.

    Attributes:
        name: Its coefficients.
        kind: A model's whole change alone, another sample, or one that the surrogates promised to be on the front.
        coefficients: Of the models' changes.
        scores: As measured, one a task.
        predicted: Of the same tasks, by surrogates that were fitted without this merge.
        on_front: Whether no other merge is at least as good in every task, and better in one, as measured.
    """

    name: str
    kind: Kind
    coefficients: tuple[float, ...]
    scores: list[Row]
    predicted: list[float]
    on_front: bool


@dataclass(frozen=True)
class Fit:
    """How well a surrogate predicts a task's score.

    Attributes:
        task: The task.
        form: What was fitted.
        parameters: Of the quadratic: of c_i^2, c_i c_j, c_i and 1.
        r_squared: Of the samples, each predicted from all others; None where all score alike.
    """

    task: str
    form: str
    parameters: list[float]
    r_squared: float | None


@dataclass(frozen=True)
class Front:
    """What a search found.

    Attributes:
        models: Their names, in the coefficients' order.
        points: All merges that were scored.
        fits: The surrogates, one a task.
        samples: How many merges they were fitted to.
        degenerate: Why there is no trade-off to choose from; None where there is one.
        untold: Why it cannot be told whether the front is noise; None where it can.
    """

    models: list[str]
    points: list[FrontPoint]
    fits: list[Fit]
    samples: int
    degenerate: str | None
    untold: str | None

    @property
    def front(self) -> list[FrontPoint]:
        """The points on the front, the best of the first task first."""
        first = self.points[0].scores[0].higher_is_better
        found = [point for point in self.points if point.on_front]
        return sorted(found, key=lambda point: point.scores[0].value, reverse=bool(first))


def print_front(found: Front, file: IO[str] | None = None) -> None:
    """Print the front, and the models alone to hold it against.

    Args:
        found: What a search found.
        file: Where to print; standard output if not given.
    """
    header = ["coefficients"]
    for row in found.points[0].scores:
        header += [column_title(row), "predicted"]
    alone = [point for point in found.points if point.kind == "model alone" and not point.on_front]
    lines = []
    for point in [*found.front, *alone]:
        cells = [point.name]
        for row, predicted in zip(point.scores, point.predicted, strict=True):
            cells += [score_cell(row), digits(predicted)]
        lines.append([*cells, "front" if point.on_front else point.kind])
    print_columns([*header, ""], lines, _notes(found), file)


def _notes(found: Front) -> list[str]:
    said = [*notes(row for point in found.points for row in point.scores)]
    said.append(f"Coefficients of {', '.join(found.models)}, which multiply their changes of the base model.")
    said.append("Predicted: by surrogates that were fitted without that merge; all other scores are measured.")
    for fit in found.fits:
        said.append(
            f"{fit.task}: {fit.form}, {len(fit.parameters)} parameters, {found.samples} samples: {_quality(fit)}."
        )
    return [*said, *(line for line in (found.degenerate, found.untold) if line)]


def _quality(fit: Fit) -> str:
    if fit.r_squared is None:
        return "all score alike"
    poor = "; the mean predicts as well: more --samples may help" if fit.r_squared <= 0 else ""
    return f"R² {with_minus(f'{fit.r_squared:.2f}')}, each left out in turn{poor}"


def front_figure(found: Front, stem: Path) -> list[Path]:
    """Draw each two tasks' scores against each other: every merge that was scored, the front, and what was promised.

    Args:
        found: What a search found.
        stem: Where to write, without a suffix.

    Returns:
        The files: PNG, SVG and CSV.
    """
    pairs = list(combinations(range(len(found.fits)), 2))[:MOST_PANELS]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(pairs), squeeze=False)[:, 0]
        for axes, pair in zip(grid, pairs, strict=True):
            _paint_pair(axes, found, *pair)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)

    columns = ("coefficients", "kind", "on_front", "task", "metric", "filter", "score", "stderr", "predicted")
    rows = [
        (point.name, point.kind, point.on_front, row.task, row.metric, row.filter, row.value, row.stderr, predicted)
        for point in found.points
        for row, predicted in zip(point.scores, point.predicted, strict=True)
    ]
    return save_figure(stem, (5.8, 0.8 + 4.2 * len(pairs)), paint, columns, rows)


def _paint_pair(axes: Axes, found: Front, x: int, y: int) -> None:
    """Draw the merges by the scores of two tasks."""
    front, promised = found.front, [point for point in found.points if point.kind == "promised"]
    rest = [point for point in found.points if not point.on_front]
    alone = [point for point in found.points if point.kind == "model alone"]
    for point in promised:
        ends = [[point.predicted[task], point.scores[task].value] for task in (x, y)]
        axes.plot(ends[0], ends[1], color=_GREY, linewidth=0.5, zorder=1)
    axes.plot(_values(rest, x), _values(rest, y), ".", color=_GREY, label="scored")
    guesses = [[point.predicted[task] for point in promised] for task in (x, y)]
    axes.plot(
        guesses[0],
        guesses[1],
        "D",
        color=COLOURS[1],
        markersize=5,
        fillstyle="none",
        label="promised by the surrogates",
    )
    errors = [[point.scores[task].stderr or 0 for point in front] for task in (x, y)]
    look: dict[str, Any] = {"color": COLOURS[0], "elinewidth": 0.7, "label": "the front, measured"}
    axes.errorbar(_values(front, x), _values(front, y), errors[1], errors[0], "o", **look)
    axes.plot(_values(alone, x), _values(alone, y), "ks", markersize=9, fillstyle="none", label="models alone")
    for point, name in zip(alone, found.models, strict=True):
        place = (point.scores[x].value, point.scores[y].value)
        axes.annotate(label(name), place, xytext=(7, 7), textcoords="offset points", fontsize=8.5)
    first = found.points[0].scores
    axes.set_xlabel(label(column_title(first[x]), 60))
    axes.set_ylabel(label(column_title(first[y]), 60))
    axes.set_title("Merges by their scores", loc="left")


def _values(points: Sequence[FrontPoint], task: int) -> list[float]:
    return [point.scores[task].value for point in points]
