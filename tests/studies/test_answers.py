"""The statistics of the studies: intervals over families and documents, on planted data."""

import answers
import numpy as np
import pytest
from scipy.stats import t


def planted(draw: np.random.Generator, families: int, documents: int) -> np.ndarray:
    """Return differences whose truth is .1, with an effect of each family, of each document, and noise."""
    of_family, of_document = draw.normal(0, 0.05, (families, 1)), draw.normal(0, 0.5, documents)
    return 0.1 + of_family + of_document + draw.normal(0, 0.3, (families, documents))


def test_families_that_agree_by_chance_leave_the_error_of_the_documents() -> None:
    draw = np.random.default_rng(0)
    values = np.round(draw.normal(0, 1, (2, 400)))
    values[1] += values[0].mean() - values[1].mean()
    assert values[0].mean() == pytest.approx(values[1].mean())
    assert answers.standard_error(values) == pytest.approx(values.mean(axis=0).std(ddof=1) / 20, rel=0.1)


def test_standard_error_is_that_of_the_planted_effects() -> None:
    draw = np.random.default_rng(0)
    found = [answers.standard_error(planted(draw, 5, 200)) ** 2 for _ in range(400)]
    truth = 0.05**2 / 5 + 0.5**2 / 200 + 0.3**2 / 1000
    assert np.mean(found) == pytest.approx(truth, rel=0.05)  # the mean of 400 estimates; their own error is 1.4 %


def test_interval_covers_the_truth() -> None:
    draw = np.random.default_rng(1)
    zero = np.zeros((5, 200))
    found = [answers.answer("q", planted(draw, 5, 200), zero) for _ in range(400)]
    covered = np.mean([one.low <= 0.1 <= one.high for one in found])
    assert covered >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / 400)  # cautious: more than the nominal share is no fault


def test_answer_is_students_over_families_and_p_is_corrected_for_their_number() -> None:
    rows = {"a/x": [[1, 1, 0, 1], [1, 0, 1, 1]], "a/y": [[0, 1, 0, 1], [0, 0, 1, 0]]}
    scores = {name: dict(enumerate(map(np.array, values))) for name, values in rows.items()}
    scores["a/x"][7] = np.zeros(4)  # a family that the other lacks
    asked = [
        {"name": "x less y", "of": ["a/x"], "against": ["a/y"]},
        {"name": "y less x", "of": ["a/y"], "against": ["a/x"]},
        {"name": "of what was not run", "of": ["b/x"], "against": ["a/x"]},
    ]
    first, second = answers.answers(asked, scores)
    difference = np.array(rows["a/x"]) - np.array(rows["a/y"])
    error = answers.standard_error(difference)
    assert first.difference == difference.mean() == -second.difference
    assert first.high - first.difference == pytest.approx(t(1).ppf(0.975) * error)
    assert first.p_value == pytest.approx(min(1, 2 * 2 * t(1).sf(first.difference / error)))
    assert (first.families, first.documents) == (2, 4)
