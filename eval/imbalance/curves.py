"""Losses along the positions of an order, and what a merged model has of that; see `imbalance` for shapes and terms."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ordermerge.eval.imbalance.effect import contrast
from ordermerge.eval.statistics import Array, bootstrap_interval, unit_sums

_CONNECTED = 1e-6  # smallest eigenvalue, as a share of the largest, of bins that units do compare


@dataclass(frozen=True)
class Curve:
    """Means over bins of position with 95 % bootstrap bands, each of shape [bins].

    Attributes:
        centre: Middle of each bin.
        mean: The value there.
        low: Lower end of the band.
        high: Upper end.
    """

    centre: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Trace:
    """What of the position effect a merged model has; intervals are 95 % bootstrap intervals over units.

    Attributes:
        slope: Change of its log loss from the first to the last position in one order, mean over the K orders.
        low: Lower end of its interval.
        high: Upper end.
        share: That slope as a share of a sub-model's own; an exact average of the K has 1/K.
        share_low: Lower end of its interval.
        share_high: Upper end.
        by_order: The K slopes.
        by_order_low: Lower ends of their intervals.
        by_order_high: Upper ends.
    """

    slope: float
    low: float
    high: float
    share: float
    share_low: float
    share_high: float
    by_order: Array
    by_order_low: Array
    by_order_high: Array


def mean_curve(values: Array, positions: Array, *, bins: int = 10, resamples: int = 1000, seed: int = 0) -> Curve:
    """Return the plain means of values over bins of position.

    Args:
        values: Shape [K, n].
        positions: Shape [K, n].
        bins: How many bins of equal width.
        resamples: How many the bands rest on; units are drawn.
        seed: Of the bands.
    """
    places = _bin(positions, bins)

    def terms(part: slice) -> Array:
        members = np.eye(bins)[places[:, part]]  # [K, units, bins]
        return np.concatenate([(members * values[:, part, None]).sum(axis=0), members.sum(axis=0)], axis=1)

    def means(sums: Array) -> Array:
        with np.errstate(invalid="ignore"):  # a bin without values is NaN
            return sums[:, :bins] / sums[:, bins:]

    return _curve(unit_sums(values.shape[1], terms), means, bins, resamples, seed)


def contrast_curve(losses: Array, positions: Array, *, bins: int = 10, resamples: int = 1000, seed: int = 0) -> Curve:
    """Return the effect of each bin of position by comparisons within units, with mean 0 over the bins.

    Least squares with an intercept for each unit and each order: unlike means of contrasts, it is not flattened by the
    factor (K - 1)/K, and right for any design. Where the orders never compare some bins with others (`rotate`, when K
    and the number of bins have a common factor), fewer bins are taken.

    Args:
        losses: Shape [K, n].
        positions: Shape [K, n].
        bins: Most bins.
        resamples: How many the bands rest on; units are drawn.
        seed: Of the bands.
    """
    y = contrast(losses)
    for count in range(bins, 1, -1):
        moments = unit_sums(y.shape[1], partial(_design_terms, _bin(positions, count), y, count))
        eigenvalues = np.linalg.eigvalsh(moments[:, :-count].sum(axis=0).reshape(count, count))
        if eigenvalues[1] > _CONNECTED * eigenvalues[-1]:  # the first is 0: levels are only told up to a constant
            break

    def solve(sums: Array) -> Array:
        matrices = sums[:, :-count].reshape(-1, count, count)
        return np.einsum("tbc,tc->tb", np.linalg.pinv(matrices, rcond=_CONNECTED, hermitian=True), sums[:, -count:])

    return _curve(moments, solve, count, resamples, seed)


def merged_trace(merged: Array, losses: Array, positions: Array, *, resamples: int = 2000, seed: int = 0) -> Trace:
    """Measure how a merged model's log loss depends on the positions in the K orders.

    A merged model has one loss a sample, so the sub-models' mean is what tells a sample's difficulty. Their mean itself
    depends on each order's position by slope/K, which is added back: log M_i - mean_k log L_ki is regressed on the K
    positions together, and the trace is the mean of the K coefficients plus slope/K.

    Args:
        merged: Log losses of the merged model, shape [n].
        losses: Log losses of the sub-models, shape [K, n].
        positions: Shape [K, n].
        resamples: How many the intervals rest on; units are drawn.
        seed: Of the intervals.
    """
    count, n = losses.shape
    x, y = contrast(positions), contrast(losses)
    outcome, width = merged - losses.mean(axis=0), count + 1

    def terms(part: slice) -> Array:
        own, other = x[:, part], y[:, part]
        design = np.concatenate([np.ones((1, own.shape[1])), positions[:, part]]).T
        squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
        products = [(own * other).sum(axis=0), (own * own).sum(axis=0)]
        return np.concatenate([squares, design * outcome[part, None], np.stack(products, axis=1)], axis=1)

    def traces(sums: Array) -> Array:
        inverse = np.linalg.pinv(sums[:, : width**2].reshape(-1, width, width), hermitian=True)
        coefficients = np.einsum("tbc,tc->tb", inverse, sums[:, width**2 : -2])[:, 1:]
        own = (sums[:, -2] / sums[:, -1])[:, None]
        slopes = coefficients + own / count
        mean = slopes.mean(axis=1, keepdims=True)
        return np.concatenate([mean, mean / own, slopes], axis=1)

    moments = unit_sums(n, terms)
    slope, share, *slopes = traces(moments.sum(axis=0)[None])[0]
    low, high = bootstrap_interval(moments, traces, resamples, np.random.default_rng(seed))
    return Trace(
        slope=float(slope),
        low=float(low[0]),
        high=float(high[0]),
        share=float(share),
        share_low=float(low[1]),
        share_high=float(high[1]),
        by_order=np.array(slopes),
        by_order_low=low[2:],
        by_order_high=high[2:],
    )


def moved_together(positions: NDArray[np.int64], batch: int, places: int | None = None) -> NDArray[np.int64] | None:
    """Return the batch of each sample if samples move between positions in fixed batches only, else None.

    Args:
        positions: Shape [orders and epochs, samples], 0 to places - 1.
        batch: Samples, or packs, of one optimizer step.
        places: The number of places in an epoch, where that is not the number of samples.
    """
    if batch <= 1:
        return None
    batches, n = positions // batch, positions.shape[1]
    units, number = batches[0], -(-(places or n) // batch)
    of_each = np.zeros(number, np.int64)
    of_each[units] = np.arange(n)  # one sample of each batch, which all others of it are to move with
    whole = np.bincount(units, minlength=number).all()
    together = whole and bool((batches == batches[:, of_each[units]]).all())
    return units if together else None


def _bin(positions: Array, bins: int) -> NDArray[np.int64]:
    return np.minimum((positions * bins).astype(np.int64), bins - 1)


def _design_terms(places: NDArray[np.int64], y: Array, bins: int, part: slice) -> Array:
    """Return what units add to the normal equations: squares and products of the contrasts of their bins with y."""
    by_order = np.stack([np.bincount(row, minlength=bins) for row in places])[:, None] / places.shape[1]
    members = np.eye(bins)[places[:, part]]
    design = members - by_order - members.mean(axis=0, keepdims=True) + by_order.mean(axis=0, keepdims=True)
    squares = np.einsum("kib,kic->ibc", design, design).reshape(design.shape[1], -1)
    return np.concatenate([squares, np.einsum("kib,ki->ib", design, y[:, part])], axis=1)


def _curve(moments: Array, statistic: Callable[[Array], Array], bins: int, resamples: int, seed: int) -> Curve:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's word on a bin without values, which is NaN
        low, high = bootstrap_interval(moments, statistic, resamples, np.random.default_rng(seed))
    return Curve((np.arange(bins) + 0.5) / bins, statistic(moments.sum(axis=0)[None])[0], low, high)
