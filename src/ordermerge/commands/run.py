"""`ordermerge run` and `train`: the whole chain over one run directory, nothing done twice."""

import os
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import click
import yaml
from mergekit.options import MergeOptions

from ordermerge.commands.finished import input_states, note_finished
from ordermerge.commands.merging import adapter_cache, merge
from ordermerge.commands.model_card import write_cards
from ordermerge.commands.plan import MergeStep, Plan, check_experiment, make_plan
from ordermerge.commands.prices import annealing_note, run_prices
from ordermerge.commands.recipes import complete_recipe, write_recipe
from ordermerge.commands.report import write_report
from ordermerge.commands.rounds import changes_of_round
from ordermerge.commands.run_comparison import compare_run
from ordermerge.config import STAGES
from ordermerge.config.changes import described
from ordermerge.config.load import load_experiment
from ordermerge.config.schema import LONGER, MADE_WITH, Experiment
from ordermerge.config.trainings import branched_price, control_runs, sub_models
from ordermerge.console import quiet
from ordermerge.errors import UserError, percent
from ordermerge.eval.comparison.record import FILE as COMPARISON
from ordermerge.eval.comparison.table import print_comparison
from ordermerge.eval.scoring.score import ScoringFailed, score_models
from ordermerge.eval.scoring.table import Row, print_table
from ordermerge.files import fingerprint, write_text
from ordermerge.folders import clear_dead, clear_leftovers
from ordermerge.locks import lock
from ordermerge.models import MERGE_MARKER
from ordermerge.progress import tell_load
from ordermerge.provenance import record
from ordermerge.run_directory import (
    EXPERIMENT,
    ORDER_RECORD,
    TRUNK,
    digests_kept,
    evaluation_folder,
    failure_noted,
    merge_folder,
    order_folder,
    recipe_file,
    scored_models,
)
from ordermerge.stages import Step, unfinished
from ordermerge.train.base_model import check_base
from ordermerge.train.distributed import on_main
from ordermerge.train.ray_executor import Resources, train_on_ray
from ordermerge.train.sft import check_training, choose_orders, train_orders, train_steps
from ordermerge.train.steps import TrainStep


def run_experiment(
    path: Path, runs_dir: Path, *, changes: Sequence[str] = (), force: str | None = None, dry_run: bool = False
) -> dict[str, Any] | None:
    """Do what of an experiment is not done yet, and write the report.

    Args:
        path: The experiment file.
        runs_dir: Holds the run directories.
        changes: Keys to set otherwise than the file does, `KEY=VALUE` each.
        force: A stage to do again; what needs it follows where it comes out different.
        dry_run: Check everything that can be checked, print the plan, and change nothing.

    Returns:
        The plan of a dry run, of the first round, as numbers and names.

    Raises:
        UserError: For problems in the experiment, and if something was made from another experiment.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by torchrun and `accelerate launch`
        raise UserError(
            "`ordermerge run` is for one process; train over several with `accelerate launch -m ordermerge train "
            f"{path}`, then start `ordermerge run` without a launcher: it goes on with the merges"
        )
    experiment = load_experiment(path, changes)
    rounds = experiment.rounds.count if experiment.rounds else 1
    for number in range(1, rounds + 1):
        own = [*changes, *changes_of_round(experiment, runs_dir, number)]
        current = load_experiment(path, own) if number > 1 else experiment
        plan, todo, read = _plan(current, path, runs_dir, own, force, dry_run)
        if dry_run:
            if rounds > 1:
                click.echo(f"  then {rounds - 1} more, each trained on from the merge before, in new orders", err=True)
            return _summary(plan, todo)
        if todo:
            tell_load()
            (evaluation_folder(plan.run_directory) / COMPARISON).unlink(missing_ok=True)  # of what was there before
        inputs = input_states(current, plan.run_directory, read)
        with failure_noted(plan.run_directory), quiet():
            _carry_out(plan, path, own, force)
        if rounds == 1:
            note_finished(current, path, plan.run_directory, own, plan=_plan_lines(plan, []), inputs=inputs)
    return None


def _plan(
    experiment: Experiment, path: Path, runs_dir: Path, changes: Sequence[str], force: str | None, dry_run: bool
) -> tuple[Plan, list[Step], set[str]]:
    """Print the plan of an experiment, or of one round of it; return it, what is to be done, and the files it read."""
    if problems := check_experiment(experiment, read_data=dry_run):
        raise UserError(problems, where=described(path, changes))
    run_directory = (runs_dir / experiment.name).resolve()
    with digests_kept(run_directory, write=not dry_run) as digests:
        plan = make_plan(experiment, run_directory)
        todo = plan.todo(force)
    for line in _plan_lines(plan, todo):
        click.echo(line, err=True)
    return plan, todo, {file for digest in digests.values() for file in digest["files"]}


def train_experiment(
    path: Path,
    runs_dir: Path,
    *,
    changes: Sequence[str] = (),
    only: int | str | None = None,
    on_ray: Resources | None = None,
) -> list[Path]:
    """Train an experiment's sub-models and controls, or one of them.

    Args:
        path: The experiment file.
        runs_dir: Holds the run directories.
        changes: Keys to set otherwise than the file does, `KEY=VALUE` each.
        only: The one order, or run of a control, to train.
        on_ray: Train on a Ray cluster, each order with these resources; here, one after another, if not given.

    Returns:
        The directories of the models.

    Raises:
        UserError: For problems in the parts of the experiment that training uses.
    """
    experiment = load_experiment(path, changes)
    if problems := check_training(experiment) or check_base(experiment):
        raise UserError(problems, where=described(path, changes))
    run_directory = (runs_dir / experiment.name).resolve()
    on_main(lambda: _begin_training(experiment, path, changes, run_directory, only))
    with failure_noted(run_directory):
        if on_ray is not None:
            return train_on_ray(experiment, run_directory, only=only, resources=on_ray)
        return train_orders(experiment, run_directory, only=only)


def _carry_out(plan: Plan, path: Path, changes: Sequence[str], force: str | None) -> None:
    for step in plan.anew(force):
        with lock(step.output):
            (step.output / step.marker).unlink(missing_ok=True)
            clear_leftovers(step.output)
    _write_resolved(plan.experiment, path, changes, plan.run_directory)
    rows: list[Row] = []
    for stage, steps in groupby(plan.steps, key=attrgetter("stage")):
        rows = _CARRY_OUT[stage](plan, list(steps)) or rows
    comparison = compare_run(plan) if rows else None
    write_cards(plan.run_directory)
    report = write_report(plan.run_directory)
    print_table(rows)
    if comparison:
        print_comparison(comparison)
    click.echo(f"report: {report}")


def _plan_lines(plan: Plan, todo: list[Step]) -> list[str]:
    """Return what is said of a plan: its steps by stage, what they cost, how merges are made."""
    experiment, lines = plan.experiment, [f"{plan.experiment.name}: {plan.run_directory}"]
    for stage in STAGES:
        names = dict.fromkeys(step.name for step in plan.steps if step.stage == stage)
        left = dict.fromkeys(step.name for step in todo if step.stage == stage)
        again = {step.name for step in todo if step.stage == stage and step.record() is not None}
        counts = {"done": len(names) - len(left), "made anew": len(again)}
        noted = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        lines.append(f"  {stage:5} {', '.join(left) or 'nothing to do'}{f' ({noted})' if noted else ''}")
    if isinstance(shared := experiment.orders.branch_at, float) and shared:
        cost = f"{branched_price(experiment.count, shared):.3g} trainings for {experiment.count} orders"
        lines.append(f"  price {cost}, which share the first {percent(shared)} of their steps")
    for step in todo:
        if isinstance(step, TrainStep) and step.training.control == LONGER and step.record() is not None:
            price = run_prices(experiment, plan.run_directory)[step.name].runs
            lines.append(f"  {step.name} is trained anew, as it costs what all orders cost: {price:.3g} trainings")
    if experiment.data.messages and experiment.evaluation and not experiment.evaluation.apply_chat_template:
        lines.append(
            "  warning: trained on chats (`data.messages`), scored without their template; "
            "`evaluation: {apply_chat_template: true}` asks as the chats do"
        )
    if note := annealing_note(experiment):
        lines.append(f"  {note}")
    reasons = (step.by_name_reason for step in todo if isinstance(step, MergeStep))
    if reason := next(filter(None, reasons), None):  # the models are the same in all of them
        lines.append(f"  merges are made by tensor name: {reason}")
    return lines


def _summary(plan: Plan, todo: list[Step]) -> dict[str, Any]:
    stages = {}
    for stage in STAGES:
        left = dict.fromkeys(step.name for step in todo if step.stage == stage)
        names = dict.fromkeys(step.name for step in plan.steps if step.stage == stage)
        stages[stage] = {"todo": list(left), "done": [name for name in names if name not in left]}
    return {"name": plan.experiment.name, "run": plan.run_directory, "trainings": plan.price(), "stages": stages}


def _begin_training(
    experiment: Experiment, path: Path, changes: Sequence[str], run_directory: Path, only: int | str | None
) -> None:
    """Refuse what training would refuse, and only then note what is trained."""
    with digests_kept(run_directory, write=True):
        left = unfinished(choose_orders(experiment, run_directory, only))
    if left:
        tell_load()
    _write_resolved(experiment, path, changes, run_directory)


def _write_resolved(experiment: Experiment, path: Path, changes: Sequence[str], run_directory: Path) -> None:
    """Note what the run is of, and remove what killed processes left, if nothing can go on with it."""
    resolved = experiment.model_dump(mode="json", exclude_none=True)
    noted = {"file": str(path.resolve()), "set": list(changes), **record(path.resolve().parent)}
    text = yaml.safe_dump({**resolved, MADE_WITH: noted}, sort_keys=False)
    with lock(run_directory / EXPERIMENT, wait=True):
        write_text(run_directory / EXPERIMENT, text)
    clear_dead(run_directory)
    trainings = [TRUNK, *(training.folder for training in [*sub_models(experiment), *control_runs(experiment)])]
    made = {order_folder(run_directory, 0).parent: (trainings, ORDER_RECORD)}
    made[merge_folder(run_directory, "")] = (list(experiment.merges), MERGE_MARKER)
    for place, (names, marker) in made.items():
        clear_dead(place, keep=[name for name in names if not (place / name / marker).exists()])


def _train(plan: Plan, steps: Sequence[Step]) -> None:
    train_steps(plan.experiment, cast(Sequence[TrainStep], steps))


def _merge(plan: Plan, steps: Sequence[Step]) -> None:
    # Once more: which checkpoints there are, and weights that come from validation losses, are known now.
    recipes = {step.name: complete_recipe(plan.experiment, plan.run_directory, step.name) for step in steps}
    with adapter_cache(plan.run_directory) as cache:
        for step in cast(Sequence[MergeStep], steps):
            recipe_path, recipe = recipe_file(plan.run_directory, step.name), recipes[step.name]
            by_name = step.by_name_reason is not None
            write_recipe(recipe, recipe_path, step.output, step.options, by_name=by_name)
            if step.is_done():
                continue
            click.echo(f"merging {step.name}", err=True)
            options = MergeOptions(quiet=True, lora_merge_cache=str(cache), **step.options)
            if merge(recipe_path, step.output, options, step=step, by_name=None) != by_name:  # adapters, made dense
                write_recipe(recipe, recipe_path, step.output, step.options, by_name=not by_name)
    _say_equal(steps)


def _say_equal(steps: Sequence[Step]) -> None:
    """Say which merges have the same weights as another: their recipes differ in nothing that mattered here."""
    equal: dict[str, list[str]] = {}
    for step in steps:
        if record := step.record():
            files = record.get("files", {}).items()
            weights = {name: of["sha256"] for name, of in files if name.endswith(".safetensors")}
            equal.setdefault(fingerprint(weights), []).append(step.name)
    for first, *others in equal.values():
        for other in others:
            click.echo(f"note: {other} is the same model as {first}, value by value", err=True)


def _score(plan: Plan, steps: Sequence[Step]) -> list[Row]:
    settings, models = plan.experiment.evaluation, scored_models(plan.experiment, plan.run_directory)
    assert settings is not None
    try:
        return score_models(models, settings, evaluation_folder(plan.run_directory), steps=steps)
    except ScoringFailed as error:
        print_table(error.rows)
        raise


_CARRY_OUT: dict[str, Callable[[Plan, Sequence[Step]], list[Row] | None]] = {
    "train": _train,
    "merge": _merge,
    "eval": _score,
}
