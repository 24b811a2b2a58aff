"""Records from files, exactly as they are written there, for training and evaluation alike.

JSON and CSV are read by the standard library: table readers guess types, and would turn the text "007" into 7, "NA"
into nothing and "2020-01-01" into a time.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError, counted

Record = dict[str, Any]
_MOST_UNPACKED, _MOST_RATIO = 50_000_000, 50  # bytes that any parquet file may hold, and for each of its own bytes
_ROWS = 1000  # of a parquet file that are read at once
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_records(path: Path) -> list[Record]:
    """Read the records of a data file.

    Args:
        path: A .json (a list of records, one record, or JSON lines), .jsonl, .csv, .parquet or .txt file; a text is
            one record with the field `text`.

    Returns:
        The records in the file's order; record i is row i wherever rows are named. A NaN that JSON or parquet holds is
        kept: whoever fills it into a text refuses it.

    Raises:
        UserError: If the file cannot be read, is not of its form, or holds no record.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path}: must be a {', '.join(_READERS)} file")
    try:
        records = read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (looked in {path.absolute().parent})") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON: nested without end") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not records:
        raise UserError(f"{path}: holds no records; give at least one")
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
        content = _parse(text)
    except ValueError as error:
        # Files of JSON lines are often named `.json` too.
        first_line = text.lstrip().split("\n", 1)[0]
        if first_line.startswith("{") and _is_json(first_line):
            return _parse_lines(text.split("\n"), path)
        place = f"line {error.lineno} column {error.colno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}: not valid JSON: {place}{_reason(error)}") from None
    if isinstance(content, dict):
        if len(content) == 1 and _holds_records(next(iter(content.values()))):
            raise UserError(f"{path}: must be a list of records; got one object with key {next(iter(content))}")
        content = [content]
    if not isinstance(content, list):
        raise UserError(f"{path}: must be a list of records; got {type(content).__name__}")
    return require_mappings(content, path)


def _holds_records(value: Any) -> bool:
    """Return whether a value is a list of records, as in `{"data": [...]}`, and no chat."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and not item.keys() & {"role", "from"} for item in value
    )


def _read_lines(path: Path) -> list[Record]:
    return _parse_lines(path.read_text(encoding="utf-8-sig").split("\n"), path)


def _parse_lines(lines: Sequence[str], path: Path) -> list[Record]:
    """Parse JSON lines; splitting is left to the caller, as `splitlines` also splits inside JSON strings."""
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append(_parse(line))
            except ValueError as error:
                place = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise UserError(
                    f"{path}: line {number} is not valid JSON ({_reason(error)}{place}): {_short(line)}"
                ) from None
    return require_mappings(records, path)


def _parse(text: str) -> Any:
    content = json.loads(text)
    if _HALF_CHARACTER.search(text):  # a pair of halves is one character; a lone half is none, and cannot be written
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "half a character, such as \\ud83d without its other half"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _read_csv(path: Path) -> list[Record]:
    with open(path, encoding="utf-8-sig", newline="") as file, _long_fields():
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if twice := [name for name in header if header.count(name) > 1]:
                raise UserError(f"{path}: column {twice[0]!r} stands twice in the header; rename one")
            records: list[Record] = []
            start = reader.line_num
            for row in reader:
                start, line = reader.line_num, start + 1
                if row and len(row) != len(header):
                    raise UserError(
                        f"{path}: line {line} (record {len(records)}) has {counted(len(row), 'value')} where the "
                        f"header has {len(header)}; quote values that hold commas or line breaks"
                    )
                records += [dict(zip(header, row, strict=True))] if row else []
        except csv.Error as error:
            raise UserError(f"{path}: not valid CSV near line {reader.line_num}: {error}") from None
    return records


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module, whose limit is one for the process, read fields of any length for a while."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> list[Record]:
    import pyarrow
    from pyarrow import parquet

    records: list[Record] = []
    most, unpacked = _MOST_UNPACKED + _MOST_RATIO * path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                if (unpacked := unpacked + batch.nbytes) > most:
                    raise UserError(f"{path}: unpacks to more than {most / 1e6:.0f} MB, as no data does; save it anew")
                records += batch.to_pylist()
        return records
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a valid parquet file: {error}") from None


def _read_text(path: Path) -> list[Record]:
    return [{"text": path.read_text(encoding="utf-8-sig")}]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _short(value: Any) -> str:
    text = str(value).strip()
    return text if len(text) <= 60 else text[:57] + "..."


_READERS = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
