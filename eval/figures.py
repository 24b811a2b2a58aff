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

from ordermerge import __version__
from ordermerge.errors import printable, shortened
from ordermerge.files import fingerprint, write_bytes, write_text

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
    "text.parse_math": False,  # `$` in a name is a dollar
    "svg.hashsalt": "ordermerge",
}
_DPI = 150
_PNG_END = b"IEND\xaeB`\x82"


def label(text: str, length: int = 32) -> str:
    """Return a name as a figure can show it: in one line, its middle left out where it is long.

    Args:
        text: The name.
        length: The most characters.
    """
    return shortened(printable(" ".join(text.split())), length)


def save_figure(
    stem: Path,
    size: tuple[float, float],
    paint: Callable[[Figure], None],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
) -> list[Path]:
    """Draw a figure and write STEM.png, STEM.svg and STEM.csv, each whole or not at all.

    What is there of the same data is kept: drawing takes seconds.

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
    data = _csv(columns, rows)
    made_of = f"{__version__} {fingerprint([data, size])}"
    if _is_drawn(files, made_of):
        return files
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        for file, metadata in zip(files, ({"Software": None}, {"Date": None, "Identifier": made_of}), strict=False):
            drawn = io.BytesIO()
            figure.savefig(drawn, format=file.suffix[1:], dpi=_DPI, metadata=metadata)
            write_bytes(file, drawn.getvalue())
    write_text(files[-1], data)
    return files


def _is_drawn(files: Sequence[Path], made_of: str) -> bool:
    """Return whether whole figures of these data are there."""
    try:
        picture, drawing = files[0].read_bytes(), files[1].read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    whole = picture.endswith(_PNG_END) and drawing.endswith("</svg>\n")
    return whole and made_of in drawing[:4000]


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all.

    Args:
        path: The file.
        columns: The column titles.
        rows: The lines; None is written as an empty cell.
    """
    write_text(path, _csv(columns, rows))


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([_as_text(cell) for cell in row] for row in rows)])
    return text.getvalue()


def _as_text(cell: Any) -> Any:
    """Return a cell of text so that a spreadsheet does not take it for a formula and carry it out."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
