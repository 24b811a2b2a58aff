"""The plan of an experiment: its problems, its steps, which of its models is compared with which."""

import json
from pathlib import Path
from typing import Any

from ordermerge.commands.recipes import complete_recipe
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.eval.comparison.compare import Roles
from ordermerge.eval.scoring.checks import check_evaluation
from ordermerge.eval.scoring.score import evaluation_steps
from ordermerge.files import fingerprint
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.models import MERGE_MARKER, identity, model_problem
from ordermerge.run_directory import BASE
from ordermerge.stages import Step
from ordermerge.train.samples import check_data, data_file, load_samples
from ordermerge.train.sft import check_training, order_steps

AVERAGE_METHOD = "linear"


def check_experiment(experiment: Experiment, *, read_data: bool = True) -> list[str]:
    """Return every problem of an experiment that can be found before anything is made.

    Nothing is looked up on the hub.

    Args:
        experiment: The experiment.
        read_data: Whether to read local training data too, which training itself would do soon after.
    """
    problems = check_training(experiment)
    if problem := model_problem(experiment.model.path, "hf"):
        problems.append(f"`model.path`: {problem}")
    if read_data and not check_data(experiment) and data_file(experiment, "train"):
        try:
            load_samples(experiment)
        except UserError as error:
            problems += error.problems
    for name in experiment.merges:
        if name == BASE or name.startswith("order_"):
            problems.append(f"merges.{name}: this name is taken by the unmerged models; choose another")
        if "models" in experiment.merges[name]:
            problems.append(f"merges.{name}: leave out `models`; `run` fills in the sub-models")
        try:
            recipe = complete_recipe(experiment, Path(), name)
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        problems += [f"merges.{name}: {problem}" for problem in check_recipe(recipe, models_exist=False)]
    if experiment.evaluation:
        problems += [f"evaluation: {problem}" for problem in check_evaluation(experiment.evaluation)]
    return problems


def plan(experiment: Experiment, run_directory: Path) -> list[Step]:
    """Return all steps of an experiment, in the order they are done in.

    A step's inputs hold the fingerprints of the inputs of the steps it builds on, not of their outputs.

    Args:
        experiment: The experiment.
        run_directory: Its run directory.
    """
    base = identity(experiment.model.reference)
    orders = order_steps(experiment, run_directory)
    trained = [fingerprint(step.inputs) for step in orders]
    merges = []
    for name, given in experiment.merges.items():
        uses_base = "base_model" in complete_recipe(experiment, run_directory, name)
        inputs = {"recipe": given, "dtype": experiment.model.dtype, "orders": trained}
        if uses_base:
            inputs["base"] = base
        merges.append(Step("merge", name, run_directory / "merges" / name, MERGE_MARKER, inputs))
    if not experiment.evaluation:
        return [*orders, *merges]
    models = {BASE: base, **{step.name: {"made_from": fingerprint(step.inputs)} for step in (*orders, *merges)}}
    scored = evaluation_steps(models, experiment.evaluation, run_directory / "eval")
    return [*orders, *merges, *scored]


def model_roles(experiment: Experiment, run_directory: Path) -> Roles:
    """Return the roles of an experiment's models.

    The weighted average is the first merge with mergekit's method `linear`. The best sub-model is chosen by the last
    validation loss of its training, if all have one (`data.validation`, and `eval_strategy` in `sft`).

    Args:
        experiment: The experiment.
        run_directory: Its run directory, with the orders trained.
    """
    single = [f"order_{k}" for k in range(experiment.orders.count)]
    folders = [run_directory / "orders" / str(k) for k in range(experiment.orders.count)]
    last = {name: _last_loss(folder) for name, folder in zip(single, folders, strict=True)}
    losses = {name: loss for name, loss in last.items() if loss is not None}
    averages = [name for name, recipe in experiment.merges.items() if recipe.get("merge_method") == AVERAGE_METHOD]
    return Roles(
        single=single,
        merged=list(experiment.merges),
        average=next(iter(averages), None),
        draws=_draws(experiment.merges),
        validation_loss=losses if len(losses) == len(single) else {},
    )


def _last_loss(folder: Path) -> float | None:
    record = json.loads((folder / "order" / "order.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in record.get("eval_losses", [])]
    return losses[-1] if losses else None


def _draws(merges: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the sets of merges whose recipes differ in nothing but `parameters.seed`."""
    sets: dict[str, dict[Any, str]] = {}
    for name, recipe in merges.items():
        parameters = dict(recipe.get("parameters") or {})
        seed = parameters.pop("seed", 0)
        sets.setdefault(fingerprint({**recipe, "parameters": parameters}), {}).setdefault(str(seed), name)
    return [list(names.values()) for names in sets.values() if len(names) > 1]
