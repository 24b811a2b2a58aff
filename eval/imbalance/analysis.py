"""`ordermerge imbalance`: from the losses of a run's models to figures, numbers and plain words."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired

import click
import numpy as np
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ordermerge.errors import UserError
from ordermerge.eval.imbalance.figures import anchor_figure, position_figure, steps_figure
from ordermerge.eval.imbalance.loss_table import LossTable, read_steps, read_table
from ordermerge.eval.imbalance.results import EpochResult, analyse_epoch, in_words
from ordermerge.files import write_json
from ordermerge.provenance import record
from ordermerge.run_directory import imbalance_folder, model_marker, model_paths, open_run, order_name

BINS = 10
FIGURES = {  # with what each shows
    "figure_1_first": "Loss by the position in the first epoch (figure 1 of the paper)",
    "figure_1_last": "Loss by the position in the last epoch",
    "figure_3_first": "What merging leaves of that, by the position in one order's first epoch (figure 3)",
    "figure_3_last": "What merging leaves of that, by the position in one order's last epoch",
    "figure_4": "Validation loss of single and merged models along the training (figure 4)",
}


@with_config(ConfigDict(extra="allow"))
class Findings(TypedDict):
    """What is read again of `imbalance.json`."""

    in_words: list[str]
    models: NotRequired[dict[str, str | None]]


def analyse(run: Path, *, bins: int = BINS, seed: int = 0) -> Path:
    """Analyse the position effect in a run: figures and numbers go to its `imbalance` folder, words are printed.

    Args:
        run: The run directory; `ordermerge losses` has been there.
        bins: Of the curves.
        seed: Of permutations and bootstrap.

    Returns:
        The JSON file with all numbers.

    Raises:
        UserError: If losses or positions of fewer than two orders are there, with all that is missing; or if all orders
            are the same.
    """
    experiment, out = open_run(run), imbalance_folder(run)
    table = read_table(run, experiment)
    last = table.positions.shape[1] - 1
    results = []
    epochs = {"first": 0, "last": last} if last else {"first": 0}
    common = [epoch for epoch, place in epochs.items() if (np.ptp(table.positions[:, place], axis=0) == 0).all()]
    for epoch, place in epochs.items():
        if epoch in common and len(common) < len(epochs):  # as before a branch
            continue
        try:
            result = analyse_epoch(epoch, table.losses, table.positions[:, place], table.merged, bins=bins, seed=seed)
        except ValueError as error:
            raise UserError(f"{run}, {epoch} epoch: {error}") from None
        position_figure(out / f"figure_1_{epoch}", epoch, result.orders, result.pooled, result.contrast)
        anchor_figure(out / f"figure_3_{epoch}", epoch, result.anchored, result.relative)
        results.append(result)
    steps = read_steps(run)
    if steps:
        steps_figure(out / "figure_4", steps)
    words = _words(table, results)
    words += [f"Position in the {epoch} epoch: the same in all orders; there is no lottery." for epoch in common]
    names, paths = [*map(order_name, table.orders), *table.merged], model_paths(experiment, run.resolve())
    numbers = {
        "models": {name: model_marker(paths[name]) for name in names},
        "orders": table.orders,
        "samples": table.samples,
        "unit": table.unit,
        "units": table.losses.shape[1],
        "left_out": table.notes,
        "bins": bins,
        "seed": seed,
        "mean_losses": table.means,
        "epochs": {result.epoch: _plain(asdict(result)) for result in results},
        "validation_losses_by_step": steps,
        "in_words": words,
        **record(experiment.directory),
    }
    write_json(out / "imbalance.json", numbers)
    for note in table.notes:
        click.echo(f"left out: {note}", err=True)
    click.echo("\n".join(words))
    return out / "imbalance.json"


def _words(table: LossTable, results: list[EpochResult]) -> list[str]:
    fixed = {"batch": "batches", "pack": "packs"}.get(table.unit)
    units = f"{table.samples:,} samples" + (f" in {table.losses.shape[1]:,} fixed {fixed}" if fixed else "")
    lines = [f"{len(table.orders)} orders of {units}; each {table.unit} is compared with itself in the other orders."]
    return lines + [line for result in results for line in in_words(result, len(table.orders))]


def _plain(value: Any) -> Any:
    """Return arrays as lists, and NaN, which JSON has no word for, as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
