"""The training data: records made into samples, each with the row it came from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch

from ordermerge.counter import random_words, stream_key
from ordermerge.errors import UserError
from ordermerge.experiment import DATA_SUFFIXES, DataSection, Experiment
from ordermerge.train.records import Record, read_records, require_mappings
from ordermerge.train.templates import Template

SAMPLE_ID = "sample_id"


@dataclass(frozen=True)
class Samples:
    """What one trains on.

    Attributes:
        train: Columns `prompt` and `completion` (or `messages`), and `sample_id`: the row of the data as loaded.
        validation: The same columns; its ids are rows of its own file, or of the training data it was held out from.
        empty: How many training samples have nothing to learn but the end: blank completion or last assistant turn.
        fingerprint: SHA-256 (hex) of the training samples' content, ids included.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    empty: int
    fingerprint: str


def check_data(experiment: Experiment) -> list[str]:
    """Return what is wrong with the `data` section, without reading the data.

    Args:
        experiment: The experiment.
    """
    data = experiment.data
    problems = []
    for name in ("prompt", "completion"):
        try:
            Template.parse(f"data.{name}", getattr(data, name) or "")
        except UserError as error:
            problems += error.problems
    for name in ("train", "validation"):
        try:
            data_file(experiment, name)
        except UserError as error:
            problems += error.problems
    return problems


def data_file(experiment: Experiment, name: str) -> Path | None:
    """Return the file that `data.train` or `data.validation` names, or None for a hub id, a fraction or nothing.

    Args:
        experiment: The experiment.
        name: "train" or "validation".

    Raises:
        UserError: If what is named looks like a file and is not there, is a folder, or of an unknown kind.
    """
    named = getattr(experiment.data, name)
    if not isinstance(named, str):
        return None
    found = experiment.locate(named)
    looks_like_file = named.lower().endswith(DATA_SUFFIXES) or Path(named).is_absolute() or named.startswith(".")
    if found is not None and found.is_dir():
        raise UserError(f"`data.{name}`: {found} is a folder; name a {', '.join(DATA_SUFFIXES)} file in it")
    if found is not None and found.suffix.lower() not in DATA_SUFFIXES:
        raise UserError(f"`data.{name}`: unknown kind of data file {found}; use one of {', '.join(DATA_SUFFIXES)}")
    if found is None and looks_like_file:
        places = dict.fromkeys((str(experiment.directory.resolve()), str(Path.cwd())))
        raise UserError(f"`data.{name}`: no file {named} in {' or '.join(places)}")
    return found


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
    rows = _make_samples(data, _load_records(experiment, "train"), data.train)
    ids = list(range(len(rows)))
    held_out: list[int] = []
    validation = None
    if isinstance(data.validation, float):
        held_out = _hold_out(len(rows), data.validation, experiment.orders.seed)
        validation = _to_dataset([rows[i] for i in held_out], held_out)
    elif data.validation is not None:
        other = _make_samples(data, _load_records(experiment, "validation"), data.validation)
        validation = _to_dataset(other, list(range(len(other))))
    out = set(held_out)
    ids = [i for i in ids if i not in out]
    rows = [rows[i] for i in ids]
    return Samples(_to_dataset(rows, ids), validation, sum(map(_is_empty, rows)), _fingerprint(rows, ids))


def _load_records(experiment: Experiment, name: str) -> list[Record]:
    path = data_file(experiment, name)
    if path is not None:
        return read_records(path)
    data, named = experiment.data, getattr(experiment.data, name)
    try:
        loaded = datasets.load_dataset(named, data.config, split=data.split if name == "train" else "validation")
    except Exception as error:  # whatever the hub, the network or the dataset's own files raise
        raise UserError(
            f"`data.{name}`: {named!r} is no file here and cannot be loaded from the hub: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return require_mappings(loaded, named)


def _make_samples(data: DataSection, records: Sequence[Record], source: str) -> list[Record]:
    """Return `prompt` and `completion`, or `messages`, of each record."""
    if data.messages is not None:
        return [
            {"messages": _messages(record, data.messages, f"{source}: record {row}")}
            for row, record in enumerate(records)
        ]
    templates = {name: Template.parse(f"data.{name}", getattr(data, name)) for name in ("prompt", "completion")}
    return [
        {name: template.fill(record, f"{source}: record {row}") for name, template in templates.items()}
        for row, record in enumerate(records)
    ]


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
        digest.update(json.dumps([sample_id, row], sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
