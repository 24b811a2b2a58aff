"""Statistics: paired differences of two models on the same documents, their tests and intervals; bootstrap, jackknife.

Paired differences are about the documents drawn: the models themselves, and the training orders behind them, are taken
as given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

LEVEL = 0.95
ALPHA = 0.05  # the p-value below which two models are told apart
RESAMPLES = 9_999
SEED = 0
POWER = 0.8
_EXACT_UNITS = 20_000  # a longer distribution than this is sampled: its convolution would take seconds
MOST_UNITS = 20_000  # of a bootstrap or permutation; more go in groups, or by the normal limit
_CHUNK = 4_000_000  # numbers in an intermediate array
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean paired difference and what is known about it.

    Attributes:
        difference: The weighted mean of the differences.
        low: Lower end of its confidence interval.
        high: Upper end.
        p_value: Two-sided, of a difference of 0.
        exact: Whether the p-value is computed from all sign flips, not from a sample of them.
        detectable: The smallest difference that this many documents would show; None where that cannot be told, from
            a single document or if the two models are alike on all.
    """

    difference: float
    low: float
    high: float
    p_value: float
    exact: bool
    detectable: float | None


def estimate(differences: Array, strata: Sequence[int], shares: Sequence[float]) -> list[Estimate]:
    """Return the estimate of each column.

    The intervals are percentile bootstrap intervals (Efron, 1979). BCa intervals were tried: for means of paired
    differences they covered no better.

    Args:
        differences: For each document (line) and each pair of models (column) the difference of their values, shape
            [n, c]; finite. Documents of one stratum stand together.
        strata: Documents in each stratum (a task, or each sub-task of a group), summing to n.
        shares: Weight of each stratum's mean in the whole, summing to 1.

    Returns:
        c estimates.
    """
    parts = np.split(differences, np.cumsum(strata)[:-1])
    weights = np.repeat(np.divide(shares, strata), strata)
    means = np.round(weights @ differences, 14)  # equal scores differ by nothing, not by rounding
    ends = np.quantile(_resampled_means(parts, shares), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    found = []
    for column, mean in enumerate(means):
        p_value, exact = sign_flip_p_value(weights * differences[:, column])
        detectable = _detectable([part[:, column] for part in parts], shares)
        low, high = ends[:, column].tolist()
        found.append(Estimate(float(mean), low, high, p_value, exact, detectable))
    return found


def sign_flip_p_value(terms: Array) -> tuple[float, bool]:
    """Return the two-sided p-value of a sum under random signs of its terms.

    The hypothesis is that swapping the two models on a document changes nothing but the sign of its difference. Exact
    if that holds; with many documents it is also valid if merely the mean difference is 0 (Romano, JASA 85, 1990).
    For 0/1 scores of two models this is McNemar's exact test. Where all terms are multiples of one unit, the exact
    distribution of the sum is computed, as a convolution of binomials; otherwise it is sampled, and the p-value is
    (hits + 1) / (samples + 1) (Phipson and Smyth, 2010), so that it is never 0.

    Args:
        terms: The differences, each times its weight, shape [n].

    Returns:
        The p-value, and whether it is exact.
    """
    if not terms.any():
        return 1.0, True
    terms = np.round(terms / np.abs(terms).max(), 12)  # what differs by rounding only counts as equal
    sizes, counts = np.unique(np.abs(terms[terms != 0]), return_counts=True)
    unit = np.diff(sizes, prepend=0).min()
    steps = np.rint(sizes / unit).astype(np.int64)
    observed = abs(terms.sum())
    if steps @ counts <= _EXACT_UNITS and np.allclose(steps * unit, sizes, rtol=1e-6, atol=0):
        return _exact_p_value(steps, counts, round(observed / unit)), True
    random = np.random.default_rng(SEED)
    hits = 0
    for rows in _chunks(len(terms)):
        sums = (2.0 * random.integers(2, size=(rows, len(terms)), dtype=np.int8) - 1) @ terms
        hits += int(np.count_nonzero(np.abs(sums) >= observed * (1 - 1e-9)))
    return (hits + 1) / (RESAMPLES + 1), False


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, Scand. J. Stat. 6, 1979).

    Rejecting what is below alpha afterwards keeps the chance of any false rejection at most alpha, however the tests
    depend on each other.

    Args:
        p_values: Of all comparisons that are looked at together.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return corrected.tolist()


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of independent values, and the ends of Student's interval of it.

    Args:
        values: At least 2.
    """
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / np.sqrt(len(values))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * float(error)
    return mean, mean - half, mean + half


def jackknife_interval(value: float, without: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the jackknife interval of a statistic of K training orders.

    The standard error is sqrt((K-1)/K sum (x_k - mean x)^2) of its values x_k without order k (Tukey, 1958), taken
    with Student's t of K - 1 degrees of freedom. For a mean of the orders this is Student's interval.

    Args:
        value: Of all K orders.
        without: Without each order in turn, shape [K], K at least 2.
    """
    left = np.asarray(without, dtype=np.float64)
    error = np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())
    half = float(t.ppf((1 + LEVEL) / 2, len(left) - 1) * error)
    return value - half, value + half


def bootstrap_interval(
    moments: Array, statistic: Callable[[Array], Array], resamples: int, generator: np.random.Generator
) -> Array:
    """Return the ends, [2, ...], of a percentile bootstrap interval of a statistic of sums over units.

    Args:
        moments: Shape [n, m]: what each unit adds to m sums (see `unit_sums`).
        statistic: Maps sums of shape [B, m] to values of shape [B, ...].
        resamples: B in all.
        generator: Draws.
    """
    n, values = len(moments), []
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        drawn = generator.integers(0, n, (min(step, resamples - start), n))
        weights = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
        values.append(statistic(weights @ moments))
    return np.nanquantile(np.concatenate(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def unit_sums(n: int, terms: Callable[[slice], Array]) -> Array:
    """Return what units add to sums; of more than `MOST_UNITS`, what groups of them add.

    Each group takes every `MOST_UNITS`-th unit. Drawn with replacement, groups spread as units do, and neither time nor
    memory of a bootstrap grows with n any more.

    Args:
        n: The number of units.
        terms: Returns a new array of shape [units, m]: what the units of a slice add to m sums.

    Returns:
        Shape [min(n, MOST_UNITS), m].
    """
    sums = terms(slice(0, MOST_UNITS))
    for start in range(MOST_UNITS, n, MOST_UNITS):
        part = terms(slice(start, start + MOST_UNITS))
        sums[: len(part)] += part
    return sums


def _exact_p_value(steps: NDArray[np.int64], counts: NDArray[np.int64], observed: int) -> float:
    """Return the share of all sign flips whose sum is as far from 0 as the observed one; all in units."""
    chances = np.ones(1)  # of the sum of the terms with a plus sign: 0, 1, 2, ... units
    for step, count in zip(steps, counts, strict=True):
        part = np.zeros(step * count + 1)
        part[::step] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, part)
    total = len(chances) - 1
    sums = 2 * np.arange(total + 1) - total
    return float(min(chances[np.abs(sums) >= observed].sum(), 1.0))


def _resampled_means(parts: Sequence[Array], shares: Sequence[float]) -> Array:
    """Return bootstrap draws of weighted means, shape [RESAMPLES, c].

    Documents are drawn with replacement within each stratum, the same ones for all columns.
    """
    random = np.random.default_rng(SEED)
    total = np.zeros((RESAMPLES, parts[0].shape[1]))
    for part, share in zip(parts, shares, strict=True):
        n, row = len(part), 0
        for rows in _chunks(n):
            drawn = random.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
            total[row : row + rows] += times @ part * (share / n)
            row += rows
    return total


def _chunks(width: int) -> list[int]:
    """Return row counts that add up to `RESAMPLES`, each small enough for rows of this width."""
    rows = max(1, min(RESAMPLES, _CHUNK // width))
    return [rows] * (RESAMPLES // rows) + [rest for rest in [RESAMPLES % rows] if rest]


def _detectable(parts: Sequence[Array], shares: Sequence[float]) -> float | None:
    """Return the true difference that a two-sided test at 1 - LEVEL finds with a chance of POWER.

    (z of the confidence + z of the power) times the standard error of the mean of the observed paired differences:
    the usual normal approximation, before any correction for the number of tests (as in the power analysis of Miller,
    "Adding Error Bars to Evals", arXiv 2411.00640).
    """
    if min(len(part) for part in parts) < 2:
        return None
    variance = sum(share**2 * part.var(ddof=1) / len(part) for part, share in zip(parts, shares, strict=True))
    if variance == 0:
        return None
    return float((norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER)) * np.sqrt(variance))
