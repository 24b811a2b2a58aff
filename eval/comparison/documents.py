"""The values of each document from lm-eval's sample files, with the same documents of several models side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ordermerge.errors import UserError
from ordermerge.eval.scoring.saved import SavedScores
from ordermerge.eval.scoring.table import Row

# Reported means are recomputed from the documents' values; another order of adding up moves the last digits.
_TOLERANCE = 1e-9
NOT_A_MEAN = "its value is not a mean over documents"


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
        saved: What lm-eval saved of the model.
        values: For each task, metric and filter the values by document number; None stands for what is no number.
        hashes: For each task lm-eval's hash of each document.
    """

    saved: SavedScores
    values: dict[tuple[str, str, str], dict[int, float | None]]
    hashes: dict[str, dict[int, str]]


class NotPaired(Exception):
    """A metric cannot be compared document by document; the message says why."""


def read_values(saved: SavedScores) -> ModelValues:
    """Read a model's sample files.

    Args:
        saved: What lm-eval saved of the model.

    Raises:
        UserError: If a sample file is missing or damaged.
    """
    values: dict[tuple[str, str, str], dict[int, float | None]] = {}
    hashes: dict[str, dict[int, str]] = {}
    for task, path in saved.samples.items():
        try:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    _add(json.loads(line), task, values, hashes)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read as samples ({error!r}); delete its folder and score again"
            ) from None
    return ModelValues(saved, values, hashes)


def pair(models: Sequence[ModelValues], scores: Sequence[Row]) -> PairedValues:
    """Put the models' values on the same documents side by side.

    The mean of the values must be the score that lm-eval reports, for every model: that tells metrics which are means
    from those which are not (perplexity, BLEU, F1), and groups that weigh tasks by size from those that do not.

    Args:
        models: The models.
        scores: Their scores on one task or group, metric and filter.

    Raises:
        NotPaired: If there are no such values, or if the models were scored on different documents.
    """
    first = scores[0]
    leaves = models[0].saved.subtasks.get(first.task, [first.task])
    keys = [(leaf, first.metric, first.filter) for leaf in leaves]
    keys = [key for key in keys if any(key in model.values for model in models)]
    if not keys:
        raise NotPaired("lm-eval saved no value of it for each document")
    parts = [_side_by_side(models, key) for key in keys]
    values, strata = np.concatenate(parts), [len(part) for part in parts]
    reported = np.array([score.value for score in scores])
    means = np.array([part.mean(axis=0) for part in parts])
    for shares in (np.array(strata) / len(values), np.full(len(parts), 1 / len(parts))):
        if np.allclose(shares @ means, reported, rtol=_TOLERANCE, atol=_TOLERANCE):
            return PairedValues(values, strata, shares.tolist())
    raise NotPaired(NOT_A_MEAN)


def _add(
    sample: dict[str, Any],
    task: str,
    values: dict[tuple[str, str, str], dict[int, float | None]],
    hashes: dict[str, dict[int, str]],
) -> None:
    document = sample["doc_id"]
    hashes.setdefault(task, {})[document] = sample["doc_hash"]
    for metric in sample["metrics"]:
        value = sample[metric]
        number = float(value) if isinstance(value, int | float) and np.isfinite(value) else None
        values.setdefault((task, metric, sample["filter"]), {})[document] = number


def _side_by_side(models: Sequence[ModelValues], key: tuple[str, str, str]) -> NDArray[np.float64]:
    """Return the values of one task, metric and filter, shape [n, number of models]."""
    task = key[0]
    columns = [model.values.get(key, {}) for model in models]
    documents = sorted(columns[0])
    for model, column in zip(models, columns, strict=True):
        hashes, expected = model.hashes.get(task, {}), models[0].hashes[task]
        if sorted(column) != documents or any(hashes[number] != expected[number] for number in documents):
            raise NotPaired(f"the models were not scored on the same documents of {task}")
    if any(None in column.values() for column in columns):
        raise NotPaired(NOT_A_MEAN)
    return np.array([[column[number] for column in columns] for number in documents], dtype=np.float64)
