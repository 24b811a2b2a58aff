"""The score of merges of k of K sub-models, k = 1 to K, with intervals over the orders that they were trained in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ordermerge.errors import percent
from ordermerge.eval.scoring.table import ARROWS, NO_FILTER, digits
from ordermerge.eval.statistics import LEVEL, jackknife_interval
from ordermerge.eval.tables import markdown_rows, print_columns
from ordermerge.yaml_json import read_json

FILE = "curve.json"
FIGURE = "curve.png"
Subset = tuple[int, ...]
Interval = tuple[float, float]
HEADER = (
    "orders",
    "merges",
    "mean",
    "lowest",
    "highest",
    f"{percent(LEVEL)} over orders",
    "gain of the last",
    "price, runs",
)
NOTE = (
    "Over orders: what other training orders would change, by the jackknife over the orders. Gain of the last: of the "
    "mean over one order fewer, with its interval over orders."
)


@dataclass(frozen=True)
class Point:
    """Merges of one number of orders.

    Attributes:
        orders: How many, k.
        merges: How many subsets of that size were scored.
        mean: Of their scores.
        lowest: Of their scores.
        highest: Of their scores.
        interval: Ends of the mean's confidence interval over orders; None where a subset that it takes is not scored.
        gain: Mean less the mean of one order fewer; None of one order.
        gain_interval: Ends of its confidence interval over orders.
        price: Of the training, in runs of one order.
    """

    orders: int
    merges: int
    mean: float
    lowest: float
    highest: float
    interval: Interval | None
    gain: float | None
    gain_interval: Interval | None
    price: float


@dataclass(frozen=True)
class Curve:
    """How a merge's score depends on the number of orders.

    Attributes:
        merge: The merge's name.
        task: Task or group of tasks.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers.
        higher_is_better: None where the task does not say.
        points: For k = 1 to K.
    """

    merge: str
    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    points: list[Point]

    @property
    def title(self) -> str:
        """The score's name in tables."""
        name = " ".join([self.task, self.metric, *([] if self.filter == NO_FILTER else [self.filter])])
        return f"{self.merge}, {name}{ARROWS[self.higher_is_better]}"


@with_config(ConfigDict(extra="allow"))
class CurveFile(TypedDict):
    """What is read again of `curve.json`."""

    curves: list[Curve]


def curve_points(scores: Mapping[Subset, float], count: int, prices: Sequence[float]) -> list[Point]:
    """Return mean, range and interval over orders for each number of orders.

    The mean over the subsets of k orders is a U-statistic; its jackknife leaves out one order at a time, and with it
    every subset that holds it. The merge of all orders is held against those of all but one.

    Args:
        scores: By the orders merged, in ascending order; those of one order and of all are there.
        count: K, at least 2.
        prices: Of k orders in runs of one, for k = 1 to K.
    """
    everyone = range(count)

    def level(size: int, without: int | None = None) -> float:
        found = [value for subset, value in scores.items() if len(subset) == size and without not in subset]
        return float(np.mean(found)) if found else float("nan")

    def interval(*sizes: int) -> Interval | None:
        """Of the mean at the first size, less that at the second if there is one."""
        signs = (1, -1)[: len(sizes)]
        left = [size - (max(sizes) == count) for size in sizes]  # of all orders but one there are no K
        values = [sum(sign * level(size, k) for sign, size in zip(signs, left, strict=True)) for k in everyone]
        if not np.isfinite(values).all():
            return None
        return jackknife_interval(sum(sign * level(size) for sign, size in zip(signs, sizes, strict=True)), values)

    points = []
    for size in range(1, count + 1):
        found = [value for subset, value in scores.items() if len(subset) == size]
        ends = (float(min(found)), float(max(found)))
        gain = level(size) - level(size - 1) if size > 1 else None
        around = interval(size, size - 1) if size > 1 else None
        points.append(Point(size, len(found), level(size), *ends, interval(size), gain, around, prices[size - 1]))
    return points


def load_curves(path: Path) -> list[Curve]:
    """Read the curves of a merge.

    Args:
        path: The JSON file.

    Raises:
        UserError: If it is missing or damaged.
    """
    content: CurveFile = read_json(path, CurveFile, remedy="`ordermerge curve` writes it anew")
    return content["curves"]


def curve_lines(curve: Curve) -> list[list[str]]:
    """Return the lines of a table under `HEADER`.

    Args:
        curve: The curve.
    """
    return [
        [
            str(point.orders),
            str(point.merges),
            *map(digits, (point.mean, point.lowest, point.highest)),
            _ends(point.interval),
            "" if point.gain is None else f"{_signed(point.gain)} ({_ends(point.gain_interval) or 'no interval'})",
            f"{point.price:g}",
        ]
        for point in curve.points
    ]


def print_curves(curves: Sequence[Curve], file: IO[str] | None = None) -> None:
    """Print a table for each curve; nothing is cut.

    Args:
        curves: The curves.
        file: Where to print; standard output if not given.
    """
    for curve in curves:
        print(f"{curve.title}:", file=file)
        print_columns(HEADER, curve_lines(curve), file=file)
    print(NOTE, file=file)


def markdown_curve(curve: Curve) -> str:
    """Return a curve's table as Markdown.

    Args:
        curve: The curve.
    """
    return markdown_rows(HEADER, curve_lines(curve))


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{digits(interval[0])} to {digits(interval[1])}"


def _signed(value: float) -> str:
    return f"+{digits(value)}" if value > 0 else digits(value)
