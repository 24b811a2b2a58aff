"""The training data: files or hub datasets read, and records made into samples, each with the row it came from."""

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch

from ordermerge.config.schema import DATA_SUFFIXES, DataSection, Experiment
from ordermerge.counter import random_words, stream_key
from ordermerge.errors import UserError
from ordermerge.models import is_offline
from ordermerge.records import Record, read_records, require_mappings
from ordermerge.train.chats import CHAT, read_chat, without_nulls
from ordermerge.train.templates import Template

SAMPLE_ID = "sample_id"


@dataclass(frozen=True)
class Samples:
    """What one trains on.

    Attributes:
        train: Columns `prompt` and `completion`, or of chats `chat` (JSON) and `messages` (role, content); and
            `sample_id`: the row of the data as loaded.
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
        validation = _to_dataset([rows[i] for i in held_out], held_out, data.train)
    elif data.has_validation:
        source = data.validation or data.train
        other = _make_samples(data, load_records(experiment, "validation"), source)
        validation = _to_dataset(other, list(range(len(other))), source)
    ids = sorted(set(range(len(rows))).difference(held_out))
    rows = [rows[i] for i in ids]
    duplicates = len(rows) - len(set(map(_canonical, rows)))
    train = _to_dataset(rows, ids, data.train)
    return Samples(train, validation, sum(map(_is_empty, rows)), duplicates, _fingerprint(rows, ids))


def check_data(experiment: Experiment) -> list[str]:
    """Return what is wrong with the `data` section, without reading the data.

    Args:
        experiment: The experiment.
    """
    data = experiment.data
    problems = []
    for name in ("prompt", "completion"):
        try:
            template = Template.parse(f"data.{name}", getattr(data, name) or "")
            if name == "completion" and data.completion is not None and not template.fields:
                problems.append(
                    f"`data.completion`: template {data.completion!r} names no field, so all samples would teach the "
                    "same; write the field in braces, such as {answer}"
                )
        except UserError as error:
            problems += error.problems
    files = {}
    for name in ("train", "validation"):
        try:
            files[name] = data_file(experiment, name)
        except UserError as error:
            problems += error.problems
    return problems + _misplaced_hub_keys(data, files)


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
    found = Path(named) if Path(named).exists() and Path(named).is_absolute() else None
    looks_like_file = named.lower().endswith(DATA_SUFFIXES) or Path(named).is_absolute() or named.startswith(".")
    if found is not None and found.is_dir():
        raise UserError(f"`data.{name}`: {found} is a folder; name a {', '.join(DATA_SUFFIXES)} file in it")
    if found is not None and found.suffix.lower() not in DATA_SUFFIXES:
        raise UserError(f"`data.{name}`: unknown kind of data file {found}; use one of {', '.join(DATA_SUFFIXES)}")
    if found is None and looks_like_file:
        places = dict.fromkeys((str(experiment.directory.resolve()), str(Path.cwd())))
        there = [entry.name for entry in experiment.directory.glob("*") if entry.suffix in DATA_SUFFIXES]
        near = difflib.get_close_matches(Path(named).name, there, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else "; mend the name"
        raise UserError(f"`data.{name}`: no file {named} in {' or '.join(places)}{meant}")
    return found


def load_records(experiment: Experiment, name: str) -> list[Record]:
    """Read the records of `data.train` or `data.validation`, from a file or from the hub.

    Args:
        experiment: An experiment whose `data` section has been checked.
        name: "train" or "validation".

    Raises:
        UserError: If they cannot be read.
    """
    path = data_file(experiment, name)
    if path is not None:
        records = read_records(path)
        return [without_nulls(record) for record in records] if _is_columnar(experiment, path) else records
    data = experiment.data
    named, split = getattr(data, name) or data.train, data.split
    if name == "validation":
        split = data.validation_split or "validation"
    try:
        revision = data.revision if named == data.train else None
        loaded = datasets.load_dataset(named, data.config, split=split, revision=revision)
    except Exception as error:  # whatever the hub, the network or the dataset's own files raise
        raise UserError(
            f"`data.{name}`: {named!r} is no file here and cannot be loaded from the hub: "
            f"{'it is out of reach' if is_offline() else ' '.join(str(error).split())[:300]}; mend the name, or name a "
            "file"
        ) from error
    records = require_mappings(loaded, named)
    return [without_nulls(record) for record in records] if data.messages else records


def _is_columnar(experiment: Experiment, path: Path) -> bool:
    """Return whether the objects within a file's chats have been given each other's keys."""
    return experiment.data.messages is not None and path.suffix.lower() == ".parquet"


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
        return lambda record, where: read_chat(record, field, where)
    templates = {name: Template.parse(f"data.{name}", getattr(data, name)) for name in ("prompt", "completion")}
    return lambda record, where: {name: template.fill(record, where) for name, template in templates.items()}


def _hold_out(rows: int, fraction: float, seed: int) -> list[int]:
    """Draw the rows of a validation set; at least one row goes to either side."""
    if rows < 2:
        raise UserError(f"`data.validation`: cannot hold out {fraction} of {rows} record; name a validation file")
    held_out = min(max(round(rows * fraction), 1), rows - 1)
    words = random_words(stream_key("validation", seed), 0, rows)
    return sorted(torch.argsort(words, stable=True)[:held_out].tolist())


def _to_dataset(rows: Sequence[Record], ids: Sequence[int], source: str) -> datasets.Dataset:
    columns: dict[str, list[Any]]
    if "messages" in rows[0]:
        shown = [[{key: message[key] for key in ("role", "content")} for message in row["messages"]] for row in rows]
        places = (f"{source}: record {row}" for row in ids)
        whole = [json.dumps({**row, "where": place}) for row, place in zip(rows, places, strict=True)]
        columns = {CHAT: whole, "messages": shown}  # the latter for TRL, which looks for a chat
    else:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
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


def _misplaced_hub_keys(data: DataSection, files: Mapping[str, Path | None]) -> list[str]:
    """Return a sentence for each key that is for hub datasets, and would do nothing."""
    problems = []
    named_files = [path for path in files.values() if path]
    if files.get("train") and (not isinstance(data.validation, str) or files.get("validation")):
        given = {"config": data.config, "revision": data.revision}
        given["split"] = None if data.split == "train" else data.split
        problems += [
            f"`data.{key}` is for datasets on the hub, and {named_files[0]} is a file; remove it"
            for key, value in given.items()
            if value is not None
        ]
    if data.validation_split is not None:
        if isinstance(data.validation, float):
            problems.append("`data.validation_split` names a split, and `data.validation` a fraction; remove one")
        elif path := files.get("validation" if data.validation else "train"):
            problems.append(f"`data.validation_split` is for datasets on the hub, and {path} is a file; remove it")
    return problems
