"""From lm-eval's results to one table: models as lines, tasks and metrics as columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ordermerge.eval.tables import markdown_rows, markdown_text, print_columns

ARROWS = {True: " ↑", False: " ↓", None: ""}
NO_FILTER = "none"
BEST = "Bold: the best score of its column, which by itself does not say that others are worse."


@dataclass(frozen=True)
class Row:
    """One score.

    Attributes:
        model: The model's name in tables.
        task: Task or group of tasks.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers, "none" where there is none.
        value: The score.
        stderr: Its standard error, None where lm-eval gives none.
        higher_is_better: None where the task does not say.
        n: Documents scored.
        limit: lm-eval's `limit`; None means the whole task.
    """

    model: str
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    n: int | None
    limit: float | None = None


def result_rows(results: Mapping[str, Any], model: str) -> list[Row]:
    """Return the scores in one of lm-eval's results, of tasks and of groups that have a score of their own.

    Args:
        results: What `simple_evaluate` returns, or its results file.
        model: The model's name in tables.

    Returns:
        The rows, in the results' order.
    """
    limit = _number(results.get("config", {}).get("limit"))
    rows = []
    for task, scores in results["results"].items():
        directions = results.get("higher_is_better", {}).get(task) or {}
        for key, score in scores.items():
            metric, comma, filter_name = key.partition(",")
            value = _number(score)
            if not comma or metric.endswith("_stderr") or value is None:
                continue  # "alias", "sample_len" and other notes have no comma
            stderr = _number(scores.get(f"{metric}_stderr,{filter_name}"))
            n = _number((scores.get("sample_count") or {}).get(key, scores.get("sample_len")))
            count = None if n is None else int(n)
            rows.append(Row(model, task, metric, filter_name, value, stderr, directions.get(metric), count, limit))
    return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, with the best of several models' scores in bold type.

    Args:
        rows: Scores of any models and tasks.
    """
    header, lines = _layout(rows)
    best = _best_cells(rows, header, [line[0] for line in lines])
    table = markdown_rows(["model", *header], lines, best)
    return "\n\n".join([table, *map(markdown_text, [*notes(rows), *([BEST] if best else [])])]) + "\n"


def print_table(rows: Sequence[Row], file: IO[str] | None = None) -> None:
    """Print the table; nothing is cut, in a terminal or in a pipe.

    Args:
        rows: Scores of any models and tasks; nothing is printed of none.
        file: Where to print; standard output if not given.
    """
    if not rows:
        return
    header, lines = _layout(rows)
    print_columns(["model", *header], lines, notes(rows), file)


def limit_note(limit: float, models: Iterable[str] = ()) -> str:
    """Return the line that marks scores made with lm-eval's `limit`.

    Args:
        limit: The limit.
        models: The models scored with it; left out if it holds for all.
    """
    names = ", ".join(models)
    whose = f" ({names})" if names else ""
    return f"limit={limit:g}: NOT COMPARABLE SCORES, only a part of each task was scored{whose}."


def notes(rows: Iterable[Row]) -> list[str]:
    """Return the lines that belong beneath any display of these scores.

    Args:
        rows: The scores shown.
    """
    rows = list(rows)
    lines = ["± is lm-eval's standard error."] if any(row.stderr is not None for row in rows) else []
    models: dict[float, dict[str, None]] = {}
    for row in rows:
        if row.limit is not None:
            models.setdefault(row.limit, {})[row.model] = None
    for limit, names in models.items():
        lines.append(limit_note(limit, names))
    return lines


def _layout(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the column titles, and for each model its name and cells."""
    columns = list(dict.fromkeys(column_title(row) for row in rows))
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cells.setdefault(row.model, {})[column_title(row)] = score_cell(row)
    return columns, [[model, *(scores.get(title, "") for title in columns)] for model, scores in cells.items()]


def _best_cells(rows: Sequence[Row], header: Sequence[str], models: Sequence[str]) -> list[tuple[int, int]]:
    """Return line and column of the best score of each column that has several, of a known direction."""
    found = []
    for column, title in enumerate(header, start=1):
        scores = [row for row in rows if column_title(row) == title]
        if len(scores) > 1 and (higher := scores[0].higher_is_better) is not None:
            best = (max if higher else min)(row.value for row in scores)
            found += [(models.index(row.model), column) for row in scores if row.value == best]
    return found


def column_title(row: Row) -> str:
    """Return the title of a score's column: task, metric, filter, and an arrow to what is better.

    Args:
        row: The score.
    """
    filter_name = "" if row.filter == NO_FILTER else f" {row.filter}"
    return f"{row.task} {row.metric}{filter_name}{ARROWS[row.higher_is_better]}"


def score_cell(row: Row) -> str:
    """Return a score as tables show it, with its standard error where it has one.

    Args:
        row: The score.
    """
    return digits(row.value) + ("" if row.stderr is None else f" ± {digits(row.stderr)}")


def digits(value: float) -> str:
    """Return three decimals, or three digits where these would hide the value.

    Args:
        value: Any number.
    """
    return f"{value:.3f}" if value == 0 or 0.0005 <= abs(value) < 10_000 else f"{value:.3g}"


def _number(value: Any) -> float | None:
    """Return a plain float of a Python or numpy number, None of anything else ("N/A")."""
    if value is None or isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
