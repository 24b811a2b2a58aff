"""What the task files in `task_pack/` call: the reader of the user's own data, and the scores of a completion.

They name these functions by this module's import name, so that a copy of a task file works wherever it lies.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.errors import UserError, quoted
from ordermerge.sandbox import render_fields

if TYPE_CHECKING:
    from datasets import Dataset

PACK = Path(__file__).resolve().parent / "task_pack"


def load(
    *, data_files: Any = None, fields: Mapping[str, str] | None = None, config_source: str = "", **_metadata: Any
) -> dict[str, "Dataset"]:
    """Read a task's data: the `custom_dataset` of a task file.

    JSON and CSV are read by the standard library, as for training: table readers guess types, and would turn the text
    "007" into 7 and "2020-01-01" into a time.

    Args:
        data_files: File or files of the split `test`, or a mapping from split to files; relative to the task file, else
            to the working directory. A .txt file is one record with the field `text`.
        fields: Jinja templates over a record's fields, by the name of the field that each one adds or replaces.
        config_source: The task file; lm-eval fills it in.
        _metadata: What else the task's `metadata` holds: lm-eval passes all of it.

    Returns:
        The records of each split.

    Raises:
        UserError: If no file is given; if one is missing, damaged, empty or of another kind; if a template names a
            field that a record does not have.
    """
    from datasets import Dataset

    if not data_files:
        raise UserError("no data: give `data_files`, under `dataset_kwargs` in the task file or by `--metadata`")
    splits = data_files if isinstance(data_files, Mapping) else {"test": data_files}
    return {
        split: Dataset.from_list(
            [
                record
                for path in located(files, config_source)
                for record in _with_fields(read(path), fields or {}, path)
            ]
        )
        for split, files in splits.items()
    }


def located(data_files: Any, config_source: str | Path) -> list[Path]:
    """Return the files of a `data_files` entry: beside the task file where they are there, else as they are named.

    Args:
        data_files: As `load` takes it.
        config_source: The task file.
    """
    if isinstance(data_files, str | Path):
        beside = Path(config_source).parent / data_files
        return [beside if beside.is_file() else Path(data_files)]
    parts = data_files.values() if isinstance(data_files, Mapping) else data_files or ()
    return [path for part in parts for path in located(part, config_source)]


def read(path: Path) -> list[dict[str, Any]]:
    """Read the records of one file.

    Args:
        path: A .json (a list of records, or JSON lines), .jsonl, .csv, .parquet or .txt file.

    Raises:
        UserError: If it is missing, damaged, empty or of another kind.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{path}: must be a {', '.join(_READERS)} file")
    try:
        records = _READERS[path.suffix](path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (looked in {path.absolute().parent})") from None
    except (OSError, ValueError) as error:  # of JSON, of UTF-8, of parquet
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path}: must hold records, objects with named fields")
    if not records:
        raise UserError(f"{path}: holds no records")
    return records


def completion_scores(doc: Mapping[str, Any], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """Return the scores of one completion: the `process_results` of a task file.

    Args:
        doc: A record with the field `completion`.
        results: lm-eval's log-likelihood of the completion, in nats, and whether it is what greedy decoding gives.

    Returns:
        Values of the metrics `loglikelihood`, `bits_per_byte` and `byte_perplexity`; of the last two a pair with the
        completion's length in bytes, which lm-eval's aggregations add up.
    """
    ((loglikelihood, _greedy),) = results
    size = len(doc["completion"].encode())
    return {
        "loglikelihood": loglikelihood,
        "bits_per_byte": (loglikelihood, size),
        "byte_perplexity": (loglikelihood, size),
    }


def _with_fields(records: list[dict[str, Any]], fields: Mapping[str, str], path: Path) -> list[dict[str, Any]]:
    if not fields:
        return records
    if not isinstance(fields, Mapping) or not all(isinstance(text, str) for text in fields.values()):
        raise UserError(f"`fields` must map each field's name to its template; got {quoted(fields)}")
    try:
        made = render_fields(fields, records)
    except UserError as error:
        raise UserError(f"{path}: `fields`: {error}") from None
    return [{**record, **new} for record, new in zip(records, made, strict=True)]


def _read_json(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.lstrip().startswith("["):
            raise
        return _parse_lines(text)  # often named .json too


def _parse_lines(text: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not valid JSON ({error.msg} at column {error.colno})") from None
    return records


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


_READERS = {
    ".jsonl": lambda path: _parse_lines(path.read_text(encoding="utf-8-sig")),
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": lambda path: [{"text": path.read_text(encoding="utf-8")}],
}
