"""Tables: in a terminal or a pipe, with nothing cut, and in Markdown."""

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import IO, TYPE_CHECKING

from ordermerge.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

UNLIMITED = 10_000
_HYPHEN = re.compile(r"(?<![^\s(])-(?=[.\d])")  # before a number: a minus sign
_NUMBER = re.compile(r"[(<+\N{MINUS SIGN}]?[.\d]")
# What Markdown takes for more than itself; an underscore within a word is none of it.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def markdown_text(text: str) -> str:
    """Return a text, such as a task's name, that Markdown shows as it is, in one line and within a table's cell.

    Args:
        text: The text.
    """
    return _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split())))


def with_minus(text: str) -> str:
    """Return a text whose negative numbers have a minus sign, which is as wide as a plus, in place of a hyphen.

    Args:
        text: The text.
    """
    return _HYPHEN.sub("\N{MINUS SIGN}", text)


def markdown_rows(
    header: Sequence[str], lines: Iterable[Sequence[str]], marked: Collection[tuple[int, int]] = ()
) -> str:
    """Return a table in Markdown; columns of numbers are right-aligned.

    Args:
        header: The columns' titles.
        lines: The cells.
        marked: Line and column of each cell to show in bold type.
    """
    cells = [[with_minus(cell) for cell in line] for line in lines]
    numbers = [column > 0 and _is_numbers([line[column] for line in cells]) for column in range(len(header))]
    rule = ["---:" if right else "---" for right in numbers]
    texts = [[markdown_text(cell) for cell in line] for line in (header, *cells)]
    for line, column in marked:
        texts[1 + line][column] = f"**{texts[1 + line][column]}**"
    return "\n".join("| " + " | ".join(line) + " |" for line in (texts[0], rule, *texts[1:]))


def _is_numbers(cells: Sequence[str]) -> bool:
    found = [cell for cell in cells if cell]
    return bool(found) and all(map(_NUMBER.match, found))


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
