"""Calibration of multiple-choice answers: expected calibration error and Brier score, from lm-eval's samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ordermerge.eval.scoring.table import digits
from ordermerge.eval.tables import print_columns

BINS = 15
HEADER = ("model", "task", "documents", "accuracy ↑", "calibration error ↓", "Brier score ↓")
NOTE = (
    "Calibration of multiple choice: each choice's probability is its share of exp(log-likelihood). Calibration "
    f"error: mean distance of accuracy and confidence over {BINS} bins of confidence. Brier score: 0 to 2."
)


@dataclass(frozen=True)
class Calibration:
    """How well a model's confidence fits its answers on one task of multiple choice.

    Attributes:
        model: The model's name in tables.
        task: The task.
        documents: How many.
        accuracy: Share of documents whose most probable choice is right.
        calibration_error: Expected calibration error over `BINS` bins of equal width.
        brier_score: Mean squared distance of the probabilities from the right answer, summed over the choices: 0 to 2.
    """

    model: str
    task: str
    documents: int
    accuracy: float
    calibration_error: float
    brier_score: float


@dataclass(frozen=True)
class Answer:
    """The answer to one document of multiple choice.

    Attributes:
        confidence: Probability of the most probable choice.
        right: Whether that is the right one.
        brier: Squared distance of the probabilities from the right answer, summed over the choices.
    """

    confidence: float
    right: bool
    brier: float


def read_answer(sample: Mapping[str, Any]) -> Answer | None:
    """Return the answer in one of lm-eval's samples of a task of multiple choice.

    The probabilities are the softmax of the choices' log-likelihoods, not normalised by length: those that `acc` goes
    by. lm-eval saves the right answer as an index or as the text of a choice; which, is told by `acc`.

    Args:
        sample: A line of lm-eval's sample file.

    Returns:
        The answer, or None where the sample does not tell: several right answers, or no `acc`.
    """
    if "acc" not in sample or not isinstance(sample["arguments"], Mapping):
        return None
    choices = [str(arguments["arg_1"]).strip() for arguments in sample["arguments"].values()]
    if len(sample["filtered_resps"]) != len(set(choices)):
        return None
    logs = np.array([float(response[0]) for response in sample["filtered_resps"]])
    best, target = int(logs.argmax()), str(sample["target"]).strip()
    meant = [int(target)] if target.isdecimal() and int(target) < len(choices) else []
    meant += [choices.index(target)] if target in choices else []
    right = next((index for index in meant if (index == best) == bool(sample["acc"])), None)
    if right is None or not np.isfinite(logs).all():
        return None
    chances = np.exp(logs - logs.max())
    chances /= chances.sum()
    distance = chances - np.eye(len(chances))[right]
    return Answer(float(chances[best]), best == right, float(distance @ distance))


def calibration(model: str, task: str, answers: Sequence[Answer]) -> Calibration:
    """Return how well a model's confidence fits its answers.

    The expected calibration error is that of Guo et al. (ICML 2017, arXiv 1706.04599, equation 3), the Brier score the
    original one over all choices (Brier, 1950), as in lm-eval.

    Args:
        model: The model's name in tables.
        task: The task.
        answers: At least one.
    """
    confidence = np.array([answer.confidence for answer in answers])
    right = np.array([float(answer.right) for answer in answers])
    error = expected_calibration_error(confidence, right)
    brier = float(np.mean([answer.brier for answer in answers]))
    return Calibration(model, task, len(answers), float(right.mean()), error, brier)


def expected_calibration_error(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Return the mean distance of accuracy and confidence over bins of confidence, weighted by their documents.

    Args:
        confidence: Probability of the answer given, shape [n], 0 to 1.
        right: 1 where it is right, else 0; shape [n].
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_cells(found: Sequence[Calibration]) -> list[list[str]]:
    """Return the lines of a table under `HEADER`.

    Args:
        found: What it shows.
    """
    return [
        [
            one.model,
            one.task,
            f"{one.documents:,}",
            *map(digits, (one.accuracy, one.calibration_error, one.brier_score)),
        ]
        for one in found
    ]


def print_calibration(found: Sequence[Calibration], file: IO[str] | None = None) -> None:
    """Print the table; nothing of no tasks of multiple choice.

    Args:
        found: What it shows.
        file: Where to print; standard output if not given.
    """
    if found:
        print_columns(HEADER, calibration_cells(found), [NOTE], file)
