"""`ordermerge curve`: merges of k of a run's K orders, each made, scored and removed; and intervals over orders."""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from ordermerge.commands.plan import MergeStep, Plan, make_plan
from ordermerge.commands.recipes import write_recipe
from ordermerge.commands.temporary_merge import temporary_merge
from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError, did_you_mean
from ordermerge.eval.comparison.curve import FILE, Curve, Subset, curve_points
from ordermerge.eval.run_figures import curve_figure
from ordermerge.eval.scoring.saved import load_scores
from ordermerge.eval.scoring.score import evaluation_steps, score_models
from ordermerge.eval.scoring.table import Row
from ordermerge.files import write_json
from ordermerge.ingredients import ingredients_of
from ordermerge.provenance import versions
from ordermerge.run_directory import curve_folder, evaluation_folder, open_run, order_folder, order_name
from ordermerge.stages import Step, unfinished

SAMPLE = 20
Key = tuple[str, str, str]
Scores = dict[Key, Row]


@dataclass(frozen=True)
class SubsetMerges:
    """The merges of some of a merge's orders.

    Attributes:
        plan: The run's plan.
        merge: The step of the merge of all orders.
        orders: The orders in it, K of them.
        settings: What is asked of lm-eval.
    """

    plan: Plan
    merge: MergeStep
    orders: list[int]
    settings: EvaluationSection

    @property
    def folder(self) -> Path:
        """Holds their recipes, lm-eval's files and the curve."""
        return curve_folder(self.plan.run_directory, self.merge.name)

    def recipe_file(self, subset: Subset) -> Path:
        """Return the recipe of a subset.

        Args:
            subset: Places in `orders`.
        """
        return self.folder / "recipes" / f"{self.name(subset)}.yml"

    def name(self, subset: Subset) -> str:
        """Return the name of a subset's merge.

        Args:
            subset: Places in `orders`.
        """
        return "orders_" + "_".join(str(self.orders[place]) for place in subset)

    def recipe(self, subset: Subset) -> dict[str, Any]:
        """Return the mergekit recipe of a subset.

        Args:
            subset: Places in `orders`.
        """
        left_out = [self.orders[place] for place in range(len(self.orders)) if place not in subset]
        run = self.plan.run_directory
        return without_orders(self.merge.recipe, [order_folder(run, order) for order in left_out])

    def steps(self, subsets: Sequence[Subset]) -> list[Step]:
        """Return a step for each subset and task that its merge is to be scored on.

        Args:
            subsets: Places in `orders`.
        """
        trained = {step.name: step for step in self.plan.steps if step.stage == "train"}
        needs = {self.name(s): tuple(trained[order_name(self.orders[place])] for place in s) for s in subsets}
        recipes = {self.name(subset): self.recipe(subset) for subset in subsets}
        return [
            replace(step, inputs={**step.inputs, "recipe": recipes[step.name]})
            for step in evaluation_steps(needs, self.settings, self.folder / "eval")
        ]

    def scores(self, subset: Subset) -> Scores:
        """Return the scores of a subset's merge; of one order and of all orders they are those of the run.

        Args:
            subset: Places in `orders`, scored.
        """
        known = {1: order_name(self.orders[subset[0]]), len(self.orders): self.merge.name}
        if name := known.get(len(subset)):
            folder = evaluation_folder(self.plan.run_directory) / name
        else:
            folder = self.folder / "eval" / self.name(subset)
        return {(row.task, row.metric, row.filter): row for row in load_scores(folder, self.settings.tasks).rows}


def make_curve(run: Path, name: str | None = None, *, sample: int = SAMPLE, seed: int = 0) -> tuple[Plan, list[Curve]]:
    """Merge and score subsets of a run's orders, and write the curve; run again, it goes on where it was.

    Args:
        run: The run directory, with orders and merges scored.
        name: The merge; the first one, if not given.
        sample: Most subsets of one size; where there are more, so many are drawn.
        seed: Of the draw.

    Returns:
        The run's plan, and a curve for each score. `run/curve/MERGE/` has them as JSON, and a figure.

    Raises:
        UserError: If this is no run directory, the run is not finished, or the merge is unknown.
    """
    plan = make_plan(open_run(run), run.resolve())
    merges = subset_merges(plan, name)
    _require_scores(merges)
    count = len(merges.orders)
    subsets = [subset for size in range(2, count) for subset in choose_subsets(count, size, sample, seed)]
    by_name = merges.merge.by_name_reason is not None
    made, models = {}, {}
    for subset in subsets:
        file, called = merges.recipe_file(subset), merges.name(subset)
        write_recipe(merges.recipe(subset), file, Path(called), merges.merge.options, by_name=by_name)
        made[called] = partial(temporary_merge, file, merges.folder, called, merges.merge.options)
        models[called] = str(file)
    score_models(models, merges.settings, merges.folder / "eval", steps=merges.steps(subsets), made=made)
    everything = [*((place,) for place in range(count)), *subsets, tuple(range(count))]
    curves = list(_curves(merges.merge.name, {subset: merges.scores(subset) for subset in everything}))
    drawn = {"sample": sample, "seed": seed, "orders": merges.orders, "versions": versions()}
    write_json(merges.folder / FILE, {"curves": [asdict(curve) for curve in curves], **drawn})
    curve_figure(curves, merges.folder / "curve")
    return plan, curves


def subset_merges(plan: Plan, name: str | None = None) -> SubsetMerges:
    """Return what merges of some of a merge's orders need.

    Args:
        plan: The run's plan.
        name: The merge; the first one of the orders' ends, if not given.

    Raises:
        UserError: If the merge is unknown, of fewer than 2 orders or of checkpoints along the training, or nothing is
            scored in this run.
    """
    merges = {step.name: step for step in plan.steps if isinstance(step, MergeStep)}
    settings = plan.experiment.evaluation
    if not merges or settings is None:
        raise UserError(f"{plan.run_directory}: a curve needs `merges` and `evaluation` in the experiment")
    if name is not None and name not in merges:
        raise UserError(f"--merge {name}: no such merge in this run{did_you_mean(name, list(merges))}")
    of_ends = [one for one in merges if not ingredients_of(plan.experiment, one).along]
    name = name or next(iter(of_ends), next(iter(merges)))
    if name not in of_ends:
        raise UserError(
            f"--merge {name}: a curve adds order to order, and this merge adds checkpoints along the training; choose "
            f"a merge of the orders' ends ({', '.join(of_ends) or 'there is none in this run'})"
        )
    merge = merges[name]
    folders = {order: order_folder(plan.run_directory, order) for order in range(plan.experiment.count)}
    orders = [order for order in folders if len(_kept(merge.recipe, [folders[order]])) < len(merge.recipe["models"])]
    if len(orders) < 2:
        raise UserError(f"--merge {merge.name}: a curve takes a merge of at least 2 orders; it has {len(orders)}")
    return SubsetMerges(plan, merge, orders, settings.model_copy(update={"ensemble": False}))


def leave_one_out(plan: Plan) -> dict[str, list[Scores]]:
    """Return by merge its scores without each order in turn, of the merges that there are curves of.

    A curve of orders or tasks that have changed since is removed; the scores that still hold are kept for the next one.

    Args:
        plan: The run's plan.
    """
    found = {}
    for name in [step.name for step in plan.steps if isinstance(step, MergeStep)]:
        file = curve_folder(plan.run_directory, name) / FILE
        if not file.is_file():
            continue
        if ingredients_of(plan.experiment, name).along:  # it was of the orders' ends once
            file.unlink()
            continue
        merges = subset_merges(plan, name)
        count = len(merges.orders)
        subsets = list(combinations(range(count), count - 1))[::-1]  # the first lacks the first order
        if count > 2 and not _are_done(merges.steps(subsets)):
            file.unlink()
        elif count == plan.experiment.count:
            found[name] = [merges.scores(subset) for subset in subsets]
    return found


def without_orders(recipe: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """Return a mergekit recipe without the models in some folders; what is left keeps the whole weight.

    Methods that do not normalise their weights, such as `dare_ties`, would otherwise add less the fewer the models.

    Args:
        recipe: The whole recipe.
        folders: Of orders, whose models are left out, checkpoints below them included.
    """
    kept, parameters = _kept(recipe, folders), dict(recipe.get("parameters") or {})
    own: list[Any] = [(entry.get("parameters") or {}).get("weight") for entry in recipe["models"]]
    if all(_is_number(weight) for weight in own):
        left = [entry["parameters"]["weight"] for entry in kept]
        share = math.fsum(own) / math.fsum(left) if math.fsum(left) else 1.0
        kept = [
            {**entry, "parameters": {**entry["parameters"], "weight": entry["parameters"]["weight"] * share}}
            for entry in kept
        ]
    elif _is_number(parameters.get("weight")):
        parameters["weight"] *= len(recipe["models"]) / len(kept)
    return {**recipe, "models": kept, **({"parameters": parameters} if parameters else {})}


def choose_subsets(count: int, size: int, sample: int, seed: int) -> list[Subset]:
    """Return all subsets of a size, or so many drawn without repetition, in ascending order.

    Args:
        count: Of the whole.
        size: Of each subset.
        sample: Most subsets.
        seed: Of the draw.
    """
    if math.comb(count, size) <= sample:
        return list(combinations(range(count), size))
    draw = random.Random(f"{seed} {count} {size}")
    chosen: set[Subset] = set()
    while len(chosen) < sample:
        chosen.add(tuple(sorted(draw.sample(range(count), size))))
    return sorted(chosen)


def _kept(recipe: Mapping[str, Any], folders: Sequence[Path]) -> list[Any]:
    patterns = [re.compile(re.escape(str(folder)) + r"(?![^/'\"@+])") for folder in folders]
    return [entry for entry in recipe["models"] if not any(p.search(str(entry["model"])) for p in patterns)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_done(steps: Sequence[Step]) -> bool:
    try:
        return not unfinished(steps)
    except UserError:  # made from another experiment
        return False


def _require_scores(merges: SubsetMerges) -> None:
    names = [*(order_name(order) for order in merges.orders), merges.merge.name]
    steps = [step for step in merges.plan.steps if step.stage == "eval" and step.name in names]
    if missing := list(dict.fromkeys(step.name for step in unfinished(steps))):
        raise UserError(
            f"{merges.plan.run_directory}: {', '.join(missing)} not scored yet, or made anew since; `ordermerge run` "
            "scores what is missing"
        )


def _curves(merge: str, scores: Mapping[Subset, Scores]) -> Iterator[Curve]:
    count = max(map(len, scores))
    first = next(iter(scores.values()))
    for key, row in first.items():
        values = {subset: found[key].value for subset, found in scores.items() if key in found}
        if len(values) == len(scores):
            points = curve_points(values, count, [float(size) for size in range(1, count + 1)])
            yield Curve(merge, *key, row.higher_is_better, points)
