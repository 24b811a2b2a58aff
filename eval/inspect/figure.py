"""The heat map of `ordermerge inspect`: layers downwards, the tensors of a layer across."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ordermerge.eval.figures import SEQUENTIAL, save_figure
from ordermerge.eval.inspect.summary import split_name
from ordermerge.eval.inspect.tables import short_names

_WHOLE = "all"  # the first column: the layer as a whole
_ROW, _COLUMN, _TALLEST = 0.24, 0.55, 10.0  # inches
_LEAST_SPAN = 0.05  # of a scale, before it is scaled: one of less would make much of nothing
_MOST_LABELS = 40  # of layers; with more, every n-th is named
Grid = dict[tuple[str, str], dict[str, float | None]]


def draw_heat_map(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw the share of unchanged values and the mean cosine, by layer and tensor; write PNG, SVG and CSV.

    Args:
        found: What `inspect.json` holds.
        stem: Where to write, without a suffix.

    Returns:
        The files.
    """
    grid = _grid(found)
    rows, columns = list(found["layers"]), list(dict.fromkeys(column for _, column in grid))
    panels = {"Values unchanged (%)": ("unchanged", 100.0)}
    if len(found["models"]) > 1:
        panels["Mean cosine of task vectors"] = ("cosine", 1.0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (title, (key, scale)) in zip(axes, panels.items(), strict=True):
            values = [[_scaled(grid.get((row, column), {}).get(key), scale) for column in columns] for row in rows]
            _paint_panel(figure, axis, np.array(values), title, _LEAST_SPAN * scale)
            axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
        short = short_names(rows)
        step = -(-len(rows) // _MOST_LABELS)
        axes[0].set_yticks(range(0, len(rows), step), [short[row] for row in rows[::step]])

    size = (2.2 + len(panels) * max(2.2, _COLUMN * len(columns) + 0.8), 1.8 + min(_ROW * len(rows), _TALLEST))
    lines = [(row, column, cell["unchanged"], cell["cosine"]) for (row, column), cell in grid.items()]
    return save_figure(stem, size, paint, ["layer", "tensor", "unchanged", "mean_cosine"], lines)


def _grid(found: Mapping[str, Any]) -> Grid:
    """Return share and cosine of each cell; a tensor outside the layers has only the first column."""
    cells = {(layer, _WHOLE): [summary] for layer, summary in found["layers"].items()}
    for name, summary in found["tensors"].items():
        layer, kind = split_name(name)
        if kind:  # numbered parts (a layer's experts) share a column
            cells.setdefault((layer, re.sub(r"\.\d+\.", ".*.", kind)), []).append(summary)
    return {place: _cell(summaries) for place, summaries in cells.items()}


def _cell(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the means over tensors, weighted by their values."""
    cosines = [(s["values"], s["cosine"]["mean"]) for s in summaries if s["cosine"] and s["cosine"]["mean"] is not None]
    return {"unchanged": _mean([(s["values"], s["unchanged"]) for s in summaries]), "cosine": _mean(cosines)}


def _mean(weighted: Sequence[tuple[int, float]]) -> float | None:
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else None


def _scaled(value: float | None, scale: float) -> float:
    return np.nan if value is None else value * scale


def _paint_panel(figure: Figure, axis: Axes, values: np.ndarray, title: str, least: float) -> None:
    """Draw a panel; its scale fits the values, but spans at least so much, and begins at 0 or above where they do."""
    known = values[np.isfinite(values)]
    lowest, highest = (known.min(), known.max()) if known.size else (0.0, 0.0)
    low = min(lowest, max(highest - least, 0.0))
    high = max(highest, low + least)
    image = axis.imshow(values, cmap=SEQUENTIAL, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
    axis.axvline(0.5, color="white", linewidth=4)  # between the layer as a whole and its tensors
    axis.set_title(title)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axis, shrink=0.9)
