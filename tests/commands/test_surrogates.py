"""Surrogates of scores and their front: the worked example, other forms of scores, and what is drawn."""

import numpy as np
import pytest
from scipy.special import expit, logit

from ordermerge.commands.surrogates import (
    Array,
    fit_surrogate,
    not_dominated,
    parameter_count,
    sample_coefficients,
    search_front,
)

# Scores sigmoid(-c1^2 - c2^2 + 2 c1) and sigmoid(-c1^2 - c2^2 + 2 c2), computed by hand.
SAMPLES = np.array([(0, 0), (1, 0), (0, 1), (0.5, 0.5), (1, 1), (0.25, 0.75), (0.75, 0.25), (0.1, 0.4)])


def example(coefficients: Array) -> Array:
    first, second = coefficients.T
    norm = first**2 + second**2
    return expit(np.stack([2 * first - norm, 2 * second - norm]))


def test_worked_example() -> None:
    surrogates = [fit_surrogate(SAMPLES, scores) for scores in example(SAMPLES)]
    np.testing.assert_allclose(surrogates[0].parameters, [-1, -1, 0, 2, 0, 0], atol=1e-9)  # a11 a22 a12 b1 b2 e
    np.testing.assert_allclose(surrogates[1].parameters, [-1, -1, 0, 0, 2, 0], atol=1e-9)
    assert surrogates[0].predict(np.array([[0.5, 0.5]]))[0] == pytest.approx(0.622459, abs=1e-6)
    front = search_front(surrogates, [1, 1], 2, points=11, seed=0)
    assert front.shape == (11, 2)
    np.testing.assert_allclose(front.sum(axis=1), 1, atol=2e-3)  # the segment from (1, 0) to (0, 1); three digits
    assert front[:, 0].min() < 0.02
    assert front[:, 0].max() > 0.98


@pytest.mark.parametrize("bounded", [True, False])
def test_what_is_left_out_is_predicted_where_the_form_is_true(bounded: bool) -> None:
    coefficients = sample_coefficients(3, 20, seed=1)
    quadratic = 1 - (coefficients**2).sum(axis=1) + coefficients @ [2.0, 1.0, 0.5]
    scores = expit(quadratic) if bounded else quadratic - 10
    found = fit_surrogate(coefficients, scores)
    assert found.bounded is bounded
    assert found.r_squared == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.left_out, scores, atol=1e-4)


def test_noise_is_not_predicted() -> None:
    coefficients = sample_coefficients(2, 30, seed=0)
    found = fit_surrogate(coefficients, np.random.default_rng(0).random(30))
    assert found.r_squared is not None
    assert found.r_squared < 0.2
    assert fit_surrogate(coefficients, np.full(30, 0.25)).r_squared is None


def test_a_score_of_which_less_is_better_has_the_same_front() -> None:
    surrogates = [fit_surrogate(SAMPLES, scores) for scores in example(SAMPLES)]
    turned = [surrogates[0], fit_surrogate(SAMPLES, 1 - example(SAMPLES)[1])]
    expected = search_front(surrogates, [1, 1], 2, points=6, seed=0)
    np.testing.assert_allclose(search_front(turned, [1, -1], 2, points=6, seed=0), expected, atol=2e-3)


def test_one_best_for_all_is_a_front_of_one_point() -> None:
    scores = example(SAMPLES)[0]
    surrogates = [fit_surrogate(SAMPLES, scores), fit_surrogate(SAMPLES, expit(logit(scores) / 2 - 1))]
    np.testing.assert_allclose(search_front(surrogates, [1, 1], 2, points=5, seed=0), [[1, 0]], atol=2e-3)


def test_samples_begin_with_the_models_and_their_mean_and_go_on_alike() -> None:
    few, many = sample_coefficients(3, 8, seed=0), sample_coefficients(3, 20, seed=0)
    np.testing.assert_array_equal(few, many[:8])
    np.testing.assert_array_equal(many[:4], [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.333] * 3])
    assert not np.array_equal(sample_coefficients(3, 20, seed=1), many)
    assert len(np.unique(many, axis=0)) == 20
    assert (many >= 0).all()
    assert (many <= 1).all()


def test_not_dominated() -> None:
    gains = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.4], [0, 0], [1, 0]])
    assert not_dominated(gains).tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize(("models", "count"), [(2, 6), (3, 10), (4, 15)])
def test_parameters_of_a_quadratic(models: int, count: int) -> None:
    assert parameter_count(models) == count
