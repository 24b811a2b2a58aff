"""The plan of an experiment: its problems, its steps, which of its models is compared with which."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from ordermerge.commands.prices import controls_within, run_prices
from ordermerge.commands.recipes import complete_recipe, merge_options
from ordermerge.commands.rounds import check_rounds
from ordermerge.config import STAGES
from ordermerge.config.schema import Experiment
from ordermerge.config.trainings import branched_price, control_runs
from ordermerge.errors import UserError
from ordermerge.eval.comparison.compare import Roles
from ordermerge.eval.comparison.record import FILE as COMPARISON
from ordermerge.eval.scoring.checks import check_evaluation
from ordermerge.eval.scoring.score import evaluation_steps
from ordermerge.files import fingerprint
from ordermerge.ingredients import ingredients_of
from ordermerge.merge_methods.recipe_check.check import check_recipe, recipe_fit
from ordermerge.models import MERGE_MARKER, identity, is_offline, model_folder, model_problem
from ordermerge.run_directory import (
    BASE,
    ENSEMBLE,
    evaluation_folder,
    last_validation_loss,
    merge_folder,
    order_folder,
    order_name,
)
from ordermerge.stages import MadeOtherwise, Step, unfinished
from ordermerge.train.base_model import check_base, is_within_reach
from ordermerge.train.samples import check_data, data_file, load_samples
from ordermerge.train.sft import check_training, order_steps
from ordermerge.train.tokenized import check_samples

AVERAGE_METHOD = "linear"


def check_experiment(experiment: Experiment, *, read_data: bool = True) -> list[str]:
    """Return every problem of an experiment that can be found before anything is made.

    Nothing is looked up on the hub.

    Args:
        experiment: The experiment.
        read_data: Whether to read local training data too, which training itself would do soon after.
    """
    problems = [*check_training(experiment), *check_rounds(experiment)]
    there = {BASE: experiment.model.reference}
    cached = model_folder(experiment.model.reference)
    if problem := model_problem(str(cached or experiment.model.path), "hf"):
        there = {}
        problems.append(f"`model.path`: {problem}")
    problems = problems or check_base(experiment)
    if read_data and not problems and is_within_reach(experiment) and (is_offline() or data_file(experiment, "train")):
        problems += check_samples(experiment)
    elif read_data and not check_data(experiment) and data_file(experiment, "train"):
        try:
            load_samples(experiment)
        except UserError as error:
            problems += error.problems
    for name in experiment.merges:
        if name in (BASE, ENSEMBLE, COMPARISON) or name.startswith("order_"):
            problems.append(f"merges.{name}: this name is taken by something else; choose another")
        if "models" in experiment.merges[name]:
            problems.append(f"merges.{name}: leave out `models`; `run` fills in the sub-models")
        try:
            recipe = complete_recipe(experiment, Path(), name, planned=True)
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        options = MergeOptions(**merge_options(experiment, recipe))
        found = check_recipe(recipe, models_exist=False, options=options, by_name=None, stand_in=there.get(BASE))
        if "validation_loss" in (experiment.merges[name].get("weights") or ()) and not _validates(experiment):
            problems.append(
                f"merges.{name}.weights: needs a validation loss of each order; give `data.validation`, and "
                "`sft.eval_strategy: epoch`"
            )
        problems += [f"merges.{name}: {problem}" for problem in found]
    if experiment.evaluation:
        problems += [f"evaluation: {problem}" for problem in check_evaluation(experiment.evaluation, there)]
    return problems


@dataclass(frozen=True)
class MergeStep(Step):
    """The step that makes one merge.

    Attributes:
        recipe: Its whole mergekit recipe.
        options: mergekit's options that it needs.
        stand_in: A model that represents the sub-models that are not there yet: the base model.
    """

    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    stand_in: str | None = None

    @cached_property
    def by_name_reason(self) -> str | None:
        """Why it is to be merged by tensor name; None if mergekit's tables will do."""
        config = MergeConfiguration.model_validate(self.recipe)
        return next(iter(recipe_fit(config, MergeOptions(**self.options), stand_in=self.stand_in).table), None)


@dataclass(frozen=True)
class Plan:
    """All steps of an experiment.

    Attributes:
        experiment: The experiment.
        run_directory: Its run directory.
        steps: Each after those that it needs.
    """

    experiment: Experiment
    run_directory: Path
    steps: list[Step]

    def todo(self, force: str | None = None) -> list[Step]:
        """Return the steps to do: those that are not done, those that are forced, and those that need one of these.

        What needs a step that comes out as it was before is not done again after all.

        Args:
            force: A stage of which all steps are to be done again.

        Raises:
            UserError: If steps were done from other inputs, about all of those together.
        """
        try:
            names = {id(step) for step in unfinished(self.steps, force)}
        except MadeOtherwise as error:
            raise MadeOtherwise(error.changed, self.steps, self._remedy(error)) from None
        for step in self.steps:
            if any(id(need) in names for need in step.needs):
                names.add(id(step))
        return [step for step in self.steps if id(step) in names]

    def _remedy(self, error: MadeOtherwise) -> str:
        """Return how to get on after an edit, with the price if that is training."""
        stage = min((step.stage for step, _ in error.changed), key=STAGES.index)
        price = f" ({self.price():.3g} trainings)" if stage == STAGES[0] else ""
        if any(phrase.startswith("orders.count:") for _, phrases in error.changed for phrase in phrases):
            strategy = self.experiment.orders.strategy
            price += f"; with `strategy: {strategy}` every order depends on how many there are"
        return f"`--force {stage}` makes that anew{price}; another `name` in the experiment keeps it"

    def price(self) -> float:
        """Return what all orders and controls cost together, in trainings of one order."""
        prices, at = run_prices(self.experiment, self.run_directory), self.experiment.orders.branch_at
        controls = sum(prices[run.folder].runs for run in control_runs(self.experiment))
        return controls + branched_price(self.experiment.count, at if isinstance(at, float) else 0.0)

    def anew(self, force: str | None) -> list[Step]:
        """Return the steps that are made anew whatever has been made: the forced ones, later ones made otherwise.

        Args:
            force: A stage of which all steps are to be done again.
        """
        later = STAGES[STAGES.index(force) + 1 :] if force else ()
        return [step for step in self.steps if step.stage == force or (step.stage in later and step.is_otherwise())]


def make_plan(experiment: Experiment, run_directory: Path) -> Plan:
    """Return all that an experiment amounts to.

    Args:
        experiment: The experiment.
        run_directory: Its run directory.
    """
    base, evaluation = experiment.model.reference, experiment.evaluation
    trained = order_steps(experiment, run_directory)
    orders = [step for step in trained if step.training.control is None]
    merges = [_merge_step(experiment, run_directory, name, orders) for name in experiment.merges]
    models_made: list[Step] = [*trained, *merges]
    steps = [*orders[0].needs, *models_made]
    if evaluation:
        models: dict[str, dict[str, Any] | Step | tuple[Step, ...]] = {BASE: identity(base)}
        models |= {step.name: step for step in models_made}
        models |= {ENSEMBLE: tuple(orders)} if evaluation.ensemble else {}
        steps += evaluation_steps(models, evaluation, evaluation_folder(run_directory))
    return Plan(experiment, run_directory, steps)


def _merge_step(experiment: Experiment, run_directory: Path, name: str, orders: Sequence[Step]) -> MergeStep:
    """Return the step of a merge: made from its orders, its part of the experiment, and what its base model holds."""
    recipe = complete_recipe(experiment, run_directory, name, planned=True)
    given = {key: value for key, value in experiment.merges[name].items() if key != "base_model"}
    inputs: dict[str, Any] = {"recipe": given, "dtype": experiment.model.dtype}
    keys = {"recipe.": f"merges.{name}.", "dtype": "model.dtype", "base": "model.path"}
    if "base_model" in recipe:
        inputs["base"] = identity(str(experiment.merges[name].get("base_model") or experiment.model.reference))
    out, options = merge_folder(run_directory, name), merge_options(experiment, recipe)
    needs = tuple(orders[order] for order in ingredients_of(experiment, name).orders)
    base = experiment.model.reference
    return MergeStep("merge", name, out, MERGE_MARKER, inputs, needs, keys, recipe, options, base)


def model_roles(experiment: Experiment, run_directory: Path) -> Roles:
    """Return the roles of an experiment's models.

    The weighted average is the first merge with mergekit's method `linear` and without `ingredients`. The best
    sub-model is chosen by the last validation loss of its training, if all have one (`data.validation`, and
    `eval_strategy` in `sft`).

    Args:
        experiment: The experiment.
        run_directory: Its run directory, with the orders trained.
    """
    orders = range(experiment.count)
    single, folders = [order_name(k) for k in orders], [order_folder(run_directory, k) for k in orders]
    last = {name: last_validation_loss(folder) for name, folder in zip(single, folders, strict=True)}
    losses = {name: loss for name, loss in last.items() if loss is not None}
    count, prices = experiment.orders.count, run_prices(experiment, run_directory)
    linear = [name for name, recipe in experiment.merges.items() if recipe.get("merge_method") == AVERAGE_METHOD]
    averages = [name for name in linear if "ingredients" not in experiment.merges[name]]
    merged = [*experiment.merges, *([ENSEMBLE] if experiment.evaluation and experiment.evaluation.ensemble else [])]
    return Roles(
        single=single,
        merged=merged,
        repeats=[single[start : start + count] for start in range(0, len(single), count)],
        controls={name: controls_within(experiment, prices, prices[name].runs) for name in merged},
        average=next(iter(averages), None),
        draws=_draws(experiment.merges),
        validation_loss=losses if len(losses) == len(single) else {},
    )


def _validates(experiment: Experiment) -> bool:
    return experiment.data.has_validation and experiment.sft.get("eval_strategy", "no") not in ("no", False)


def _draws(merges: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the sets of merges whose recipes differ in nothing but `parameters.seed`."""
    sets: dict[str, dict[Any, str]] = {}
    for name, recipe in merges.items():
        parameters = dict(recipe.get("parameters") or {})
        seed = parameters.pop("seed", 0)
        sets.setdefault(fingerprint({**recipe, "parameters": parameters}), {}).setdefault(str(seed), name)
    return [list(names.values()) for names in sets.values() if len(names) > 1]
