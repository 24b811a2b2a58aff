"""Surrogates of scores by the coefficients of a merge, and the front of what they promise: MAP's amortised search.

Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation", arXiv 2406.07529.
The coefficients c_1..c_K, in [0, 1], multiply the models' changes of their base model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lstsq
from scipy.optimize import differential_evolution, least_squares
from scipy.special import expit, logit
from scipy.stats import qmc

DIGITS = 3  # of a coefficient
_EDGE = 1e-3  # scores of exactly 0 and 1 have no logit: the fit starts from these ends
_ALL = 0.01  # weight of the sum of what is missed, beside the most missed: of equally good points, one not dominated
_GENERATIONS = 300
_REACH = 100  # coefficients from which the range of a surrogate is taken
_SAME = 1e-3  # of that range: scores whose best points differ by less have the same best point
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Surrogate:
    """A score as a quadratic in the coefficients, or as its sigmoid.

    Attributes:
        parameters: As in `quadratic_terms`.
        bounded: Whether it is the sigmoid's, as for scores between 0 and 1.
        left_out: The score of each sample as predicted by a fit to all others, shape [n].
        r_squared: Of those predictions: 1 - their squared error over the variance; None where all scores are alike.
    """

    parameters: Array
    bounded: bool
    left_out: Array
    r_squared: float | None

    def predict(self, coefficients: Array) -> Array:
        """Return scores, shape [n].

        Args:
            coefficients: Shape [n, K].
        """
        return _predict(self.parameters, quadratic_terms(coefficients), bounded=self.bounded)


def quadratic_terms(coefficients: Array) -> Array:
    """Return c_i^2, then c_i c_j, then c_i, then 1; shape [n, `parameter_count(K)`].

    Args:
        coefficients: Shape [n, K].
    """
    products = [coefficients[:, i] * coefficients[:, j] for i, j in combinations(range(coefficients.shape[1]), 2)]
    return np.column_stack([coefficients**2, *products, coefficients, np.ones(len(coefficients))])


def parameter_count(models: int) -> int:
    """Return how many parameters a quadratic in K coefficients has.

    Args:
        models: K.
    """
    return (models + 1) * (models + 2) // 2


def sample_coefficients(models: int, count: int, seed: int) -> Array:
    """Return coefficients to score: each model alone, the mean, then Halton's points; more of them begin alike.

    Args:
        models: K.
        count: n.
        seed: Of the scrambling of Halton's sequence.

    Returns:
        Shape [n, K], rounded.
    """
    drawn = qmc.Halton(models, seed=np.random.default_rng(seed)).random(max(0, count - models - 1))
    return np.round(np.vstack([np.eye(models), np.full(models, 1 / models), drawn]), DIGITS)[:count]


def fit_surrogate(coefficients: Array, scores: Array) -> Surrogate:
    """Fit a score: by the sigmoid of a quadratic if all scores lie between 0 and 1, else by the quadratic.

    Args:
        coefficients: Shape [n, K].
        scores: Shape [n]; n above `parameter_count(K)`, as each is also predicted from the others.
    """
    terms, bounded = quadratic_terms(coefficients), bool(scores.min() >= 0 and scores.max() <= 1)
    left_out = np.empty(len(scores))
    for place in range(len(scores)):
        others = np.arange(len(scores)) != place
        parameters = _fit(terms[others], scores[others], bounded=bounded)
        left_out[place] = _predict(parameters, terms[[place]], bounded=bounded)[0]
    variation = float(((scores - scores.mean()) ** 2).sum())
    r_squared = 1 - float(((scores - left_out) ** 2).sum()) / variation if variation else None
    return Surrogate(_fit(terms, scores, bounded=bounded), bounded, left_out, r_squared)


def _fit(terms: Array, scores: Array, *, bounded: bool) -> Array:
    if not bounded:
        return lstsq(terms, scores)[0]
    start = lstsq(terms, logit(np.clip(scores, _EDGE, 1 - _EDGE)))[0]
    return least_squares(lambda parameters: expit(terms @ parameters) - scores, start).x


def _predict(parameters: Array, terms: Array, *, bounded: bool) -> Array:
    values = terms @ parameters
    return expit(values) if bounded else values


def search_front(surrogates: Sequence[Surrogate], signs: Sequence[int], models: int, points: int, seed: int) -> Array:
    """Return coefficients on the front of the predictions: none that another one beats in all scores.

    Each minimises the most that a score misses of its best, with weights that differ from point to point (the augmented
    weighted Chebyshev problem of Steuer and Choo, Mathematical Programming 26, 1983, which reaches fronts of any
    shape), by differential evolution.

    Args:
        surrogates: Of M scores, M at least 2.
        signs: 1 for each score of which more is better, else -1.
        models: K.
        points: Most coefficients.
        seed: Of the evolution.

    Returns:
        Shape [at most `points`, K], rounded, none twice.
    """

    def gains(coefficients: Array) -> Array:
        return np.column_stack([s * one.predict(coefficients) for one, s in zip(surrogates, signs, strict=True)])

    def minimise(loss: Callable[[Array, Array], Array], weights: Array) -> Array:
        return differential_evolution(
            lambda columns: loss(gains(columns.T), weights), [(0, 1)] * models, maxiter=_GENERATIONS, tol=1e-9,
            polish=False, updating="deferred", vectorized=True, seed=np.random.default_rng(seed),
        ).x  # fmt: skip

    def missed(found: Array, weights: Array) -> Array:
        shares = (best - found) / span
        return (weights * shares).max(axis=1) + _ALL * shares.sum(axis=1)

    own = np.eye(len(surrogates)) + _ALL
    ends = gains(np.array([minimise(lambda found, weights: -found @ weights, one) for one in own]))
    best, reach = ends.max(axis=0), np.ptp(gains(sample_coefficients(models, _REACH, seed)), axis=0)
    span = np.maximum(np.ptp(ends, axis=0), _SAME * np.where(reach > 0, reach, 1))
    weights = _directions(len(surrogates), points)
    chosen = np.unique(np.array([minimise(missed, one) for one in weights]).round(DIGITS), axis=0)
    return chosen[not_dominated(gains(chosen))]


def _directions(scores: int, points: int) -> Array:
    """Return weights of M scores, evenly apart, each of sum 1: as many as there may be points, or fewer; at least M."""
    parts = 1
    while len(list(combinations_with_replacement(range(scores), parts + 1))) <= points:
        parts += 1
    chosen = combinations_with_replacement(range(scores), parts)
    return np.array([np.bincount(one, minlength=scores) / parts for one in chosen])


def not_dominated(gains: Array) -> NDArray[np.bool_]:
    """Return which points no other one beats: at least as good in every score, and better in one.

    Args:
        gains: Scores of which more is better, shape [n, M].
    """
    at_least = (gains[:, None] >= gains[None]).all(axis=2)
    better = (gains[:, None] > gains[None]).any(axis=2)
    return np.invert((at_least & better).any(axis=0))
