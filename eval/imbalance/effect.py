"""Does the position of a sample in the training order show in its final loss? Pure functions on arrays.

Samples differ far more in difficulty than by position, so each sample is its own control: the *within-sample contrast*
is its loss under order k less its mean over the K orders, against its position in order k less its mean position.
Orders differ in their overall level, so order means are removed too.

The test draws the orders' lottery again: which sample was given which K-tuple of positions. (y_1i .. y_Ki) stay
together and so do (x_1i .. x_Ki); the samples' labels on one side are permuted. That is what a strategy draws at
random, so it is exact whatever the losses' distribution, however unlike the orders are in level and spread, and
however correlated samples are within an order. Permuting, per sample, which position goes with which loss would need
losses that are exchangeable between orders and independent between samples; neither holds. Where samples move in
batches, a batch is the unit. Of more than `MOST_UNITS` units the p-value is the normal limit of that test
(Hoeffding, Ann. Math. Stat. 22, 1951), as n log n in time and not 5,000 n.

Shapes: K orders, n units, both at least 2; losses and positions are float64 of shape [K, n], positions from 0 (first)
to 1 (last).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from ordermerge.eval.statistics import MOST_UNITS, Array, bootstrap_interval, unit_sums

_AT_ONCE = 2**22  # numbers in an intermediate array
LOSS_FLOOR = 1e-6  # below, a float32 softmax leaves rounding errors only, which the logarithm would blow up


@dataclass(frozen=True)
class Effect:
    """How losses depend on position, from the within-sample contrast.

    Attributes:
        slope: Change of the loss from the first position to the last; of log loss, a ratio's logarithm.
        low: Lower end of its 95 % bootstrap interval, over samples; the K orders are taken as they are.
        high: Upper end.
        slope_p: Two-sided permutation p-value of the slope.
        rho: Spearman's rank correlation of the contrasts.
        rho_p: Its two-sided permutation p-value.
    """

    slope: float
    low: float
    high: float
    slope_p: float
    rho: float
    rho_p: float


def log_loss(losses: Array) -> Array:
    """Return log losses: a few hard samples would rule the raw ones, and position acts in proportion.

    Args:
        losses: Of any shape; those below `LOSS_FLOOR` count as that.
    """
    return np.log(np.maximum(losses, LOSS_FLOOR))


def contrast(values: Array) -> Array:
    """Return values less their unit's mean over the orders and their order's mean over the units.

    Args:
        values: Shape [K, n, ...].
    """
    by_order = values.mean(axis=1, keepdims=True)
    return values - by_order - values.mean(axis=0, keepdims=True) + by_order.mean(axis=0, keepdims=True)


def unit_means(values: Array, units: NDArray[np.int64]) -> Array:
    """Return the means over the samples of each unit.

    Args:
        values: Shape [..., samples].
        units: The unit of each sample, 0 to n - 1, each at least once; shape [samples].

    Returns:
        Shape [..., n].
    """
    sums = np.zeros((units.max() + 1, *values.shape[:-1]))
    np.add.at(sums, units, np.moveaxis(values, -1, 0))
    return np.moveaxis(sums, 0, -1) / np.bincount(units)


def position_effect(
    losses: Array, positions: Array, *, permutations: int = 4999, resamples: int = 2000, seed: int = 0
) -> Effect:
    """Measure and test the dependence of losses on positions.

    Args:
        losses: Shape [K, n]; log losses or losses.
        positions: Shape [K, n].
        permutations: How many the p-values rest on.
        resamples: How many the interval rests on.
        seed: Of both.

    Raises:
        ValueError: If fewer than two units have different positions in different orders.
    """
    moving = np.ptp(positions, axis=0) > 0  # a short batch that stays last has no lottery
    if moving.sum() < 2:
        raise ValueError("positions are the same in all orders, so no unit can be compared with itself")
    x, y = contrast(positions[:, moving]), contrast(losses[:, moving])
    # Rounded, or equal contrasts would differ by how they were summed, and their ranks with them.
    x_ranks, y_ranks = (rankdata(values.round(12)).reshape(values.shape) - (values.size + 1) / 2 for values in (x, y))
    scale = np.sqrt((x_ranks**2).sum() * (y_ranks**2).sum()) or 1.0
    generator = np.random.default_rng(seed)
    slope_p, rho_p = _permutation_p([(x, y), (x_ranks, y_ranks)], permutations, generator)
    products = np.stack([(x * y).sum(axis=0), (x * x).sum(axis=0)], axis=1)
    moments = unit_sums(len(products), lambda part: products[part].copy())
    low, high = bootstrap_interval(moments, lambda sums: sums[:, 0] / sums[:, 1], resamples, generator)
    slope = (x * y).sum() / (x * x).sum()
    return Effect(float(slope), float(low), float(high), slope_p, float((x_ranks * y_ranks).sum() / scale), rho_p)


def _permutation_p(
    pairs: list[tuple[Array, Array]], permutations: int, generator: np.random.Generator
) -> tuple[float, ...]:
    """Return, for each pair, how often sum(x y) is at least as far from 0 when units are permuted."""
    n = pairs[0][0].shape[1]
    if n > MOST_UNITS:
        return tuple(max(_normal_p(*pair), 1 / (permutations + 1)) for pair in pairs)
    sides = [(x.T.copy(), y.T.ravel()) for x, y in pairs]  # a unit's K values lie together
    observed = [abs((x * y).sum()) for x, y in pairs]
    reached = np.ones(len(pairs))  # the draw that was made is one of them
    step = max(1, _AT_ONCE // pairs[0][0].size)
    for start in range(0, permutations, step):
        drawn = np.stack([generator.permutation(n) for _ in range(min(step, permutations - start))])
        for i, (x, y) in enumerate(sides):
            reached[i] += (np.abs(x[drawn].reshape(len(drawn), -1) @ y) >= observed[i] * (1 - 1e-12)).sum()
    return tuple(float(count) / (permutations + 1) for count in reached)


def _normal_p(x: Array, y: Array) -> float:
    """Return the chance that sum(x y) is at least as far from 0 when units are permuted, by its normal limit."""
    n, means = x.shape[1], [values.mean(axis=1, keepdims=True) for values in (x, y)]
    middle = n * float((means[0] * means[1]).sum())
    scatter = [(values - mean) @ (values - mean).T for values, mean in zip((x, y), means, strict=True)]
    spread = np.sqrt((scatter[0] * scatter[1]).sum() / (n - 1)) or 1.0
    observed = abs(float((x * y).sum()))
    return float(norm.sf((observed - middle) / spread) + norm.cdf((-observed - middle) / spread))
