"""Records from files, exactly as they are written there.

JSON and CSV are read by the standard library: table readers guess types, and would turn the text "007" into 7, "NA"
into nothing and "2020-01-01" into a time.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Read the records of a data file.

    Args:
        path: A file of one of `experiment.DATA_SUFFIXES`; `.json` may hold one list of records, or JSON lines.

    Returns:
        The records in the file's order; record i is row i wherever rows are named.

    Raises:
        UserError: If the file cannot be read, is not of its form, or holds no record.
    """
    try:
        records = _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not records:
        raise UserError(f"{path}: holds no records; training needs at least one")
    return records


def require_mappings(records: Iterable[Any], where: object) -> list[Record]:
    """Return the records as a list, having checked that each is a mapping from field to value.

    Args:
        records: What was read.
        where: The source, for the message.

    Raises:
        UserError: If a record is something else; the message names the first.
    """
    checked = list(records)
    for row, record in enumerate(checked):
        if not isinstance(record, dict):
            raise UserError(
                f"{where}: record {row} must be an object with named fields; "
                f"got {type(record).__name__} {_short(record)}"
            )
    return checked


def _read_json(path: Path) -> list[Record]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        # Files of JSON lines are often named `.json` too.
        first_line = text.lstrip().split("\n", 1)[0]
        if first_line.startswith("{") and _is_json(first_line):
            return _parse_lines(text.split("\n"), path)
        raise UserError(f"{path}: not valid JSON: line {error.lineno} column {error.colno}: {error.msg}") from None
    if isinstance(content, dict):
        if any(isinstance(value, list | dict) for value in content.values()):
            raise UserError(f"{path}: must be a list of records; got one object with keys {', '.join(content)}")
        content = [content]
    if not isinstance(content, list):
        raise UserError(f"{path}: must be a list of records; got {type(content).__name__}")
    return require_mappings(content, path)


def _read_lines(path: Path) -> list[Record]:
    return _parse_lines(path.read_text(encoding="utf-8-sig").split("\n"), path)


def _parse_lines(lines: Sequence[str], path: Path) -> list[Record]:
    """Parse JSON lines; splitting is left to the caller, as `splitlines` also splits inside JSON strings."""
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}: line {number} is not valid JSON ({error.msg} at column {error.colno}): {_short(line)}"
                ) from None
    return require_mappings(records, path)


def _read_csv(path: Path) -> list[Record]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            records = list(reader)
        except csv.Error as error:
            raise UserError(f"{path}: not valid CSV near line {reader.line_num}: {error}") from None
    for row, record in enumerate(records):
        if None in record or None in record.values():
            raise UserError(
                f"{path}: record {row} has more or fewer values than the header's {len(reader.fieldnames or ())}; "
                "quote values that hold commas or line breaks"
            )
    return records


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a valid parquet file: {error}") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _short(value: Any) -> str:
    text = str(value).strip()
    return text if len(text) <= 60 else text[:57] + "..."


_READERS = {".json": _read_json, ".jsonl": _read_lines, ".parquet": _read_parquet, ".csv": _read_csv}
