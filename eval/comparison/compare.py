"""Compares each merged model with the single ones and the weighted average, on the same documents."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
NO_DIRECTION = "lm-eval does not say whether more is better: no best single model"
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Roles:
    """The models that are compared.

    Attributes:
        single: The sub-models.
        merged: The merged models.
        average: The merged model that is the weighted average, if there is one.
        draws: Sets of merged models that differ in nothing but the seed.
        validation_loss: Of each sub-model, to choose the best by; empty if there is none.
    """

    single: list[str]
    merged: list[str]
    average: str | None = None
    draws: list[list[str]] = field(default_factory=list)
    validation_loss: dict[str, float] = field(default_factory=dict)


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
    names = [*roles.single, *roles.merged]
    models = [read_values(load_scores(out / name, asked)) for name in names]
    rows = {name: {_key(row): row for row in model.saved.rows} for name, model in zip(names, models, strict=True)}
    found: list[Comparison] = []
    left_out: list[LeftOut] = []
    spreads: list[Spread] = []
    for key in dict.fromkeys(key for scores in rows.values() for key in scores):
        scores = {name: rows[name][key] for name in names if key in rows[name]}
        spreads += _spreads(key, scores, roles)
        try:
            if len(scores) < len(names):
                raise NotPaired(f"{', '.join(name for name in names if name not in scores)} has no such score")
            found += _compare(pair(models, list(scores.values())), scores, roles)
            if _best_single(scores, roles) is None:
                left_out.append(LeftOut(*key, NO_DIRECTION))
        except NotPaired as reason:
            left_out.append(LeftOut(*key, str(reason)))
    corrected = statistics.holm([comparison.p_value for comparison in found])
    return ComparisonReport(
        comparisons=[replace(one, p_value_holm=p) for one, p in zip(found, corrected, strict=True)],
        spreads=spreads,
        left_out=left_out,
        best_single_by="validation_loss" if roles.validation_loss else "test_score",
        limit=next((row.limit for row in models[0].saved.rows), None),
        confidence=statistics.LEVEL,
        power=statistics.POWER,
        resamples=statistics.RESAMPLES,
        seed=statistics.SEED,
        methods=METHODS,
        files={name: _files(model, out) for name, model in zip(names, models, strict=True)},
        subtasks=models[0].saved.subtasks,
        versions=versions(),
    )


def _key(row: Row) -> Key:
    return row.task, row.metric, row.filter


def _compare(values: PairedValues, scores: Mapping[str, Row], roles: Roles) -> list[Comparison]:
    """Return the comparisons on one task and metric, not yet corrected for their number."""
    columns = {name: values.values[:, column] for column, name in enumerate(scores)}
    pairs = list(_pairs(scores, roles))
    differences = [columns[model] - np.mean([columns[name] for name in others], axis=0) for model, _, others in pairs]
    estimates = statistics.estimate(np.stack(differences, axis=1), values.strata, values.shares)
    found = []
    for (model, reference, others), estimate in zip(pairs, estimates, strict=True):
        row = scores[model]
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
            )
        )
    return found


def _pairs(scores: Mapping[str, Row], roles: Roles) -> Iterator[tuple[str, Reference, list[str]]]:
    """Yield each merged model with each reference, and the models behind that."""
    best = _best_single(scores, roles)
    for model in roles.merged:
        yield model, "single_mean", roles.single
        if best is not None:
            yield model, "single_best", [best]
        if roles.average is not None and model != roles.average:
            yield model, "weighted_average", [roles.average]


def _best_single(scores: Mapping[str, Row], roles: Roles) -> str | None:
    """Return the best sub-model: by validation loss, else by the score itself; the first of several equal ones."""
    if roles.validation_loss:
        return min(roles.single, key=roles.validation_loss.__getitem__)
    higher = scores[roles.single[0]].higher_is_better
    if higher is None:
        return None
    return (max if higher else min)(roles.single, key=lambda name: scores[name].value)


def _spreads(key: Key, scores: Mapping[str, Row], roles: Roles) -> Iterator[Spread]:
    sets: list[tuple[Literal["orders", "seeds"], list[str]]] = [
        ("orders", roles.single),
        *(("seeds", models) for models in roles.draws),
    ]
    for over, models in sets:
        if len(models) > 1 and all(name in scores for name in models):
            deviation = float(np.std([scores[name].value for name in models], ddof=1))
            yield Spread(*key, over, models, _mean(scores, models), deviation)


def _mean(scores: Mapping[str, Row], models: Sequence[str]) -> float:
    return float(np.mean([scores[name].value for name in models]))


def _files(model: ModelValues, out: Path) -> dict[str, dict[str, str]]:
    saved = {"results": model.saved.results, "samples": model.saved.samples}
    return {
        kind: {task: path.relative_to(out).as_posix() for task, path in paths.items()} for kind, paths in saved.items()
    }
