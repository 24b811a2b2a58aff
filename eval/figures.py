"""One look for all figures, and one way to save them: PNG, SVG, and the data drawn as CSV, side by side.

The bytes are reproducible: no dates, and fixed ids in the SVG.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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
_NAMED = 3  # of the names of one curve
_FEW = 4  # highest over lowest value: below that, round values are even steps
_Values = TypeVar("_Values")
_PNG_END = b"IEND\xaeB`\x82"
_HINT = "hint: "  # begins the ids of what has one, between matplotlib's SVG and ours


def label(text: str, length: int = 32) -> str:
    """Return a name as a figure can show it: in one line, its middle left out where it is long.

    Args:
        text: The name.
        length: The most characters.
    """
    return shortened(printable(" ".join(text.split())), length)


def join_equal(series: Mapping[str, _Values], key: Callable[[_Values], object] = repr) -> dict[str, _Values]:
    """Return series with equal ones as one, under all their names, a line each: no curve is drawn and named twice.

    Args:
        series: By name.
        key: Returns something with a `repr` that equal series share.
    """
    names: dict[str, list[str]] = {}
    for name, values in series.items():
        names.setdefault(repr(key(values)), []).append(name)
    found = {}
    for same in names.values():
        more = [f"and {len(same) - _NAMED} more"] if len(same) > _NAMED else []
        found["\n".join([*(f"{label(name)}," for name in same[:_NAMED]), *more]).rstrip(",")] = series[same[0]]
    return found


def hint(drawn: Artist, text: str) -> None:
    """Give a point or a curve a text that browsers show where the pointer is over it, in SVG.

    Args:
        drawn: The point or curve.
        text: What is shown.
    """
    drawn.set_gid(_HINT + " ".join(printable(text).split()))


def scale_by_powers(axis: Axis) -> None:
    """Give a logarithmic axis round, plainly written values that do not touch each other.

    Args:
        axis: The axis; what it shows is drawn already.
    """
    low, high = axis.get_view_interval()
    decades = high / low
    axis.set_major_locator(MaxNLocator(5) if decades < _FEW else LogLocator(subs=(1, 2, 5) if decades < 1000 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


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
            write_bytes(file, drawn.getvalue() if file.suffix != ".svg" else _with_hints(drawn.getvalue()))
    write_text(files[-1], data)
    return files


def _with_hints(drawing: bytes) -> bytes:
    """Return an SVG whose hints are titles of their groups, as browsers know them."""
    return re.sub(rf"<g id=([\"']){_HINT}(.*?)\1>".encode(), rb"<g><title>\2</title>", drawing)


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
