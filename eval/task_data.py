"""What the task files in `task_pack/` call: the reader of the user's own data, and the scores of a completion.

They name these functions by this module's import name, so that a copy of a task file works wherever it lies.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.errors import UserError, quoted
from ordermerge.records import read_records
from ordermerge.sandbox import render_fields

if TYPE_CHECKING:
    from datasets import Dataset

PACK = Path(__file__).resolve().parent / "task_pack"


def load(
    *, data_files: Any = None, fields: Mapping[str, str] | None = None, config_source: str = "", **_metadata: Any
) -> dict[str, "Dataset"]:
    """Read a task's data: the `custom_dataset` of a task file.

    Files are read as for training, every value as it is written: table readers guess types.

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
    if not data_files:
        raise UserError("no data: give `data_files`, under `dataset_kwargs` in the task file or by `--metadata`")
    splits = data_files if isinstance(data_files, Mapping) else {"test": data_files}
    loaded = {}
    for split, files in splits.items():
        paths = located(files, config_source)
        records = [record for path in paths for record in _with_fields(read_records(path), fields or {}, path)]
        loaded[split] = _to_dataset(records)
    return loaded


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


def _to_dataset(records: Sequence[Mapping[str, Any]]) -> "Dataset":
    """Return a table that gives each value back as it is: one inferred would have the first record's fields and types.

    Args:
        records: The records; a field that one lacks is None there.
    """
    from datasets import Dataset, Features

    columns = {
        name: [record.get(name) for record in records]
        for name in dict.fromkeys(name for record in records for name in record)
    }
    features = {name: _feature(column) for name, column in columns.items()}
    for name, feature in features.items():
        if type(feature).__name__ == "Json":  # which takes a text that is JSON, such as "007", for what it stands for
            columns[name] = [None if value is None else json.dumps(value) for value in columns[name]]
    return Dataset.from_dict(columns, features=Features(features))


def _feature(column: Sequence[Any]) -> Any:
    from datasets import Json, List, Value

    kinds = {type(value) for value in column if value is not None}
    if kinds == {list} and all(isinstance(item, str) for value in column for item in value or ()):
        return List(Value("string"))
    small = kinds != {int} or all(abs(value) < 2**63 for value in column if value is not None)
    return Value(_PLAIN[kinds.pop()]) if len(kinds) == 1 and small and kinds <= _PLAIN.keys() else Json()


_PLAIN = {str: "string", bool: "bool", int: "int64", float: "float64"}


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
