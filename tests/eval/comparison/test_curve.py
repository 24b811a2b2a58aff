"""The curve over the number of orders, of planted scores."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from ordermerge.eval.comparison.curve import Subset, curve_points
from ordermerge.eval.statistics import jackknife_interval, mean_interval


def scores_of(count: int, score: Callable[[list[int]], float]) -> dict[Subset, float]:
    sizes = range(1, count + 1)
    return {subset: score(list(subset)) for size in sizes for subset in combinations(range(count), size)}


def test_means_ranges_gains_and_prices_by_hand() -> None:
    scores = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (0, 1): 0.8, (0, 2): 0.7, (1, 2): 0.9, (0, 1, 2): 0.85}
    one, two, three = curve_points(scores, 3, [1, 2, 3])
    assert [(p.orders, p.merges, p.price) for p in (one, two, three)] == [(1, 3, 1), (2, 3, 2), (3, 1, 3)]
    assert [(p.mean, p.lowest, p.highest) for p in (one, two, three)] == [
        pytest.approx(values) for values in ((0.6, 0.5, 0.7), (0.8, 0.7, 0.9), (0.85, 0.85, 0.85))
    ]
    assert (one.gain, two.gain, three.gain) == (None, pytest.approx(0.2), pytest.approx(0.05))
    assert one.interval == pytest.approx(mean_interval([0.5, 0.7, 0.6])[1:])
    assert two.interval == pytest.approx(jackknife_interval(0.8, [0.9, 0.7, 0.8]))
    assert three.interval == pytest.approx(jackknife_interval(0.85, [0.9, 0.7, 0.8]))
    assert two.gain_interval == pytest.approx(jackknife_interval(0.2, [0.9 - 0.65, 0.7 - 0.55, 0.8 - 0.6]))
    assert three.gain_interval == pytest.approx(jackknife_interval(0.05, [0.9 - 0.65, 0.7 - 0.55, 0.8 - 0.6]))


def test_a_score_linear_in_the_orders_keeps_its_mean_and_students_interval_at_every_size() -> None:
    effects = np.random.default_rng(0).normal(0.7, 0.05, 6)
    for point in curve_points(scores_of(6, lambda s: effects[s].mean()), 6, range(1, 7)):
        assert point.mean == pytest.approx(effects.mean())
        assert point.interval == pytest.approx(mean_interval(effects)[1:])


def test_additive_order_effects_make_the_mean_fall_as_one_over_k() -> None:
    # The loss is the squared length of the mean of the orders' effects, as of a merge in a round basin.
    random, sums = np.random.default_rng(1), np.zeros(6)
    for _ in range(200):
        effects = random.standard_normal((6, 20))
        points = curve_points(scores_of(6, lambda s, e=effects: float((e[s].mean(axis=0) ** 2).sum())), 6, range(1, 7))
        sums += [point.mean for point in points]
    # 200 families of 20 dimensions: the relative standard error of the last mean is sqrt(2 / 4000) = .022
    assert sums / sums[0] == pytest.approx([1 / k for k in range(1, 7)], rel=0.08)


def test_the_interval_at_all_orders_covers_the_mean_over_families() -> None:
    random, covered = np.random.default_rng(2), 0
    for _ in range(400):
        effects = random.standard_normal(5)
        points = curve_points(scores_of(5, lambda s, e=effects: 0.8 + 0.05 * e[s].mean()), 5, range(1, 6))
        covered += points[-1].interval[0] <= 0.8 <= points[-1].interval[1]
    assert 0.925 <= covered / 400 <= 0.98  # 95 % within 2.3 standard errors


def test_a_sample_of_subsets_without_some_order_has_no_interval() -> None:
    scores = {**{(k,): 0.5 for k in range(4)}, (0, 1): 0.6, (0, 1, 2): 0.7, (0, 1, 2, 3): 0.8}
    points = curve_points(scores, 4, range(1, 5))
    assert [point.interval is None for point in points] == [False, True, True, True]
    assert points[-1].gain == pytest.approx(0.1)
