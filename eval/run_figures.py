"""The figures of a run's report: scores by price, what each merge gained, and how the sub-models learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ordermerge.eval.comparison.curve import Curve as OrdersCurve
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.comparison.table import REFERENCES
from ordermerge.eval.figures import COLOURS, hint, join_equal, label, save_figure, scale_by_powers
from ordermerge.eval.scoring.table import NO_FILTER, digits

MOST_PANELS = 12  # as many as can be looked at; more would take minutes to draw
_WIDTH = 5.8
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_GREY = "#888888"
_LINE = 0.19  # of text, in inches
_SPARSE = 12  # points of a curve: with fewer, each is marked
_EFFECT_COLUMNS = ("task", "metric", "filter", "model", "reference", "difference", "low", "high", "p_value_holm")
Curve = Sequence[tuple[int, float]]
Kind = Literal["base model", "single runs", "means of runs", "controls", "merges"]
_KINDS: dict[str, dict[str, Any]] = {
    "base model": {"color": "#000000", "marker": "X"},
    "single runs": {"color": _GREY, "marker": "."},
    "means of runs": {"color": "#000000", "marker": "s"},
    "controls": {"color": COLOURS[1], "marker": "D"},
    "merges": {"color": COLOURS[0], "marker": "o"},
}


@dataclass(frozen=True)
class PricedScore:
    """A model's score, and what the model cost.

    Attributes:
        model: Its name in tables.
        kind: What it is.
        price: Of its training, in runs of one order.
        score: The score.
        interval: Ends of the score's interval; None where it has none.
    """

    model: str
    kind: Kind
    price: float
    score: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class PricePanel:
    """The scores on one task.

    Attributes:
        task: The task.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers.
        higher_is_better: None where the task does not say.
        scores: Of each model.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    scores: Sequence[PricedScore]


def price_figure(panels: Sequence[PricePanel], stem: Path) -> list[Path]:
    """Draw scores against the price of the training, with their intervals and the models' names.

    Args:
        panels: At least one; the first `MOST_PANELS` are drawn, the CSV holds all.
        stem: Where to write, without a suffix.

    Returns:
        The files: PNG, SVG and CSV.
    """
    shown = panels[:MOST_PANELS]
    heights = [max(2.8, 1.1 + _LINE * sum(1 + name.count("\n") for name in _named_points(panel))) for panel in shown]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(shown), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for axes, panel, height in zip(grid, shown, heights, strict=True):
            _paint_prices(axes, panel, height - 1.1)
        found = [axes.get_legend_handles_labels() for axes in grid]
        entries = {name: handle for handles, names in found for handle, name in zip(handles, names, strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=3)

    columns = ("task", "metric", "filter", "model", "kind", "price", "score", "low", "high")
    rows = [
        (panel.task, panel.metric, panel.filter, one.model, one.kind, one.price, one.score,
         *(one.interval or (None, None)))
        for panel in panels for one in panel.scores
    ]  # fmt: skip
    return save_figure(stem, (_WIDTH, 0.6 + sum(heights)), paint, columns, rows)


def _named_points(panel: PricePanel) -> dict[str, PricedScore]:
    """Return the points that get a name beside the axes: all but the single runs; equal points share one."""
    named = {one.model: one for one in panel.scores if one.kind != "single runs"}
    return join_equal(named, lambda one: (one.price, one.score, one.kind))


def _paint_prices(axes: Axes, panel: PricePanel, height: float) -> None:
    """Draw one panel; `height` is that of the axes, in inches."""
    named = _named_points(panel)
    scores = [one for one in panel.scores if one.kind == "single runs"] + list(named.values())
    low, high = _score_limits(panel.scores)
    points = _side_by_side(scores, low, high)
    names = {one.model: name for name, one in named.items()}
    for kind, look in _KINDS.items():
        chosen = [one for one in scores if one.kind == kind]
        inside = [(one, *one.interval) for one in chosen if one.interval and low <= one.score <= high]
        if inside:
            below = [max(one.score - start, 0) for one, start, _ in inside]
            above = [max(end - one.score, 0) for one, _, end in inside]
            x, y = zip(*(points[one.model] for one, _, _ in inside), strict=True)
            axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=look["color"], elinewidth=1)
        for one in chosen:
            first = one is chosen[0]
            (drawn,) = axes.plot(*points[one.model], **look, linestyle="", label=kind if first else None, clip_on=False)
            name = names.get(one.model, one.model)
            hint(drawn, f"{name}: {digits(one.score)}{_ends(one.interval)}, price {one.price:.3g}")
    axes.set_ylim(low, high)
    prices = sorted({one.price for one in scores})
    ticks = _apart(prices, 0.08 * prices[-1])
    axes.set_xticks(ticks, [f"{price:.3g}" for price in ticks])
    axes.margins(x=0.06)
    axes.set_xlabel("price (trainings of one order)")
    better = {True: " (up: better)", False: " (down: better)", None: ""}[panel.higher_is_better]
    axes.set_ylabel(label(panel.metric) + better)
    axes.set_title(label(f"{_score_name(panel.task, panel.filter)}: score by price", 60), loc="left")
    _write_names(axes, {name: (one, points[one.model]) for name, one in named.items()}, height)


def _ends(interval: tuple[float, float] | None) -> str:
    return f" ({digits(interval[0])} to {digits(interval[1])})" if interval else ""


def _side_by_side(scores: Sequence[PricedScore], low: float, high: float) -> dict[str, tuple[float, float]]:
    """Return where each point is drawn: those of one price beside each other, what is off the axis at its end."""
    prices = sorted({one.price for one in scores})
    step = min([0.025 * (prices[-1] or 1), *(0.06 * (after - before) for before, after in pairwise(prices))])
    points = {}
    for price in prices:
        same = sorted((one for one in scores if one.price == price), key=lambda one: list(_KINDS).index(one.kind))
        for number, one in enumerate(same):
            points[one.model] = price + step * (number - (len(same) - 1) / 2), min(max(one.score, low), high)
    return points


def _score_limits(scores: Sequence[PricedScore]) -> tuple[float, float]:
    """Return the ends of the axis of scores: those of all but the base model, which may lie far off."""
    ends = [end for one in scores if one.kind != "base model" for end in (one.interval or (one.score,))]
    ends = ends or [one.score for one in scores]
    low, high = min(ends), max(ends)
    span = (high - low) or abs(high) or 1.0
    near = [one.score for one in scores if low - span <= one.score <= high + span]
    return min([low, *near]) - 0.06 * span, max([high, *near]) + 0.06 * span


def _write_names(axes: Axes, points: Mapping[str, tuple[PricedScore, tuple[float, float]]], height: float) -> None:
    """Write names and scores in a column right of the axes, each joined to its point by a thin line."""
    low, high = axes.get_ylim()
    ordered = sorted(points.items(), key=lambda item: item[1][1][1])
    sizes = [(1 + name.count("\n")) * _LINE / height for name, _ in ordered]
    wanted = [(point[1] - low) / (high - low) for _, (_, point) in ordered]
    for (name, (one, point)), place in zip(ordered, spread(wanted, sizes), strict=True):
        beyond = "" if low <= one.score <= high else ", off the axis"
        axes.annotate(
            f"{name} {digits(one.score)}{beyond}",
            point,
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            # From the middle of the label's left end, where the line crosses no text.
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.5, "shrinkA": 2, "shrinkB": 3}
            | {"relpos": (0, 0.5)},
            annotation_clip=False,
        )


def spread(places: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return places near the given ones where things of these sizes do not overlap, within 0 to 1 if they fit.

    Args:
        places: Where the middles are wanted, ascending.
        sizes: Of each.
    """
    found: list[float] = []
    lowest = 0.0
    for place, size in zip(places, sizes, strict=True):
        found.append(max(place, lowest + size / 2))
        lowest = found[-1] + size / 2
    highest = max(1.0, sum(sizes))
    for number in reversed(range(len(found))):
        found[number] = min(found[number], highest - sizes[number] / 2)
        highest = found[number] - sizes[number] / 2
    return found


def _apart(values: Sequence[float], distance: float) -> list[float]:
    """Return ascending values without those that are nearer than a distance to the one kept before."""
    kept: list[float] = []
    for value in values:
        if not kept or value - kept[-1] >= distance:
            kept.append(value)
    return kept


def _score_name(task: str, filter_name: str) -> str:
    return task if filter_name == NO_FILTER else f"{task}, {filter_name}"


def effect_figure(report: ComparisonReport, stem: Path) -> list[Path]:
    """Draw the difference of each model to each reference, with its interval.

    Of more than `MOST_PANELS` metrics those are drawn where a difference is clearest; the CSV holds all.

    Args:
        report: At least one comparison.
        stem: Where to write, without a suffix.

    Returns:
        The files: PNG, SVG and CSV.
    """
    panels: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in report.comparisons:
        panels.setdefault((one.task, one.metric, one.filter), []).append(one)
    clearest = sorted(panels, key=lambda key: max(map(_clarity, panels[key])), reverse=True)[:MOST_PANELS]
    panels = {key: found for key, found in panels.items() if key in clearest}
    models = _alike(report.comparisons)
    ranks = list(REFERENCES)
    references = sorted(
        dict.fromkeys(_held_against(one) for one in report.comparisons), key=lambda found: ranks.index(found[0])
    )

    def paint(figure: Figure) -> None:
        for axes, (key, found) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
            _paint_effects(axes, key, found, models, references)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", title="model less", alignment="left")

    row = max(0.42, 0.14 * len(references), _LINE * max(1 + name.count("\n") for name in models))
    height = 0.5 + _LINE * len(references) + len(panels) * (0.9 + row * len(models))
    rows = [[getattr(one, column) for column in _EFFECT_COLUMNS] for one in report.comparisons]
    return save_figure(stem, (_WIDTH, height), paint, _EFFECT_COLUMNS, rows)


def _alike(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Return the first of the models that are equal in all comparisons, by all their names."""
    found: dict[str, list[object]] = {}
    for one in comparisons:
        numbers = (one.task, one.metric, one.filter, _held_against(one), one.difference, one.low, one.high)
        found.setdefault(one.model, []).append(numbers)
    firsts = {model: (model, numbers) for model, numbers in found.items()}
    return {name: model for name, (model, _) in join_equal(firsts, lambda pair: pair[1]).items()}


def _held_against(one: Comparison) -> tuple[str, str]:
    """Return the kind of the reference, and its name in the legend."""
    named = {"control": f"the control {one.reference_models[0]}", "model": one.reference_models[0]}
    return one.reference, label(named.get(one.reference, REFERENCES[one.reference]))


def _clarity(one: Comparison) -> float:
    """Return a difference in units of half its interval."""
    half = (one.high - one.low) / 2
    return abs(one.difference) / half if half > 0 else float(one.difference != 0)


def _paint_effects(
    axes: Axes,
    key: tuple[str, str, str],
    found: list[Comparison],
    models: Mapping[str, str],
    references: Sequence[tuple[str, str]],
) -> None:
    names, shown = list(models), list(models.values())
    for place, reference in enumerate(references):
        chosen = [one for one in found if _held_against(one) == reference and one.model in shown]
        offset = 0.66 / len(references) * (place - (len(references) - 1) / 2)
        for one in chosen:
            row = shown.index(one.model)
            drawn = axes.errorbar(
                one.difference,
                row + offset,
                xerr=[[max(one.difference - one.low, 0)], [max(one.high - one.difference, 0)]],
                fmt=_MARKERS[place % len(_MARKERS)],
                markersize=4.5,
                color=COLOURS[place % len(COLOURS)],
                capsize=2,
                label=reference[1] if one is chosen[0] else None,
            )
            lead = f"{'+' * (one.difference >= 0)}{digits(one.difference)}{_ends((one.low, one.high))}"
            hint(drawn.lines[0], f"{names[row]} less {reference[1]}: {lead}")
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.set_yticks(range(len(models)), list(models))
    axes.set_ylim(len(models) - 0.5, -0.5)
    task, metric, filter_name = key
    direction = {True: " (right: better)", False: " (left: better)", None: ""}[found[0].higher_is_better]
    axes.set_xlabel(label(f"difference in {metric}{direction}", 60))
    axes.set_title(label(f"{_score_name(task, filter_name)}: lead over others", 60), loc="left", x=-0.3)


def curve_figure(curves: Sequence[OrdersCurve], stem: Path) -> list[Path]:
    """Draw scores of merges by the number of orders: mean, range, and interval over orders.

    Args:
        curves: At least one; the first `MOST_PANELS` are drawn, the CSV holds all.
        stem: Where to write, without a suffix.

    Returns:
        The files: PNG, SVG and CSV.
    """
    shown = curves[:MOST_PANELS]

    def paint(figure: Figure) -> None:
        for axes, curve in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
            sizes = [point.orders for point in curve.points]
            ranges = [point.lowest for point in curve.points], [point.highest for point in curve.points]
            axes.fill_between(sizes, *ranges, color=COLOURS[0], alpha=0.18, linewidth=0, label="lowest to highest")
            axes.plot(sizes, [point.mean for point in curve.points], color=COLOURS[0], marker="o", label="mean")
            known = [(point.orders, point.mean, point.interval) for point in curve.points if point.interval]
            axes.errorbar(
                [orders for orders, _, _ in known],
                [mean for _, mean, _ in known],
                yerr=[[mean - ends[0] for _, mean, ends in known], [ends[1] - mean for _, mean, ends in known]],
                fmt="none",
                color=COLOURS[1],
                capsize=3,
                label="interval over orders",
            )
            axes.set_xticks(sizes)
            axes.set_xlabel("orders merged")
            axes.set_ylabel(label(curve.metric))
            axes.set_title(label(f"{curve.title}: score by orders merged", 70), loc="left")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)

    columns = ("merge", "task", "metric", "filter", "orders", "merges", "mean", "lowest", "highest", "low", "high")
    rows = [
        (curve.merge, curve.task, curve.metric, curve.filter, point.orders, point.merges, point.mean, point.lowest,
         point.highest, *(point.interval or (None, None)))
        for curve in curves for point in curve.points
    ]  # fmt: skip
    return save_figure(stem, (_WIDTH, 0.5 + 3.2 * len(shown)), paint, columns, rows)


def learning_figure(losses: Mapping[str, Curve], eval_losses: Mapping[str, Curve], stem: Path) -> list[Path]:
    """Draw the training loss of each sub-model, and its validation loss where there is one.

    Args:
        losses: By sub-model, pairs of step and training loss (mean over the steps since the pair before).
        eval_losses: By sub-model, pairs of step and validation loss; may be empty.
        stem: Where to write, without a suffix.

    Returns:
        The files: PNG, SVG and CSV.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (name, curve) in enumerate(losses.items()):
            colour = COLOURS[place % len(COLOURS)]
            marker = "." if len(curve) < _SPARSE else ""
            (drawn,) = axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1, marker=marker, label=label(name))
            hint(drawn, f"{name}: training loss")
            if eval_losses.get(name):
                steps, values = zip(*eval_losses[name], strict=True)
                (drawn,) = axes.plot(steps, values, color=colour, marker="o", markersize=4, linestyle="--", linewidth=1)
                hint(drawn, f"{name}: validation loss")
        validated = any(eval_losses.values())
        axes.set_title("Loss along the training, by order" + " (dashed: validation)" * validated, loc="left")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats per token)")
        axes.set_yscale("log")
        scale_by_powers(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(losses) <= len(COLOURS):
            axes.legend()

    kinds = {"train": losses, "validation": eval_losses}
    rows = [
        (name, kind, step, loss)
        for kind, curves in kinds.items()
        for name, curve in curves.items()
        for step, loss in curve
    ]
    return save_figure(stem, (_WIDTH, 3.6), paint, ("model", "data", "step", "loss"), rows)
