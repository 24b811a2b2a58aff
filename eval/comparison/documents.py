"""The values of each document from lm-eval's sample files, with the same documents of several models side by side."""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ordermerge.errors import UserError
from ordermerge.eval.scoring.calibration import Answer, Calibration, calibration, read_answer
from ordermerge.eval.scoring.saved import SavedScores
from ordermerge.eval.scoring.table import Row

# Reported means are recomputed from the documents' values; another order of adding up moves the last digits.
_TOLERANCE = 1e-9
NOT_A_MEAN = "its value is not a mean over documents"
NO_SAMPLES = "lm-eval saved no value of it for each document"
_HASHES = {"documents": "doc_hash", "targets": "target_hash", "prompts": "prompt_hash"}
# lm-eval's hashes of the document, its target and its prompt; and its number among documents that are alike.
Document = tuple[str, str, str, int]


@dataclass(frozen=True)
class PairedValues:
    """The values of several models on the same documents.

    Attributes:
        values: float64 [n, number of models], in the models' order; documents of one task stand together.
        strata: Documents of each task, summing to n: one task, or the sub-tasks of a group.
        shares: Weight of each task's mean in the score, summing to 1.
    """

    values: NDArray[np.float64]
    strata: list[int]
    shares: list[float]


@dataclass(frozen=True)
class ModelValues:
    """One model's values by task, (metric, filter) and document.

    Attributes:
        name: The model's name in tables and messages.
        saved: What lm-eval saved of the model.
        values: For each task, metric and filter the values by document; None stands for what is no number.
        documents: For each task its documents, in lm-eval's order.
        calibrations: Of the tasks of multiple choice.
    """

    name: str
    saved: SavedScores
    values: dict[tuple[str, str, str], dict[Document, float | None]] = field(default_factory=dict)
    documents: dict[str, list[Document]] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)

    @functools.cached_property
    def rows(self) -> dict[tuple[str, str, str], Row]:
        """The model's scores by task, metric and filter."""
        return {(row.task, row.metric, row.filter): row for row in self.saved.rows}


class NotPaired(Exception):
    """A metric cannot be compared document by document; the message says why."""


def read_values(name: str, saved: SavedScores) -> ModelValues:
    """Read a model's sample files.

    Args:
        name: The model's name in tables and messages.
        saved: What lm-eval saved of the model.

    Raises:
        UserError: If a sample file is missing or damaged.
    """
    model = ModelValues(name, saved)
    for task, path in saved.samples.items():
        answers: list[Answer | None] = []
        try:
            with open(path, encoding="utf-8") as file:
                lines = []
                for line in file:
                    sample = json.loads(line)
                    lines.append(_without_texts(sample))
                    answers += [read_answer(sample)] if task in saved.choices else []
            _add(model, task, lines)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise UserError(
                f"{path}: cannot be read as samples ({error!r}); delete its folder and score again"
            ) from None
        if told := [answer for answer in answers if answer is not None]:
            model.calibrations.extend([calibration(name, task, told)] if len(told) == len(answers) else [])
    return model


def common_scores(models: Sequence[ModelValues]) -> list[tuple[str, str, str]]:
    """Return the task, metric and filter of each score that all models have.

    Args:
        models: At least one.
    """
    return [key for key in models[0].rows if all(key in model.rows for model in models)]


def pair(models: Sequence[ModelValues], scores: Sequence[Row]) -> PairedValues:
    """Put the models' values on the same documents side by side.

    The mean of the values must be the score that lm-eval reports, for every model: that tells metrics which are means
    from those which are not (perplexity, BLEU, F1), and groups that weigh tasks by size from those that do not.

    Args:
        models: The models.
        scores: Their scores on one task or group, metric and filter.

    Raises:
        NotPaired: If there are no such values, or if the models were scored on different documents, or otherwise.
    """
    first = scores[0]
    leaves = models[0].saved.subtasks.get(first.task, [first.task])
    keys = [(leaf, first.metric, first.filter) for leaf in leaves]
    keys = [key for key in keys if any(key in model.values for model in models)]
    if not keys:
        raise NotPaired(NO_SAMPLES)
    for leaf, *_ in keys:
        if reason := mismatch(models, leaf):
            raise NotPaired(reason)
    parts = [_side_by_side(models, key) for key in keys]
    values, strata = np.concatenate(parts), [len(part) for part in parts]
    reported = np.array([score.value for score in scores])
    means = np.array([part.mean(axis=0) for part in parts])
    for shares in (np.array(strata) / len(values), np.full(len(parts), 1 / len(parts))):
        if np.allclose(shares @ means, reported, rtol=_TOLERANCE, atol=_TOLERANCE):
            return PairedValues(values, strata, shares.tolist())
    raise NotPaired(NOT_A_MEAN)


def mismatch(models: Sequence[ModelValues], task: str) -> str | None:
    """Return in one sentence how models were scored differently on a task, None if they were scored alike.

    Args:
        models: The models, all of which have the task.
        task: The task, not a group.
    """
    first, *others = models
    for other in others:
        who = f"{first.name} and {other.name} were scored"
        mine, theirs = first.saved.conditions.get(task, {}), other.saved.conditions.get(task, {})
        for what, value in mine.items():
            if value != theirs.get(what):
                return f"{who} on {task} with different {what} ({_short(value)} and {_short(theirs.get(what))})"
        here, there = first.documents.get(task, []), other.documents.get(task, [])
        if Counter(here) != Counter(there):
            differs = next(what for place, what in enumerate(_HASHES) if _hashes(here, place) != _hashes(there, place))
            preposition = "on" if differs == "documents" else "with"
            return f"{who} {preposition} different {differs} of {task}{_counts(here, there)}"
    return None


def _hashes(documents: Sequence[Document], place: int) -> Counter[tuple]:
    return Counter(document[: place + 1] for document in documents)


def _counts(here: Sequence[Document], there: Sequence[Document]) -> str:
    return "" if len(here) == len(there) else f" ({len(here):,} and {len(there):,})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _without_texts(sample: dict[str, Any]) -> dict[str, Any]:
    """Return what is needed of a sample: prompts and answers of a large task would fill the memory."""
    metrics = {metric: sample[metric] for metric in sample["metrics"]}
    hashes = tuple(sample.get(name, "") for name in _HASHES.values())
    return {"doc_id": sample["doc_id"], "filter": sample["filter"], "hashes": hashes, "metrics": metrics}


def _add(model: ModelValues, task: str, samples: list[dict[str, Any]]) -> None:
    """Add a task's values, its documents in lm-eval's order: several processes write them in another."""
    alike: Counter[tuple] = Counter()
    documents: dict[Document, None] = {}
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        kind = (sample["filter"], *sample["hashes"])
        document = (*sample["hashes"], alike[kind])
        alike[kind] += 1
        documents[document] = None
        for metric, value in sample["metrics"].items():
            number = float(value) if isinstance(value, int | float) and np.isfinite(value) else None
            model.values.setdefault((task, metric, sample["filter"]), {})[document] = number
    model.documents[task] = list(documents)


def _side_by_side(models: Sequence[ModelValues], key: tuple[str, str, str]) -> NDArray[np.float64]:
    """Return the values of one task, metric and filter, shape [n, number of models]."""
    columns = [model.values.get(key, {}) for model in models]
    for model, column in zip(models, columns, strict=True):
        if column.keys() != columns[0].keys():
            raise NotPaired(f"{models[0].name} and {model.name} have it on different documents of {key[0]}")
    if any(None in column.values() for column in columns):
        raise NotPaired(NOT_A_MEAN)
    return np.array([[column[document] for column in columns] for document in columns[0]], dtype=np.float64)
