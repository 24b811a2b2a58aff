"""The paper's figures 1, 3 and 4, drawn: losses along the positions of an order, and along the training steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ordermerge.eval.figures import COLOURS, join_equal, save_figure
from ordermerge.eval.imbalance.curves import Curve
from ordermerge.run_directory import order_name

_SIZE = (5.2, 6.2)
_GREY = "#999999"
_BEFORE_MERGES = 2  # the anchor and the other orders come first: a merge has one colour in all figures
_STYLES = ("-", "--", ":", "-.")
_COLUMNS = ("panel", "series", "position", "value", "low", "high")


def position_figure(stem: Path, epoch: str, orders: Sequence[Curve], pooled: Curve, effect: Curve) -> list[Path]:
    """Draw figure 1: losses against the position in an epoch, plain and by the within-sample contrast.

    Args:
        stem: Where to write, without a suffix.
        epoch: "first" or "last".
        orders: Mean loss of each order.
        pooled: Mean loss of all orders.
        effect: Of log loss, from `contrast_curve`.
    """

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, sharex=True)
        for number, curve in enumerate(orders):
            above.plot(curve.centre, curve.mean, color=_GREY, linewidth=0.8, label="each order" if not number else None)
        _line(above, pooled, COLOURS[0], label="all orders, 95 % band")
        above.set(title="Mean loss of the samples, by when they were met", ylabel="loss (nats per token)")
        _legend(above)
        _line(below, _percent(effect), COLOURS[1])
        below.axhline(0, color=_GREY, linewidth=0.8)
        below.set(
            title="Loss of the same sample, met here rather than elsewhere",
            ylabel="change of loss (%)",
            xlabel=f"position in the {epoch} epoch (0 first, 1 last)",
            xlim=(0, 1),
        )

    series = {order_name(number): curve for number, curve in enumerate(orders)} | {"all orders": pooled}
    return save_figure(
        stem, _SIZE, paint, _COLUMNS, _rows({"loss": series, "change of loss, %": {"": _percent(effect)}})
    )


def anchor_figure(stem: Path, epoch: str, losses: Mapping[str, Curve], relative: Mapping[str, Curve]) -> list[Path]:
    """Draw figure 3: the anchor model, the other orders and the merged models, by the anchor's positions.

    Args:
        stem: Where to write, without a suffix.
        epoch: "first" or "last".
        losses: Mean loss of each, by name.
        relative: Log loss less that of the other orders, by name; the other orders are not in it.
    """
    names = join_equal({name: name for name in losses}, lambda name: losses[name].mean.tolist())
    look = {name: _look(i) for i, name in enumerate(names.values())}

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, sharex=True)
        for title, name in names.items():
            above.plot(losses[name].centre, losses[name].mean, label=title, **look[name])
        above.set(title="Mean loss of the samples, by when one order met them", ylabel="loss (nats per token)")
        below.axhline(0, color=_GREY, linewidth=0.8)
        for name in [name for name in look if name in relative]:
            _line(below, _percent(relative[name]), look[name]["color"], linestyle=look[name]["linestyle"])
        below.set(
            title="Loss of the same samples, against the other orders",
            ylabel="difference of loss (%)",
            xlabel=f"position in the anchor's {epoch} epoch (0 first, 1 last)",
            xlim=(0, 1),
        )
        figure.legend(loc="outside lower center", ncols=2)

    changes = {name: _percent(curve) for name, curve in relative.items()}
    size = (_SIZE[0], _SIZE[1] + 0.25 * (len(losses) + 1) // 2)
    return save_figure(stem, size, paint, _COLUMNS, _rows({"loss": losses, "difference of loss, %": changes}))


def steps_figure(stem: Path, losses: Mapping[int, Mapping[str, float]]) -> list[Path]:
    """Draw figure 4: mean validation loss along the training steps.

    Args:
        stem: Where to write, without a suffix.
        losses: For each step, the loss of each model then; sub-models are named "order_K", all others are merges.
    """
    names = list(dict.fromkeys(name for values in losses.values() for name in values))
    singles = [name for name in names if name.startswith("order_")]
    merges = [name for name in names if name not in singles]
    series = {name: [values[name] for values in losses.values()] for name in names}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for i, name in enumerate(singles):
            label = f"{singles[0]} to {singles[-1]}" if i == 0 else None
            axes.plot(list(losses), series[name], color=_GREY, linewidth=0.8, marker=".", label=label)
        for i, (name, values) in enumerate(join_equal({name: series[name] for name in merges}).items()):
            axes.plot(list(losses), values, marker=".", label=name, **_look(i + _BEFORE_MERGES))
        axes.set(
            title="Validation loss along the training",
            xlabel="optimizer step",
            ylabel="validation loss (nats per token)",
        )
        figure.legend(loc="outside lower center", ncols=2)

    rows = [(name, step, values[name]) for name in names for step, values in losses.items()]
    size = (_SIZE[0], 3.6 + 0.25 * (len(merges) + 2) // 2)
    return save_figure(stem, size, paint, ("model", "step", "loss"), rows)


def _look(number: int) -> dict[str, Any]:
    """Return colour and line style of a series; with the colours used up, the style changes."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _STYLES[number // len(COLOURS) % len(_STYLES)]}


def _line(axes: Axes, curve: Curve, colour: str, *, label: str | None = None, linestyle: str = "-") -> None:
    axes.plot(curve.centre, curve.mean, color=colour, label=label, linestyle=linestyle)
    axes.fill_between(curve.centre, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)


def _legend(axes: Axes) -> None:
    """Put the legend above the lines rather than over them."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))
    axes.legend(loc="upper center", ncols=2)


def _percent(curve: Curve) -> Curve:
    """Return the change in per cent that a difference of log losses is."""
    return Curve(curve.centre, *(100 * np.expm1(values) for values in (curve.mean, curve.low, curve.high)))


def _rows(panels: Mapping[str, Mapping[str, Curve]]) -> list[tuple[object, ...]]:
    return [
        (panel, name, *(float(value) for value in values))
        for panel, series in panels.items()
        for name, curve in series.items()
        for values in zip(curve.centre, curve.mean, curve.low, curve.high, strict=True)
    ]
