"""Tables: in a terminal or a pipe, with nothing cut, and in Markdown."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING

from ordermerge.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

UNLIMITED = 10_000
# What Markdown takes for more than itself; an underscore within a word is none of it.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def markdown_text(text: str) -> str:
    """Return a text, such as a task's name, that Markdown shows as it is, in one line and within a table's cell.

    Args:
        text: The text.
    """
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def markdown_rows(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
        header: The columns' titles.
        lines: The cells.
    """
    cells = [[markdown_text(cell) for cell in line] for line in (header, *lines)]
    cells.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def print_columns(
    header: Sequence[str], lines: Sequence[Sequence[str]], notes: Iterable[str] = (), file: IO[str] | None = None
) -> None:
    """Print a table; columns that a terminal has no room for go into further tables with the same first column.

    Args:
        header: The columns' titles.
        lines: The cells.
        notes: Lines to print beneath.
        file: Where to print; standard output if not given.
    """
    from rich.console import Console
    from rich.text import Text

    header, lines = [printable(title) for title in header], [[printable(cell) for cell in line] for line in lines]
    console = Console(file=file or sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = UNLIMITED  # rich takes a pipe to be 80 columns wide

    def fits(columns: Sequence[int], titles: Sequence[str]) -> bool:
        table = _rich_table(columns, titles, lines)
        return console.measure(table, options=console.options.update(width=UNLIMITED)).maximum <= console.width

    titles, tables = list(header), [list(range(len(header)))]
    if not fits(tables[0], titles):
        titles, tables = [_stacked(title) for title in header], [[0]]
        for column in range(1, len(header)):
            if len(tables[-1]) > 1 and not fits([*tables[-1], column], titles):
                tables.append([0])
            tables[-1].append(column)
    for columns in tables:
        console.print(_rich_table(columns, titles, lines))
    for note in notes:
        console.print(Text(printable(note)), soft_wrap=True)


def _stacked(title: str) -> str:
    """Return a title with one word a line; an arrow stays beside its word."""
    return title.replace(" ", "\n").replace("\n↑", " ↑").replace("\n↓", " ↓")


def _rich_table(columns: Sequence[int], titles: Sequence[str], lines: Sequence[Sequence[str]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(Text(titles[column]), overflow="fold", justify="right" if column else "left")
    for line in lines:
        table.add_row(*(Text(line[column]) for column in columns))
    return table
