"""`ordermerge losses --steps`: validation loss of sub-models, and of their merges, along the training steps.

A merge of the sub-models as they were after a step is made in a temporary folder, measured and removed, one at a time.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import click
from mergekit.options import MergeOptions

from ordermerge.commands.losses import data_fingerprint, load_splits
from ordermerge.commands.measure import Machine, Split, measure
from ordermerge.commands.merging import merge
from ordermerge.commands.recipes import complete_recipe, merge_options, write_recipe
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.files import fingerprint, write_json
from ordermerge.folders import scratch_directory
from ordermerge.ingredients import ingredients_of
from ordermerge.models import identity
from ordermerge.progress import Counted
from ordermerge.provenance import record
from ordermerge.run_directory import CHECKPOINTS, TRUNK, open_run, order_folder, order_name, order_record, steps_file

_STEP = re.compile(r"step-(\d+)")


def take_step_losses(run: Path, machine: Machine) -> list[Path]:
    """Measure sub-models and merges after each step that all orders have a checkpoint of, and at the end.

    What is done is not done twice.

    Args:
        run: The run directory.
        machine: Where and how.

    Returns:
        The files, one a step.

    Raises:
        UserError: If there is no validation data or no such checkpoint, and as `take_losses` does.
    """
    experiment = open_run(run)
    stages = _checkpoints(run.resolve(), experiment.count)
    if not stages:
        raise UserError(
            f"{run}: there is no step that all orders have a checkpoint of (orders/K/checkpoints/step-N); train with "
            "`checkpoints: {every: ...}` in the experiment"
        )
    splits = [split for split in load_splits(run, experiment) if split.name == "validation"]
    if not splits:
        raise UserError(f"{run}: losses along the steps are validation losses, and there is no `data.validation`")
    for step, models in stages.items():
        inputs = {
            "models": [identity(str(folder)) for folder in models],
            "merges": experiment.merges,
            "data": data_fingerprint(splits),
        }
        if _made_from(steps_file(run, step)) == fingerprint(inputs):
            click.echo(f"step {step}: its losses are there, kept", err=True)
            continue
        progress = Counted("sample", len(models) + len(experiment.merges))
        losses = _measure_step(experiment, run.resolve(), models, splits, machine, progress, f"step {step}")
        noted = {"fingerprint": fingerprint(inputs), **record(experiment.directory)}
        write_json(steps_file(run, step), {"step": step, "losses": losses, **noted})
        click.echo(f"step {step}: {', '.join(f'{name} {loss:.4f}' for name, loss in losses.items())}", err=True)
    return [steps_file(run, step) for step in stages]


def _checkpoints(run: Path, count: int) -> dict[int, list[Path]]:
    """Return the folders of the K models after each step that all have one of, their trunk's too, and at the end."""
    orders = [order_folder(run, order) for order in range(count)]
    steps = [
        {
            int(match[1]): path
            for folder in (order.with_name(TRUNK), order)
            for path in (folder / CHECKPOINTS).glob("step-*")
            if (match := _STEP.fullmatch(path.name))
        }
        for order in orders
    ]
    found = {step: [of[step] for of in steps] for step in sorted(set.intersection(*map(set, steps)))}
    ends = {record and record["steps"] for record in map(order_record, orders)}
    if found and len(ends) == 1 and (end := ends.pop()):
        found[end] = orders
    return found


def _measure_step(
    experiment: Experiment,
    run: Path,
    models: Sequence[Path],
    splits: Sequence[Split],
    machine: Machine,
    progress: Counted,
    where: str,
) -> dict[str, float]:
    """Return the mean loss of each sub-model, and of each merge of them; merges along the training are left out."""

    def mean(name: str, path: Path) -> float:
        progress.next(f"{where}, {name}")
        (losses,), _ = measure(experiment, name, str(path), splits, machine, progress=progress)
        return float(losses.nanmean())

    found = {order_name(order): mean(order_name(order), path) for order, path in enumerate(models)}
    for name in experiment.merges:
        if ingredients_of(experiment, name).along:
            continue  # it has no form of its own after each step
        try:
            recipe = complete_recipe(experiment, run, name, models=models)
        except UserError as error:
            click.echo(f"left out: {error}", err=True)
            continue
        with scratch_directory(run, "step") as folder:
            path, out = folder / f"{name}.yml", folder / name
            options = merge_options(experiment, recipe)
            write_recipe(recipe, path, out, options)
            merge(path, out, MergeOptions(quiet=True, **options), by_name=None)
            found[name] = mean(name, out)
    return found


def _made_from(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
