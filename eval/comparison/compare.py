"""Compares models on the same documents: a run's merged models with its single ones, or any models with a reference."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ordermerge.eval import statistics
from ordermerge.eval.comparison.documents import ModelValues, NotPaired, PairedValues, pair, read_values
from ordermerge.eval.comparison.record import Comparison, ComparisonReport, LeftOut, Reference, Spread
from ordermerge.eval.scoring.saved import load_scores
from ordermerge.eval.scoring.table import Row
from ordermerge.provenance import versions

METHODS = {
    "interval": "percentile bootstrap over documents, within each task of a group",
    "p_value": "two-sided sign-flip test of the paired differences",
    "p_value_holm": "Holm's correction over all comparisons of this file",
    "detectable": "normal approximation from the paired differences, before correction",
}
NO_DIRECTION = "lm-eval does not say whether more is better: no best {of}"
Key = tuple[str, str, str]
Pair = tuple[str, Reference, list[str]]
OverOrders = Callable[[Key, Mapping[str, Row], str, Sequence[str]], tuple[float, float] | None]


@dataclass(frozen=True)
class Design:
    """Which models are compared with which.

    Attributes:
        pairs: Given the score of each model on one task, metric and filter, yields each model with each reference, and
            the models behind that.
        sets: Sets of models that differ in one thing only, and in what.
        best_by: How a best model is chosen.
        best_of: Of what a best model by test score is wanted, None where none is.
        over_orders: Given a score, the models' scores, a model and those that it is compared with, returns the ends of
            the difference's interval over training orders, None where it cannot be told.
    """

    pairs: Callable[[Mapping[str, Row]], Iterator[Pair]]
    sets: list[tuple[Literal["orders", "seeds"], list[str]]] = field(default_factory=list)
    best_by: Literal["validation_loss", "test_score"] = "test_score"
    best_of: str | None = None
    over_orders: OverOrders | None = None


@dataclass(frozen=True)
class Roles:
    """The models that are compared.

    Attributes:
        single: The sub-models.
        repeats: Sets of sub-models that differ in nothing but the order; all, if not given.
        merged: The merged models.
        average: The merged model that is the weighted average, if there is one.
        draws: Sets of merged models that differ in nothing but the seed.
        validation_loss: Of each sub-model, to choose the best by; empty if there is none.
        controls: By merged model the controls of equal or lower price, each as the names of its runs.
        without: By merged model its scores without each sub-model in turn, where such merges were scored.
    """

    single: list[str]
    merged: list[str]
    average: str | None = None
    repeats: list[list[str]] = field(default_factory=list)
    draws: list[list[str]] = field(default_factory=list)
    validation_loss: dict[str, float] = field(default_factory=dict)
    controls: Mapping[str, Sequence[list[str]]] = field(default_factory=dict)
    without: Mapping[str, Sequence[Mapping[Key, Row]]] = field(default_factory=dict)

    @property
    def control_models(self) -> list[list[str]]:
        """All controls that merged models are compared with, each as the names of its runs."""
        return [list(runs) for runs in dict.fromkeys(tuple(runs) for found in self.controls.values() for runs in found)]

    @property
    def design(self) -> Design:
        """Every merged model against the mean and best of the single ones, the weighted average, and its controls."""
        return Design(
            self._pairs,
            sets=[
                *(("orders", models) for models in (*(self.repeats or [self.single]), *self.control_models)),
                *(("seeds", models) for models in self.draws),
            ],
            best_by="validation_loss" if self.validation_loss else "test_score",
            best_of=None if self.validation_loss else "single model",
            over_orders=self._over_orders,
        )

    def _pairs(self, scores: Mapping[str, Row]) -> Iterator[Pair]:
        best: str | None = None
        if len(self.single) == 1:
            pass  # the best is the mean
        elif self.validation_loss:
            best = min(self.single, key=self.validation_loss.__getitem__)
        else:
            best = best_model({name: scores[name] for name in self.single})
        for model in self.merged:
            yield model, "single_mean", self.single
            if best is not None:
                yield model, "single_best", [best]
            if self.average is not None and model != self.average:
                yield model, "weighted_average", [self.average]
            for runs in self.controls.get(model, ()):
                yield model, "control", runs

    def _over_orders(
        self, key: Key, scores: Mapping[str, Row], model: str, others: Sequence[str]
    ) -> tuple[float, float] | None:
        """Return the jackknife interval of a difference over orders, where merges without each order were scored."""
        whole = list(others) == self.single
        merges = {model} if whole else {model, *others}
        if not all(name in self.without and all(key in rows for rows in self.without[name]) for name in merges):
            return None  # among these the best single model: without it another one is the best
        values = []
        for place, order in enumerate(self.single):
            left = {name: scores[name].value for name in self.single if name != order} if whole else {}
            left |= {name: self.without[name][place][key].value for name in merges}
            behind = [left[name] for name in others if name != order]
            values.append(left[model] - float(np.mean(behind)))
        return statistics.jackknife_interval(scores[model].value - _mean(scores, others), values)


def against(models: Sequence[str], reference: str) -> Design:
    """Return the design that compares every model with one reference.

    Args:
        models: The models.
        reference: "mean" (of the models), "best" (of them, by the score itself), or the name of a model, which need not
            be one of them.
    """

    def pairs(scores: Mapping[str, Row]) -> Iterator[Pair]:
        best = best_model({name: scores[name] for name in models}) if reference == "best" else reference
        for model in models:
            if reference == "mean":
                yield model, "mean", list(models)
            elif best is not None and model != best:
                yield model, "best" if reference == "best" else "model", [best]

    return Design(pairs, best_of="model" if reference == "best" else None)


def compare_models(out: Path, roles: Roles, tasks: Iterable[str] | None = None) -> ComparisonReport:
    """Compare every merged model with the mean and the best of the single ones, and with the weighted average.

    Args:
        out: The folder that was given to `score_models`.
        roles: The models, all of them scored.
        tasks: As in `load_scores`.

    Returns:
        The comparisons, in the tasks' and the models' order.

    Raises:
        UserError: If lm-eval's files are missing or damaged.
    """
    asked = None if tasks is None else list(tasks)
    names = [*roles.single, *(name for runs in roles.control_models for name in runs), *roles.merged]
    return compare_values([read_values(name, load_scores(out / name, asked)) for name in names], roles.design, out)


def compare_values(models: Sequence[ModelValues], design: Design, start: Path) -> ComparisonReport:
    """Compare models as a design says, on every task, metric and filter that all of them have.

    Args:
        models: The models, each with what was read of its files.
        design: Which of them are compared with which.
        start: Where the paths of lm-eval's files are to start in the report.

    Returns:
        The comparisons, in the tasks' and the models' order.
    """
    names = [model.name for model in models]
    rows = {model.name: model.rows for model in models}
    found: list[Comparison] = []
    left_out: list[LeftOut] = []
    spreads: list[Spread] = []
    for key in dict.fromkeys(key for scores in rows.values() for key in scores):
        scores = {name: rows[name][key] for name in names if key in rows[name]}
        spreads += _spreads(key, scores, design)
        try:
            if len(scores) < len(names):
                raise NotPaired(f"{', '.join(name for name in names if name not in scores)} has no such score")
            found += _compare(pair(models, list(scores.values())), scores, design)
            if design.best_of and next(iter(scores.values())).higher_is_better is None:
                left_out.append(LeftOut(*key, NO_DIRECTION.format(of=design.best_of)))
        except NotPaired as reason:
            left_out.append(LeftOut(*key, str(reason)))
    corrected = statistics.holm([comparison.p_value for comparison in found])
    return ComparisonReport(
        comparisons=[replace(one, p_value_holm=p) for one, p in zip(found, corrected, strict=True)],
        spreads=spreads,
        left_out=left_out,
        best_single_by=design.best_by,
        limit=next((row.limit for model in models for row in model.saved.rows if row.limit is not None), None),
        confidence=statistics.LEVEL,
        power=statistics.POWER,
        resamples=statistics.RESAMPLES,
        seed=statistics.SEED,
        methods=METHODS,
        files={model.name: _files(model, start) for model in models},
        subtasks={group: leaves for model in models for group, leaves in model.saved.subtasks.items()},
        versions=versions(),
        calibration=[one for model in models for one in model.calibrations],
    )


def best_model(scores: Mapping[str, Row]) -> str | None:
    """Return the model with the best score, the first of several equal ones; None where no direction is known.

    Args:
        scores: Of each model, on one task, metric and filter.
    """
    higher = next(iter(scores.values())).higher_is_better
    if higher is None:
        return None
    return (max if higher else min)(scores, key=lambda name: scores[name].value)


def _compare(values: PairedValues, scores: Mapping[str, Row], design: Design) -> list[Comparison]:
    """Return the comparisons on one task and metric, not yet corrected for their number."""
    columns = {name: values.values[:, column] for column, name in enumerate(scores)}
    pairs = list(design.pairs(scores))
    if not pairs:
        return []
    differences = [columns[model] - np.mean([columns[name] for name in others], axis=0) for model, _, others in pairs]
    estimates = statistics.estimate(np.stack(differences, axis=1), values.strata, values.shares)
    found = []
    for (model, reference, others), estimate in zip(pairs, estimates, strict=True):
        row = scores[model]
        key = (row.task, row.metric, row.filter)
        found.append(
            Comparison(
                task=row.task,
                metric=row.metric,
                filter=row.filter,
                higher_is_better=row.higher_is_better,
                documents=len(values.values),
                model=model,
                reference=reference,
                reference_models=others,
                score=row.value,
                reference_score=_mean(scores, others),
                difference=estimate.difference,
                low=estimate.low,
                high=estimate.high,
                p_value=estimate.p_value,
                p_value_holm=estimate.p_value,
                p_value_exact=estimate.exact,
                detectable=estimate.detectable,
                orders=design.over_orders(key, scores, model, others) if design.over_orders else None,
            )
        )
    return found


def _spreads(key: Key, scores: Mapping[str, Row], design: Design) -> Iterator[Spread]:
    for over, models in design.sets:
        if len(models) > 1 and all(name in scores for name in models):
            deviation = float(np.std([scores[name].value for name in models], ddof=1))
            yield Spread(*key, over, models, _mean(scores, models), deviation)


def _mean(scores: Mapping[str, Row], models: Sequence[str]) -> float:
    return float(np.mean([scores[name].value for name in models]))


def _files(model: ModelValues, start: Path) -> dict[str, dict[str, str]]:
    saved = {"results": model.saved.results, "samples": model.saved.samples}
    return {
        kind: {task: Path(os.path.relpath(path, start)).as_posix() for task, path in paths.items()}
        for kind, paths in saved.items()
    }
