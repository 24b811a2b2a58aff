"""`ordermerge pareto`: merges in proportions that trade one task's score for another's, and the front of them.

MAP (Li et al., arXiv 2406.07529): some merges are scored, `surrogates` of the scores are fitted to them, and what these
promise is merged and scored too. What is written as the front is what was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ordermerge.commands.evaluate import evaluate_models
from ordermerge.commands.greedy import judged_rows
from ordermerge.commands.recipes import write_recipe
from ordermerge.commands.surrogates import (
    Array,
    Surrogate,
    fit_surrogate,
    not_dominated,
    parameter_count,
    sample_coefficients,
    search_front,
)
from ordermerge.commands.temporary_merge import is_recipe
from ordermerge.config.load import evaluation_section
from ordermerge.errors import UserError, percent
from ordermerge.eval.comparison.compare import against, compare_values
from ordermerge.eval.comparison.documents import read_values
from ordermerge.eval.front import Fit, Front, FrontPoint, Kind, front_figure
from ordermerge.eval.scoring.checks import check_evaluation
from ordermerge.eval.scoring.saved import load_scores
from ordermerge.eval.scoring.table import Row, column_title
from ordermerge.eval.statistics import LEVEL
from ordermerge.files import write_json
from ordermerge.locks import lock
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.models import model_names
from ordermerge.provenance import versions

FILE = "pareto.json"
Point = tuple[float, ...]  # the models' coefficients
_FORMS = {True: "sigmoid of a quadratic", False: "quadratic"}


@dataclass(frozen=True)
class ParetoSearch:
    """What makes and scores the merges of one search.

    Attributes:
        models: Name of each model, and its folder.
        base: The model that they were fine-tuned from.
        out: Folder of the search.
        settings: What is asked of lm-eval, with `tasks`.
        metrics: Which score of each task counts, as "metric" or "metric,filter"; None where it has just one.
        force: Whether to score anew.
    """

    models: Mapping[str, str]
    base: str
    out: Path
    settings: Mapping[str, Any]
    metrics: Sequence[str | None]
    force: bool = False

    def recipe(self, point: Point) -> dict[str, Any]:
        """Return the mergekit recipe of base + sum of coefficient x change.

        Args:
            point: The coefficients.
        """
        models = [
            {"model": str(Path(folder).absolute()), "parameters": {"weight": weight}}
            for folder, weight in zip(self.models.values(), point, strict=True)
        ]
        return {"merge_method": "task_arithmetic", "base_model": str(Path(self.base).absolute()), "models": models}

    def write(self, points: Sequence[Point], folder: Path) -> list[str]:
        """Write the points' recipes, and return the files.

        Args:
            points: The coefficients of each.
            folder: Where to.
        """
        files = [folder / f"{point_name(point)}.yml" for point in points]
        for point, file in zip(points, files, strict=True):
            write_recipe(self.recipe(point), file, Path(point_name(point)), {})
        return list(map(str, files))

    def score(self, points: Sequence[Point]) -> list[list[Row]]:
        """Merge and score points; what was scored before is not merged again.

        Args:
            points: The coefficients of each.

        Returns:
            For each point the score that counts of each task.

        Raises:
            UserError: If a merge cannot be scored, or a score does not count, or is no number.
        """
        if not points:
            return []
        rows = evaluate_models(
            self.write(points, self.out / "recipes"), self.out / "eval", self.settings, force=self.force
        )
        return [self._counted(list(of_one)) for _, of_one in groupby(rows, key=lambda row: row.model)]

    def _counted(self, rows: Sequence[Row]) -> list[Row]:
        found = []
        for task, metric in zip(self.settings["tasks"], self.metrics, strict=True):
            if task not in {row.task for row in rows}:
                raise UserError(f"--tasks: {task} has no score of its own, as tags and patterns have none; name tasks")
            found += judged_rows(rows, [task], metric)
        if bad := [row for row in found if not np.isfinite(row.value)]:
            raise UserError(
                f"{bad[0].model}: scores {bad[0].value} by {bad[0].metric} of {bad[0].task}, to which no surrogate can "
                "be fitted; choose another --metric"
            )
        return found

    def noise(self, points: Sequence[FrontPoint]) -> tuple[str | None, str | None]:
        """Return the point that is within noise of the best of every task, if any, and why that cannot be told.

        Args:
            points: On the front.
        """
        models = [
            read_values(point.name, load_scores(self.out / "eval" / point.scores[0].model, self.settings["tasks"]))
            for point in points
        ]
        report = compare_values(models, against([point.name for point in points], "best"), self.out)
        keys = {(row.task, row.metric, row.filter) for row in points[0].scores}
        for one in report.left_out:
            if (one.task, one.metric, one.filter) in keys:
                return None, f"Whether this front is noise cannot be told: {one.task} {one.metric}: {one.reason}."
        # Not corrected for their number: that would find the fewer trade-offs the more points there are.
        told = {
            one.model
            for one in report.comparisons
            if (one.task, one.metric, one.filter) in keys and not one.low <= 0 <= one.high
        }
        return next((point.name for point in points if point.name not in told), None), None


def find_front(search: ParetoSearch, *, samples: int | None = None, points: int = 10, seed: int = 0) -> Front:
    """Score samples, fit surrogates, score what these promise, and write the front.

    Writes `out/front/` (its recipes), `out/pareto.json` (all that was scored), a figure, `out/recipes/` and `out/eval/`
    (lm-eval's files). Run again after an interruption, it scores nothing twice.

    Args:
        search: What makes and scores the merges.
        samples: How many merges to fit to; twice the surrogate's parameters, if not given.
        points: Most that the surrogates are asked for.
        seed: Of the samples, and of the search.

    Returns:
        What was found.

    Raises:
        UserError: For problems of the models, the tasks or the metrics, and too few samples; and when a merge cannot be
            scored.
    """
    needed = parameter_count(len(search.models)) + 1
    count = samples or 2 * (needed - 1)
    if problems := _problems(search, count, needed):
        raise UserError(problems)
    with lock(search.out):
        drawn = list(
            dict.fromkeys(_as_points(sample_coefficients(len(search.models), count, seed)))
        )  # some round alike
        scored = [*search.score(drawn[:1]), *search.score(drawn[1:])]  # a wrong --metric is told after the first
        values = np.array([[row.value for row in rows] for rows in scored])
        surrogates = [fit_surrogate(np.array(drawn), column) for column in values.T]
        signs = [1 if row.higher_is_better else -1 for row in scored[0]]
        promised = [
            point
            for point in _as_points(search_front(surrogates, signs, len(search.models), points, seed))
            if point not in drawn
        ]
        scored += search.score(promised)
        found = _front(search, surrogates, [*drawn, *promised], scored)
        front = search.out / "front"
        for file in front.glob("*.yml"):  # of an earlier search
            file.unlink()
        search.write([point.coefficients for point in found.front], front)
        front_figure(found, search.out / "pareto")
        write_json(search.out / FILE, {**asdict(found), "seed": seed, "versions": versions()})
    return found


def _front(
    search: ParetoSearch, surrogates: Sequence[Surrogate], points: Sequence[Point], scored: Sequence[Sequence[Row]]
) -> Front:
    """Return what was found, of points that are the samples first."""
    signs = np.array([1 if row.higher_is_better else -1 for row in scored[0]])
    on_front = not_dominated(np.array([[row.value for row in rows] for rows in scored]) * signs)
    samples = len(surrogates[0].left_out)
    promised = np.array(points[samples:]).reshape(-1, len(search.models))
    predicted = np.column_stack([np.concatenate([one.left_out, one.predict(promised)]) for one in surrogates])
    kinds: list[Kind] = [
        "model alone" if place < len(search.models) else "sample" if place < samples else "promised"
        for place in range(len(points))
    ]
    found = [
        FrontPoint(point_name(point), kind, point, list(rows), guess.tolist(), bool(best))
        for point, kind, rows, guess, best in zip(points, kinds, scored, predicted, on_front, strict=True)
    ]
    fits = [
        Fit(column_title(row), _FORMS[one.bounded], one.parameters.tolist(), one.r_squared)
        for row, one in zip(scored[0], surrogates, strict=True)
    ]
    front = [point for point in found if point.on_front]
    alike, untold = (front[0].name, None) if len(front) == 1 else search.noise(front)
    apart = f"is within noise of the best of every task, by {percent(LEVEL)} intervals of the difference over documents"
    why = "is the best in every task" if len(front) == 1 else apart
    degenerate = f"The front is degenerate: {alike} {why}; there is no trade-off to choose from." if alike else None
    return Front(list(search.models), found, fits, samples, degenerate, untold)


def point_name(point: Point) -> str:
    """Return the name of a merge: its coefficients.

    Args:
        point: The coefficients.
    """
    return "_".join(f"{one:g}" for one in point)


def _as_points(coefficients: Array) -> list[Point]:
    return [tuple(line) for line in coefficients.tolist()]


def _problems(search: ParetoSearch, samples: int, needed: int) -> list[str]:
    """Return what can be found wrong before anything is scored."""
    tasks, count = search.settings["tasks"], len(search.models)
    if count < 2:
        return [f"a front is of merges of at least 2 models; got {count}"]
    if len(set(tasks)) < 2:
        return [f"--tasks: a front takes at least 2 tasks, between which to choose; got {len(set(tasks))}"]
    problems = [
        f"{model}: is a recipe, and coefficients multiply models that are there; merge it first: `ordermerge merge`"
        for model in (*search.models.values(), search.base)
        if is_recipe(model)
    ]
    if samples < needed:
        problems.append(
            f"--samples: a quadratic in the coefficients of {count} models has {needed - 1} parameters, which takes at "
            f"least {needed} samples; got {samples}"
        )
    if len(search.metrics) != len(tasks):
        problems.append(f"--metric: must be given once, or once for each of the {len(tasks)} tasks, in their order")
    if problems:
        return problems
    settings = evaluation_section({key: value for key, value in search.settings.items() if value not in (None, "")})
    problems = check_evaluation(settings, {**search.models, "base": search.base})
    return problems or check_recipe(search.recipe((1 / count,) * count))


def new_search(
    models: Sequence[str], base: str, out: Path, settings: Mapping[str, Any], metrics: Sequence[str], *, force: bool
) -> ParetoSearch:
    """Return a search as the command line describes it.

    Args:
        models: Folders.
        base: The base model's folder.
        out: Folder of the search.
        settings: As `evaluate_models` takes them.
        metrics: None, one for all tasks, or one for each.
        force: Whether to score anew.

    Raises:
        UserError: If a model is listed twice.
    """
    each = list(metrics) if len(metrics) > 1 else [*metrics, None][:1] * len(settings["tasks"])
    return ParetoSearch(model_names(models), base, out, settings, each, force)
