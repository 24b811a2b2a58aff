"""Greedy choice of what goes into a merge, given a score.

Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time (ICML 2022, arXiv 2203.05482), Recipe 1. Theirs adds a model that leaves the score as it was; ours does
not: of two soups that score alike, the smaller one stays.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ordermerge.errors import UserError
from ordermerge.eval.scoring.table import Row


@dataclass(frozen=True)
class Trial:
    """One soup that was tried.

    Attributes:
        ingredients: Its models, in the order they were added.
        score: Its validation score; higher is better.
        kept: Whether it was the best until then, and the next one was built on it.
    """

    ingredients: tuple[str, ...]
    score: float
    kept: bool


def greedy(names: Sequence[str], score: Callable[[tuple[str, ...]], float]) -> list[Trial]:
    """Choose models by adding one at a time, best single score first, and keeping each that raises the score.

    Of models that score alike, the one listed first is tried first. A score of NaN is the worst.

    Args:
        names: The models, at least one.
        score: Returns the validation score of a soup; higher is better. It is called once for each model alone, in
            the order given, and then once for each model after the best.

    Returns:
        Every trial: the models alone, best first, and then the soups. The last one kept is the choice.
    """
    alone = {name: score((name,)) for name in names}
    best, *others = sorted(names, key=lambda name: (math.isnan(alone[name]), -alone[name]))
    chosen = Trial((best,), alone[best], kept=True)
    trials = [chosen, *(Trial((name,), alone[name], kept=False) for name in others)]
    for name in others:
        ingredients = (*chosen.ingredients, name)
        value = score(ingredients)
        trial = Trial(ingredients, value, kept=value > chosen.score)
        trials.append(trial)
        chosen = trial if trial.kept else chosen
    return trials


def single_score(rows: Sequence[Row], tasks: Sequence[str], metric: str | None) -> tuple[float, bool]:
    """Return the one number that a model is judged by, and whether higher is better.

    Args:
        rows: The scores of one model.
        tasks: As in `judged_rows`.
        metric: As in `judged_rows`.

    Returns:
        The mean of that score over the tasks.

    Raises:
        UserError: As `judged_rows`.
    """
    found = judged_rows(rows, tasks, metric)
    return sum(row.value for row in found) / len(found), bool(found[0].higher_is_better)


def judged_rows(rows: Sequence[Row], tasks: Sequence[str], metric: str | None) -> list[Row]:
    """Return the scores that a model is judged by, one a task, all of one direction.

    Args:
        rows: The scores of one model.
        tasks: The tasks asked for; the scores of a group's members do not count where the group has its own.
        metric: Which score counts, as "metric" or lm-eval's "metric,filter"; None if there is just one.

    Raises:
        UserError: If the metric is unknown, or not named where there are several, or of no or of different direction.
    """
    asked = [row for row in rows if row.task in tasks] or list(rows)
    found = [row for row in asked if metric in (None, row.metric, f"{row.metric},{row.filter}")]
    known = list(dict.fromkeys(f"{row.metric},{row.filter}" for row in asked))
    used = {f"{row.metric},{row.filter}" for row in found}
    if len(used) != 1 or {row.task for row in found} != {row.task for row in asked}:
        got = "none was named" if metric is None else f"got {metric!r}"
        raise UserError(f"--metric: must name one score that every task has: {' or '.join(known)}; {got}")
    directions = {row.higher_is_better for row in found}
    if directions not in ({True}, {False}):
        raise UserError(f"--metric: {used.pop()}: the tasks do not say, or not alike, whether higher is better")
    return found
