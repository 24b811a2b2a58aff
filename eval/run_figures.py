"""The figures of a run's report: what each merge gained, and how the sub-models learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ordermerge.eval.comparison.curve import Curve as OrdersCurve
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.comparison.table import REFERENCES
from ordermerge.eval.figures import COLOURS, label, save_figure
from ordermerge.eval.scoring.table import NO_FILTER

MOST_PANELS = 12  # as many as can be looked at; more would take minutes to draw
_WIDTH = 6.5
_MARKERS = ("o", "s", "D")
_EFFECT_COLUMNS = ("task", "metric", "filter", "model", "reference", "difference", "low", "high", "p_value_holm")
Curve = Sequence[tuple[int, float]]


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
    models = list(dict.fromkeys(one.model for one in report.comparisons))
    references = [name for name in REFERENCES if any(one.reference == name for one in report.comparisons)]

    def paint(figure: Figure) -> None:
        for axes, (key, found) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
            _paint_effects(axes, key, found, models, references)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", title="model less", alignment="left")

    height = 0.9 + len(panels) * (0.9 + 0.45 * len(models))
    rows = [[getattr(one, column) for column in _EFFECT_COLUMNS] for one in report.comparisons]
    return save_figure(stem, (_WIDTH, height), paint, _EFFECT_COLUMNS, rows)


def _clarity(one: Comparison) -> float:
    """Return a difference in units of half its interval."""
    half = (one.high - one.low) / 2
    return abs(one.difference) / half if half > 0 else float(one.difference != 0)


def _paint_effects(
    axes: Axes, key: tuple[str, str, str], found: list[Comparison], models: list[str], references: list[str]
) -> None:
    for place, reference in enumerate(references):
        chosen = [one for one in found if one.reference == reference]
        offset = 0.22 * (place - (len(references) - 1) / 2)
        axes.errorbar(
            [one.difference for one in chosen],
            [models.index(one.model) + offset for one in chosen],
            xerr=[
                [max(one.difference - one.low, 0) for one in chosen],
                [max(one.high - one.difference, 0) for one in chosen],
            ],
            fmt=_MARKERS[place],
            markersize=4.5,
            color=COLOURS[place],
            capsize=2,
            label=label(chosen[0].reference_models[0]) if reference == "model" else REFERENCES[reference],
        )
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.set_yticks(range(len(models)), [label(model) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    task, metric, filter_name = key
    direction = {True: " (right: better)", False: " (left: better)", None: ""}[found[0].higher_is_better]
    axes.set_xlabel(label(f"difference in {metric}{direction}", 60))
    axes.set_title(label(task if filter_name == NO_FILTER else f"{task}, {filter_name}", 60), loc="left")


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
            axes.set_title(label(curve.title, 60), loc="left")
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
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=1, label=name)
            if eval_losses.get(name):
                steps, values = zip(*eval_losses[name], strict=True)
                axes.plot(steps, values, color=colour, marker="o", markersize=4, linestyle="--", linewidth=1)
        axes.set_xlabel("step" + (" (dashed, dots: validation)" if any(eval_losses.values()) else ""))
        axes.set_ylabel("loss")
        axes.set_yscale("log")
        for part in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            part(lambda value, _: f"{value:g}")
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
