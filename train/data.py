"""The training data: records made into samples, each with the row it came from."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from ordermerge.counter import random_words, stream_key
from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.sections import DataSection
from ordermerge.train.records import Record
from ordermerge.train.sources import check_data, load_records
from ordermerge.train.templates import Template

SAMPLE_ID = "sample_id"


@dataclass(frozen=True)
class Samples:
    """What one trains on.

    Attributes:
        train: Columns `prompt` and `completion` (or `messages`), and `sample_id`: the row of the data as loaded.
        validation: The same columns; its ids are rows of its own file, or of the training data it was held out from.
        empty: How many training samples have nothing to learn but the end: blank completion or last assistant turn.
        duplicates: How many training samples are exact copies of an earlier one; they are kept.
        fingerprint: SHA-256 (hex) of the training samples' content, ids included.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    empty: int
    duplicates: int
    fingerprint: str


def load_samples(experiment: Experiment) -> Samples:
    """Load the data and make each record a sample.

    Args:
        experiment: The experiment.

    Returns:
        The samples; a held-out fraction is drawn by `orders.seed` alone.

    Raises:
        UserError: If the data is missing, unreadable, empty, or a record does not fit the templates.
    """
    if problems := check_data(experiment):
        raise UserError(problems)
    data = experiment.data
    rows = _make_samples(data, load_records(experiment, "train"), data.train)
    held_out: list[int] = []
    validation = None
    if isinstance(data.validation, float):
        held_out = _hold_out(len(rows), data.validation, experiment.orders.seed)
        validation = _to_dataset([rows[i] for i in held_out], held_out)
    elif data.has_validation:
        other = _make_samples(data, load_records(experiment, "validation"), data.validation or data.train)
        validation = _to_dataset(other, list(range(len(other))))
    ids = sorted(set(range(len(rows))).difference(held_out))
    rows = [rows[i] for i in ids]
    duplicates = len(rows) - len(set(map(_canonical, rows)))
    return Samples(_to_dataset(rows, ids), validation, sum(map(_is_empty, rows)), duplicates, _fingerprint(rows, ids))


def _make_samples(data: DataSection, records: Sequence[Record], source: str) -> list[Record]:
    """Return `prompt` and `completion`, or `messages`, of each record."""
    make = _sample_maker(data)
    samples, problems = [], []
    for row, record in enumerate(records):
        try:
            samples.append(make(record, f"{source}: record {row}"))
        except UserError as error:
            problems += error.problems
    if problems:
        others = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise UserError(problems[0] + others)
    return samples


def _sample_maker(data: DataSection) -> Callable[[Record, str], Record]:
    """Return what makes a sample of a record and its place."""
    if (field := data.messages) is not None:
        return lambda record, where: {"messages": _messages(record, field, where)}
    templates = {name: Template.parse(f"data.{name}", getattr(data, name)) for name in ("prompt", "completion")}
    return lambda record, where: {name: template.fill(record, where) for name, template in templates.items()}


def _messages(record: Record, field: str, where: str) -> list[Record]:
    """Return a record's chat, having checked its form."""
    if field not in record:
        raise UserError(f"{where} has no field `{field}`, which `data.messages` names (known: {', '.join(record)})")
    messages = record[field]
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: field `{field}` must be a list of chat messages; "
            f"got {type(messages).__name__} {str(messages)[:60]}"
        )
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(
                f"{where}: each message in `{field}` must be an object with `role` and `content`; "
                f"got {str(message)[:60]}"
            )
    return messages


def _hold_out(rows: int, fraction: float, seed: int) -> list[int]:
    """Draw the rows of a validation set; at least one row goes to either side."""
    if rows < 2:
        raise UserError(f"`data.validation`: cannot hold out {fraction} of {rows} record; name a validation file")
    held_out = min(max(round(rows * fraction), 1), rows - 1)
    words = random_words(stream_key("validation", seed), 0, rows)
    return sorted(torch.argsort(words, stable=True)[:held_out].tolist())


def _to_dataset(rows: Sequence[Record], ids: Sequence[int]) -> datasets.Dataset:
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    return datasets.Dataset.from_dict({**columns, SAMPLE_ID: list(ids)})


def _is_empty(sample: Record) -> bool:
    if "messages" not in sample:
        return not sample["completion"].strip()
    answers = [message["content"] for message in sample["messages"] if message["role"] == "assistant"]
    return not answers or not str(answers[-1] or "").strip()


def _fingerprint(rows: Sequence[Record], ids: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for row, sample_id in zip(rows, ids, strict=True):
        digest.update(f"[{sample_id}, {_canonical(row)}]\n".encode())
    return digest.hexdigest()


def _canonical(row: Record) -> str:
    return json.dumps(row, sort_keys=True, default=str)
