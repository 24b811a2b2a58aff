"""`ordermerge losses`: each sample's loss under each model of a run, one parquet file a model."""

import hashlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ordermerge.commands.measure import Machine, Split, measure, splits_of
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.eval.imbalance.loss_table import NOTE
from ordermerge.eval.imbalance.losses import count_learnt
from ordermerge.eval.scoring.score import model_identity
from ordermerge.files import fingerprint, write_bytes
from ordermerge.models import Model, local_folder, members_of, model_problem
from ordermerge.progress import Counted, tell_load
from ordermerge.provenance import record
from ordermerge.run_directory import (
    BASE,
    OrderPositions,
    losses_file,
    model_marker,
    open_run,
    read_positions,
    scored_models,
)
from ordermerge.train.tokenized import Tokenised, tokenise


def take_losses(run: Path, machine: Machine, *, only: Sequence[str] = ()) -> list[Path]:
    """Compute the losses of a run's models on its training and validation samples; what is done is not done twice.

    Args:
        run: The run directory.
        machine: Where and how.
        only: Names of the models wanted; all that are there, if none is given.

    Returns:
        The files, one a model.

    Raises:
        UserError: If this is no run directory, a model is incomplete, the data is not what was trained on, or memory
            runs out.
    """
    experiment = open_run(run)
    models = _present(scored_models(experiment, run.resolve()), only)
    splits = load_splits(run, experiment)
    data = data_fingerprint(splits)
    todo: dict[str, dict[str, Any]] = {}
    for name, path in models.items():
        dtype = experiment.model.dtype if name == BASE else "auto"
        inputs = {"model": model_identity(path), "marker": _marker(path), "dtype": dtype, "data": data}
        if _made_from(losses_file(run, name)) == fingerprint(inputs):
            _say(f"{name}: its losses are there, kept")
        else:
            todo[name] = inputs
    if todo:
        tell_load()
    progress = Counted("sample", len(todo))
    for position, (name, inputs) in enumerate(todo.items(), start=1):
        progress.next(f"[{position}/{len(todo)}] {name}")
        _take(experiment, run, name, models[name], splits, machine, progress, inputs)
    return [losses_file(run, name) for name in models]


def load_splits(run: Path, experiment: Experiment) -> list[Split]:
    """Return a run's data as it was trained on.

    Args:
        run: The run directory.
        experiment: Its experiment.

    Raises:
        UserError: If the data cannot be loaded, or is not what the run's orders were trained on.
    """
    tokenised = tokenise(experiment)
    orders, _ = read_positions(run, experiment.count)
    _require_same_data(tokenised, orders)
    return splits_of(tokenised)


def data_fingerprint(splits: Sequence[Split]) -> str:
    """Return one fingerprint of all tokens and labels.

    Args:
        splits: The data.
    """
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.name.encode())
        ids, tokens, labels = np.array(split.sample_ids), split.input_ids, split.labels
        for numbers in (ids, tokens.starts, tokens.values, labels.starts, labels.values):
            digest.update(np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _present(models: dict[str, Model], only: Sequence[str]) -> dict[str, Model]:
    """Return the models that are there, of those asked for; say which are not."""
    if unknown := [name for name in only if name not in models]:
        raise UserError(f"model {', '.join(unknown)} is unknown in this run; its models are {', '.join(models)}")
    asked = {name: path for name, path in models.items() if name in only or not only}
    absent = [
        name
        for name, model in asked.items()
        if name != BASE and not all(local_folder(member) for member in members_of(model))
    ]
    for name in absent:
        _say(f"{name}: not there yet, left out ({', '.join(members_of(asked[name]))})")
    there = {name: model for name, model in asked.items() if name not in absent}
    members = dict.fromkeys(member for model in there.values() for member in members_of(model))
    whole = [member for member in members if not (Path(member) / "adapter_config.json").is_file()]
    if problems := [problem for member in whole if (problem := model_problem(member, "hf"))]:
        raise UserError(problems)
    return there


def _marker(model: Model) -> list[str | None] | str | None:
    return model_marker(model) if isinstance(model, str) else [model_marker(member) for member in model]


def _require_same_data(tokenised: Tokenised, orders: dict[int, OrderPositions]) -> None:
    ids = torch.tensor(tokenised.train["sample_id"][:])
    for number, order in orders.items():
        if order.data not in (None, tokenised.fingerprint):
            raise UserError(
                f"this is not the data that order_{number} was trained on: its fingerprint was {order.data}, and is "
                f"{tokenised.fingerprint}; restore the data file, or train again"
            )
        if order.data is not None and not torch.equal(ids, order.sample_ids):  # others may order what they like
            raise UserError(
                f"the data is now prepared differently: {len(ids)} samples are left of it, order_{number} was trained "
                f"on {len(order.sample_ids)}; use the versions of TRL and tokenizer that its order.json names"
            )


def _made_from(file: Path) -> str | None:
    """Return the fingerprint of what a file of losses was made from, None where there is none to be read."""
    try:
        return str(json.loads((pq.read_schema(file).metadata or {})[NOTE])["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _take(
    experiment: Experiment,
    run: Path,
    name: str,
    path: Model,
    splits: Sequence[Split],
    machine: Machine,
    progress: Counted,
    inputs: dict[str, Any],
) -> None:
    """Compute and write the losses of one model."""
    started = time.perf_counter()
    losses, device = measure(experiment, name, path, splits, machine, progress=progress, dtype=inputs["dtype"])
    columns: dict[str, list[Any]] = {
        "sample_id": [i for split in splits for i in split.sample_ids],
        "split": [split.name for split in splits for _ in split.sample_ids],
        "tokens": [count for split in splits for count in count_learnt(split.labels).tolist()],
        "loss": torch.cat(losses).tolist(),
    }
    seconds = round(time.perf_counter() - started, 3)
    note = {"fingerprint": fingerprint(inputs), "inputs": inputs, "device": device, "seconds": seconds}
    note |= {"batch_tokens": machine.batch_tokens, **record(experiment.directory)}
    table = pa.table({**columns, "model": [name] * len(columns["loss"])})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({NOTE: json.dumps(note)}), buffer)
    write_bytes(losses_file(run, name), buffer.getvalue())
    means = ", ".join(f"{split.name} {loss.nanmean():.4f}" for split, loss in zip(splits, losses, strict=True))
    _say(f"{name}: mean loss {means}, in {seconds:.1f} s")


def _say(line: str) -> None:
    click.echo(line, err=True)
