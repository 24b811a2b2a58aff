"""A run's losses and positions, brought together by sample."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.eval.imbalance.curves import moved_together
from ordermerge.eval.imbalance.effect import unit_means
from ordermerge.eval.statistics import Array
from ordermerge.run_directory import (
    OrderPositions,
    losses_file,
    model_marker,
    model_paths,
    order_name,
    read_positions,
    steps_folder,
)
from ordermerge.yaml_json import read_json

NOTE = b"ordermerge"  # the key of the parquet file's metadata that says how it was made


@with_config(ConfigDict(extra="allow"))
class StepLosses(TypedDict):
    """What is read again of the losses after a step."""

    losses: dict[str, float]


@dataclass(frozen=True)
class LossTable:
    """The training samples that all models have a loss of, and all orders a position.

    Attributes:
        orders: Numbers of the K orders that take part.
        losses: Shape [K, n], of samples or, where these move in batches, means over the batches.
        positions: Shape [K, epochs, n], from 0 (first) to 1 (last).
        merged: Losses of each merged model, shape [n].
        means: For each model the mean loss over "train" and "validation", each sample counting the same.
        samples: How many training samples there are.
        unit: "sample", "batch", or "pack" where samples move in packs (or batches of these).
        notes: What was left out, and why.
    """

    orders: list[int]
    losses: Array
    positions: Array
    merged: dict[str, Array]
    means: dict[str, dict[str, float]]
    samples: int
    unit: str
    notes: list[str]


def read_table(run: Path, experiment: Experiment) -> LossTable:
    """Read a run's losses and positions.

    Args:
        run: The run directory.
        experiment: Its experiment.

    Raises:
        UserError: If losses or positions of fewer than two orders are there, or losses are those of earlier models.
    """
    tables = _read_losses(run, model_paths(experiment, run.resolve()))
    train = {name: _by_sample(table, "train") for name, table in tables.items()}
    orders, notes = read_positions(run, experiment.count)
    names = [*(order_name(number) for number in range(experiment.count)), *experiment.merges]
    notes += [f"{name} has no losses; `ordermerge losses {run}` takes them" for name in names if name not in train]
    orders = {number: order for number, order in orders.items() if order_name(number) in train}
    if len(orders) < 2:
        raise UserError(
            [f"imbalance compares orders; {len(orders)} of the two it needs have losses and positions", *notes]
        )
    single = [train[order_name(number)] for number in orders]
    merged = {name: train[name] for name in experiment.merges if name in train}
    places = [(order.sample_ids.numpy(),) for order in orders.values()]
    shared = functools.partial(np.intersect1d, assume_unique=True)
    ids = functools.reduce(shared, [found[0] for found in (*single, *merged.values(), *places)])
    if len(ids) < 2:
        raise UserError(
            f"{run}: {len(ids)} samples have a loss under every model and a position in every order; 2 are needed"
        )
    losses = np.stack([values[_places(known, ids)] for known, values in single])
    rows = {name: values[_places(known, ids)] for name, (known, values) in merged.items()}
    positions, units = _positions(list(orders.values()), ids)
    if units is not None:
        losses, positions = unit_means(losses, units), unit_means(positions, units)
        rows = {name: unit_means(row, units) for name, row in rows.items()}
    means = {name: _means(table) for name, table in tables.items()}
    packed = any(order.packs is not None for order in orders.values())
    unit = "sample" if units is None else "pack" if packed else "batch"
    return LossTable(list(orders), losses, positions, rows, means, len(ids), unit, notes)


def read_steps(run: Path) -> dict[int, dict[str, float]]:
    """Return the losses after each step, by model, of the models that were measured after every step.

    Args:
        run: The run directory; an empty result means that nothing was measured there.
    """
    files = {int(file.stem): file for file in steps_folder(run).glob("*.json") if file.stem.isdigit()}
    remedy = f"delete it and run `ordermerge losses {run} --steps`"
    found = {step: read_json(file, StepLosses, remedy=remedy)["losses"] for step, file in files.items()}
    shared = set.intersection(*map(set, found.values())) if found else set()
    return {step: {name: v for name, v in found[step].items() if name in shared} for step in sorted(found)}


def _read_losses(run: Path, models: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the columns of each model's file of losses."""
    found, stale = {}, []
    for name, path in models.items():
        file = losses_file(run, name)
        if not file.is_file():
            continue
        try:
            table = pq.read_table(file)
            columns = {column: table[column].to_numpy() for column in ("sample_id", "split", "tokens", "loss")}
            inputs = json.loads((table.schema.metadata or {})[NOTE])["inputs"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read ({error}); delete it and run `ordermerge losses {run}`") from None
        if inputs.get("marker") != model_marker(path):
            stale.append(name)
        found[name] = columns
    if stale:
        raise UserError(
            f"{', '.join(stale)}: made anew since the losses were taken; run `ordermerge losses {run}` again"
        )
    if not found:
        raise UserError(f"{run} has no losses yet; run `ordermerge losses {run}` first")
    return found


def _by_sample(table: Mapping[str, Any], split: str) -> tuple[np.ndarray, Array]:
    """Return the samples of a split that have a loss, and their losses."""
    kept = (table["split"] == split) & np.isfinite(table["loss"])  # NaN: nothing was learnt of it
    return table["sample_id"][kept], table["loss"][kept]


def _means(table: Mapping[str, Any]) -> dict[str, float]:
    splits = ("train", "validation")
    losses = {split: _by_sample(table, split)[1] for split in splits}
    return {split: float(found.mean()) for split, found in losses.items() if len(found)}


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return where samples stand among others, all different, that include them."""
    sorted_places = np.argsort(known)
    return sorted_places[np.searchsorted(known, ids, sorter=sorted_places)]


def _positions(orders: list[OrderPositions], ids: np.ndarray) -> tuple[Array, np.ndarray | None]:
    """Return positions from 0 to 1 of some samples, [K, epochs, samples], and their units if they move in batches."""
    epochs = min(order.positions.shape[0] for order in orders)
    places, scaled = [], []
    for order in orders:
        found = order.positions.numpy()[:, _places(order.sample_ids.numpy(), ids)]
        # First and last epoch are what is looked at, also where someone's orders differ in their number of epochs.
        places.append(found if len(found) == epochs else np.concatenate([found[: epochs - 1], found[-1:]]))
        scaled.append(places[-1] / max(1, order.units - 1))
    whole = all(len(order.sample_ids) == len(ids) for order in orders)
    units = moved_together(np.concatenate(places), orders[0].batch, orders[0].units) if whole else None
    if units is None and orders[0].packs is not None:  # samples of a pack move as one
        _, units = np.unique(np.concatenate(places), axis=1, return_inverse=True)
    return np.stack(scaled), units
