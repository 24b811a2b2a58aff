"""Curves along the positions of an order, and what of the effect is in a merged model."""

import numpy as np
import pytest

from ordermerge.eval import statistics
from ordermerge.eval.imbalance.curves import contrast_curve, mean_curve, merged_trace, moved_together
from ordermerge.eval.statistics import Array


def rotated(generator: np.random.Generator, n: int, orders: int) -> Array:
    places = generator.permutation(n)
    return np.stack([(places + order * n // orders) % n for order in range(orders)]) / n


def drawn(generator: np.random.Generator, n: int, orders: int) -> Array:
    return np.stack([generator.permutation(n) for _ in range(orders)]) / n


def test_means_known_by_hand() -> None:
    values, positions = np.array([[1.0, 2, 6], [3, 5, 7]]), np.array([[0, 0.5, 1.0], [0.24, 0.9, 0.49]])
    curve = mean_curve(values, positions, bins=2, resamples=500)
    assert curve.centre.tolist() == [0.25, 0.75]
    assert curve.mean.tolist() == pytest.approx([(1 + 3 + 7) / 3, (2 + 5 + 6) / 3])
    # The three samples drawn alike give the ends: bin 0 from sample 0 alone to sample 2 alone.
    assert (curve.low[0], curve.high[0]) == pytest.approx((2, 7))


def test_a_bin_without_samples_is_nan() -> None:
    curve = mean_curve(np.array([[1.0, 2]]), np.array([[0.0, 0.9]]), bins=3, resamples=50)
    assert np.isnan(curve.mean).tolist() == [False, True, False]


def test_bands_hold_the_mean_as_often_as_they_say() -> None:
    inside = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        values = generator.normal(0, 1, (2, 1)) * 0 + generator.normal(0, 1, 100) + generator.normal(0, 1, (2, 100))
        curve = mean_curve(values, drawn(generator, 100, 2), bins=4, resamples=200, seed=seed)
        inside.append((curve.low <= 0) & (curve.high >= 0))
    # 800 bins, not independent; 95 % less the percentile bootstrap's usual shortfall at 50 values a bin.
    assert 0.91 < np.mean(inside) < 0.97


@pytest.mark.parametrize("design", [drawn, rotated])
def test_any_shape_is_recovered_from_contrasts(design) -> None:
    generator = np.random.default_rng(0)
    positions = design(generator, 400, 4)
    shape = np.array([0, 0, 3, -1, 2, 2, 0, 5, 0, -1.0])
    losses = generator.normal(0, 3, 400) + generator.normal(0, 1, (4, 1)) + shape[(positions * 10).astype(int)]
    curve = contrast_curve(losses, positions, bins=10, resamples=20)
    assert curve.mean == pytest.approx(shape - shape.mean())
    assert curve.low == pytest.approx(curve.mean)  # nothing but the planted shape varies


def test_bins_that_are_never_compared_make_way_for_fewer() -> None:
    positions = rotated(np.random.default_rng(0), 400, 2)  # a sample's positions are always half an epoch apart
    curve = contrast_curve(positions * 1.0, positions, bins=10, resamples=20)
    assert len(curve.mean) == 9
    assert curve.mean == pytest.approx(curve.centre - 0.5, abs=0.06)  # half a bin


def planted(seed: int, n: int = 1500, orders: int = 4) -> tuple[Array, Array, Array, Array]:
    generator = np.random.default_rng(seed)
    positions, difficulty = drawn(generator, n, orders), generator.normal(-2, 1, n)
    losses = difficulty - 0.5 * positions + generator.normal(0, 0.1, (orders, n))
    return losses, positions, difficulty, generator.normal(0, 0.1, n)


@pytest.mark.parametrize(
    ("weights", "share"),
    [([0.25] * 4, 0.25), ([1, 0, 0, 0], 0.25), ([0] * 4, 0), ([0.5] * 4, 0.5)],
    ids=["average", "one of them", "none", "half of each"],
)
def test_a_merged_models_trace_is_found_with_its_size(weights: list[float], share: float) -> None:
    inside, estimates = 0, []
    for seed in range(30):
        losses, positions, difficulty, noise = planted(seed)
        merged = difficulty - 1 - 0.5 * (np.array(weights) @ positions) + noise
        trace = merged_trace(merged, losses, positions, resamples=200, seed=seed)
        estimates.append([*trace.by_order, trace.slope, trace.share])
        inside += trace.share_low <= share <= trace.share_high
        assert np.all((trace.by_order_low < trace.by_order) & (trace.by_order < trace.by_order_high))
    expected = np.array([*(-0.5 * np.array(weights)), -0.5 * share, share])
    found = np.array(estimates)
    # Five standard errors of the mean over 30 trials.
    assert np.all(np.abs(found.mean(axis=0) - expected) < 5 * found.std(axis=0, ddof=1) / np.sqrt(30))
    assert inside >= 24  # of 30 at 95 %: fewer come once in 10,000


def test_batches_that_move_as_one_are_seen() -> None:
    generator = np.random.default_rng(0)
    samples = generator.permutation(11)
    full, short = samples[:9].reshape(3, 3), samples[9:]
    visits = [np.concatenate([full[generator.permutation(3)].ravel(), short]) for _ in range(4)]
    positions = np.stack([np.argsort(visit) for visit in visits])
    units = moved_together(positions, 3)
    assert units is not None
    groups = {frozenset(np.flatnonzero(units == unit).tolist()) for unit in range(4)}
    assert groups == {frozenset(part.tolist()) for part in (*full, short)}
    assert moved_together(np.stack([generator.permutation(11) for _ in range(4)]), 3) is None
    assert moved_together(positions, 1) is None


def test_curves_of_many_units_are_those_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    positions = np.stack([generator.permutation(1000) for _ in range(3)]) / 999
    losses = generator.normal(size=(3, 1000)) + positions**2
    merged = losses.mean(axis=0)

    def measured() -> list[np.ndarray]:
        curves = [mean_curve(losses, positions, bins=4), contrast_curve(losses, positions, bins=4)]
        trace = merged_trace(merged, losses, positions)
        ends = [(curve.mean, curve.low, curve.high) for curve in curves]
        return [np.stack(one) for one in (*ends, (trace.by_order, trace.by_order_low, trace.by_order_high))]

    few = measured()
    monkeypatch.setattr(statistics, "MOST_UNITS", 300)  # the last groups have a unit less
    for (mean, low, high), (same, lower, upper) in zip(few, measured(), strict=True):
        np.testing.assert_allclose(same, mean, rtol=1e-9)
        np.testing.assert_allclose(upper - lower, high - low, rtol=0.3)
