"""One look for all figures, and one way to save them: PNG, SVG, and the data drawn as CSV, side by side.

The bytes are reproducible: no dates, and fixed ids in the SVG.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ordermerge.files import write_bytes, write_text

# Okabe and Ito's colours, which people without full colour vision tell apart; yellow is left out: too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SEQUENTIAL = "cividis"  # ordered by lightness, and made for all kinds of colour vision
STYLE: Any = {  # matplotlib wants each name as a literal type
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "ordermerge",
}
_DPI = 150


def save_figure(
    stem: Path,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> list[Path]:
    """Draw a figure and write STEM.png, STEM.svg and STEM.csv, each whole or not at all.

    Args:
        stem: Where to write, without a suffix.
        size: Width and height in inches.
        paint: Draws on the empty figure that it is given.
        columns: The CSV's column titles.
        rows: What is drawn, as the CSV's lines; None is written as an empty cell.

    Returns:
        The files.
    """
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "svg", "csv")]
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        for file, metadata in zip(files, ({"Software": None}, {"Date": None}), strict=False):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=file.suffix[1:], dpi=_DPI, metadata=metadata)
            write_bytes(file, drawn.getvalue())
    write_csv(files[-1], columns, rows)
    return files


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all.

    Args:
        path: The file.
        columns: The column titles.
        rows: The lines; None is written as an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    write_text(path, text.getvalue())
