"""`ordermerge losses`: each sample's loss under each model of a run, one parquet file a model."""

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from ordermerge.errors import UserError
from ordermerge.eval.harness import free_memory
from ordermerge.eval.losses import BATCH_TOKENS, count_learnt, sample_losses
from ordermerge.eval.models import identity, local_folder, model_problem
from ordermerge.experiment import Experiment
from ordermerge.files import fingerprint, fingerprint_file, write_bytes
from ordermerge.merging import MARKER as MERGE_MARKER
from ordermerge.plan import BASE, model_paths
from ordermerge.positions import OrderPositions, open_run, read_positions
from ordermerge.provenance import record
from ordermerge.train.quiet import is_interactive, quiet
from ordermerge.train.tokens import Tokenised, tokenise

NOTE = b"ordermerge"  # the key of the parquet file's metadata that says how it was made


@dataclass(frozen=True)
class Split:
    """A part of the data, tokenised.

    Attributes:
        name: "train" or "validation".
        sample_ids: The row of each sample in the data as loaded.
        input_ids: Its tokens.
        labels: Its labels, -100 where there is nothing to learn.
    """

    name: str
    sample_ids: list[int]
    input_ids: list[list[int]]
    labels: list[list[int]]


def losses_file(run: Path, model: str) -> Path:
    """Return where the losses of a model are.

    Args:
        run: The run directory.
        model: The model's name: "base", "order_0", or a merge's.
    """
    return run / "imbalance" / "losses" / f"{model}.parquet"


def model_marker(path: str) -> str | None:
    """Return the fingerprint of the marker of a model that a run made: another, if it was made again.

    Args:
        path: The model.
    """
    markers = (Path(path) / name for name in ("order/order.json", MERGE_MARKER))
    return next((fingerprint_file(marker) for marker in markers if marker.is_file()), None)


def take_losses(
    run: Path, *, only: Sequence[str] = (), device: str | None = None, batch_tokens: int = BATCH_TOKENS
) -> list[Path]:
    """Compute the losses of a run's models on its training and validation samples; what is done is not done twice.

    Args:
        run: The run directory.
        only: Names of the models wanted; all that are there, if none is given.
        device: Where to compute; the accelerator, or the CPU where there is none, if not given.
        batch_tokens: Most tokens in a batch.

    Returns:
        The files, one a model.

    Raises:
        UserError: If this is no run directory, a model is incomplete, the data is not what was trained on, or memory
            runs out.
    """
    experiment = open_run(run)
    models = _present(model_paths(experiment, run.resolve()), only)
    tokenised = tokenise(experiment)
    orders, _ = read_positions(run, experiment.orders.count)
    _require_same_data(tokenised, orders)
    splits = list(_splits(tokenised))
    data = fingerprint([[split.name, split.sample_ids, split.input_ids, split.labels] for split in splits])
    for name, path in models.items():
        dtype = experiment.model.dtype if name == BASE else "auto"
        inputs = {"model": identity(path), "marker": model_marker(path), "dtype": dtype, "data": data}
        if name == BASE:
            inputs["revision"] = experiment.model.revision
        if _made_from(losses_file(run, name)) == fingerprint(inputs):
            _say(f"{name}: its losses are there, kept")
            continue
        with quiet():
            _take(experiment, run, name, path, splits, inputs, device, batch_tokens)
    return [losses_file(run, name) for name in models]


def _present(models: dict[str, str], only: Sequence[str]) -> dict[str, str]:
    """Return the models that are there, of those asked for; say which are not."""
    if unknown := [name for name in only if name not in models]:
        raise UserError(f"model {', '.join(unknown)} is unknown in this run; its models are {', '.join(models)}")
    asked = {name: path for name, path in models.items() if name in only or not only}
    absent = [name for name, path in asked.items() if name != BASE and local_folder(path) is None]
    for name in absent:
        _say(f"{name}: not there yet, left out ({asked[name]})")
    there = {name: path for name, path in asked.items() if name not in absent}
    whole = {name: path for name, path in there.items() if not (Path(path) / "adapter_config.json").is_file()}
    if problems := [problem for path in whole.values() if (problem := model_problem(path, "hf"))]:
        raise UserError(problems)
    return there


def _require_same_data(tokenised: Tokenised, orders: dict[int, OrderPositions]) -> None:
    ids = torch.tensor(tokenised.train["sample_id"][:])
    for number, order in orders.items():
        if order.data not in (None, tokenised.fingerprint):
            raise UserError(
                f"this is not the data that order_{number} was trained on: its fingerprint was {order.data}, and is "
                f"{tokenised.fingerprint}; restore the data file, or train again"
            )
        if not torch.equal(ids, order.sample_ids):
            raise UserError(
                f"the data is now prepared differently: {len(ids)} samples are left of it, order_{number} was trained "
                f"on {len(order.sample_ids)}; use the versions of TRL and tokenizer that its order.json names"
            )


def _splits(tokenised: Tokenised) -> Iterator[Split]:
    for name, data in (("train", tokenised.train), ("validation", tokenised.validation)):
        if data is not None:
            yield Split(name, *(data[column][:] for column in ("sample_id", "input_ids", "labels")))


def _made_from(file: Path) -> str | None:
    """Return the fingerprint of what a file of losses was made from, None where there is none to be read."""
    try:
        return str(json.loads((pq.read_schema(file).metadata or {})[NOTE])["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def _take(
    experiment: Experiment,
    run: Path,
    name: str,
    path: str,
    splits: list[Split],
    inputs: dict[str, Any],
    device: str | None,
    batch_tokens: int,
) -> None:
    """Compute and write the losses of one model."""
    started = time.perf_counter()
    columns: dict[str, list[Any]] = {"sample_id": [], "split": [], "tokens": [], "loss": []}
    model = _load(experiment, path, inputs["dtype"], device)
    said = []
    with tqdm(total=sum(len(split.labels) for split in splits), desc=name, disable=not is_interactive()) as bar:
        for split in splits:
            try:
                losses = sample_losses(
                    model, split.input_ids, split.labels, batch_tokens=batch_tokens, progress=bar.update
                )
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{name}: the memory of {model.device} is too small for batches of {batch_tokens} tokens; "
                    "use a smaller `--batch-tokens`"
                ) from error
            columns["sample_id"] += split.sample_ids
            columns["split"] += [split.name] * len(losses)
            columns["tokens"] += count_learnt(split.labels).tolist()
            columns["loss"] += losses.tolist()
            said.append(f"{split.name} {losses.nanmean():.4f} ({len(losses):,} samples)")
    place = str(model.device)
    del model
    free_memory()
    note = {"fingerprint": fingerprint(inputs), "inputs": inputs, "device": place}
    note |= {
        "batch_tokens": batch_tokens,
        "seconds": round(time.perf_counter() - started, 3),
        **record(experiment.directory),
    }
    table = pa.table({**columns, "model": [name] * len(columns["loss"])})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({NOTE: json.dumps(note)}), buffer)
    write_bytes(losses_file(run, name), buffer.getvalue())
    _say(f"{name}: mean loss {', '.join(said)}, in {note['seconds']:.1f} s")


def _load(experiment: Experiment, path: str, dtype: str, device: str | None) -> Any:
    """Load a model, or an adapter with its base model, for inference."""
    kind: Any = AutoModelForCausalLM
    if (Path(path) / "adapter_config.json").is_file():
        try:
            from peft import AutoPeftModelForCausalLM as kind
        except ImportError:
            raise UserError(
                f"{path} holds a LoRA adapter, which needs peft; install it with `pip install peft`"
            ) from None
    options: dict[str, Any] = {"trust_remote_code": experiment.sft.get("trust_remote_code", False)}
    if path == experiment.model_path():
        options["revision"] = experiment.model.revision
    try:
        model = kind.from_pretrained(path, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:400]}") from error
    try:
        return model.to(device or torch.accelerator.current_accelerator() or "cpu").eval()
    except (RuntimeError, AssertionError) as error:  # torch has several words for a device that is not there
        raise UserError(f"--device {device}: cannot be used: {' '.join(str(error).split())[:200]}") from error


def _say(line: str) -> None:
    click.echo(line, err=True)
