"""Order noise: variance components with planted values, and what follows from them."""

import numpy as np
import pytest
from scipy.stats import norm

from ordermerge.eval.comparison.noise import runs_per_arm, variance_components, wrong_sign_chance
from ordermerge.eval.statistics import jackknife_interval, mean_interval


def planted(
    random: np.random.Generator, runs: int, documents: int, sigma: float, *, binary: bool = False
) -> np.ndarray:
    """Values [documents, runs]: documents of very different difficulty, runs that differ by `sigma`."""
    orders, items = sigma * random.standard_normal(runs), random.standard_normal((documents, 1))
    if not binary:
        return 0.5 + orders + items + 0.7 * random.standard_normal((documents, runs))
    chances = norm.cdf(items) * 0.6 + 0.2 + orders
    return (random.random((documents, runs)) < chances).astype(float)


@pytest.mark.parametrize(
    ("runs", "documents", "sigma", "families", "binary"),
    [(4, 200, 0.05, 1, False), (8, 500, 0.03, 1, False), (3, 300, 0.04, 3, False), (5, 400, 0.04, 1, True)],
)
def test_planted_order_sigma_lies_in_its_interval(
    runs: int, documents: int, sigma: float, families: int, binary: bool
) -> None:
    random = np.random.default_rng(1)
    covered, estimates = 0, []
    for _ in range(500):
        values = [planted(random, runs, documents, sigma, binary=binary) for _ in range(families)]
        found = variance_components(values, [documents], [1.0])
        covered += found.orders_low <= sigma**2 <= found.orders_high
        estimates.append(found.total - found.noise)
    # 95 % of 500 would be within 2 points of it in 19 of 20 tests
    assert 0.93 <= covered / 500 <= 0.985
    error = np.std(estimates) / np.sqrt(500)
    assert np.mean(estimates) == pytest.approx(sigma**2, abs=4 * error)


def test_components_of_a_balanced_table_are_the_mean_squares() -> None:
    values = planted(np.random.default_rng(2), 4, 50, 0.3)
    found = variance_components([values], [50], [1.0])
    between = 50 * values.mean(axis=0).var(ddof=1)
    fitted = values.mean(axis=0) + values.mean(axis=1, keepdims=True) - values.mean()
    rest = ((values - fitted) ** 2).sum() / (3 * 49)
    assert (found.total, found.noise) == (pytest.approx(between / 50), pytest.approx(rest / 50))
    assert found.orders == pytest.approx((between - rest) / 50)
    assert found.documents == pytest.approx(values.mean(axis=1).var(ddof=1) / 50)
    assert found.degrees_of_freedom == 3


def test_groups_are_weighed_by_their_shares() -> None:
    random = np.random.default_rng(3)
    easy, hard = planted(random, 6, 40, 0.1), planted(random, 6, 900, 0.1)
    both = variance_components([np.concatenate([easy, hard])], [40, 900], [0.5, 0.5])
    alone = [variance_components([part], [len(part)], [1.0]) for part in (easy, hard)]
    assert both.noise == pytest.approx(0.25 * (alone[0].noise + alone[1].noise))
    score = 0.5 * easy.mean(axis=0) + 0.5 * hard.mean(axis=0)
    assert both.total == pytest.approx(score.var(ddof=1))


def test_runs_that_do_not_differ_have_no_order_noise() -> None:
    same = np.repeat(np.random.default_rng(4).random((30, 1)), 3, axis=1)
    found = variance_components([same], [30], [1.0])
    assert (found.orders, found.orders_low, found.orders_high) == (0, 0, 0)


@pytest.mark.parametrize(("ratio", "chance"), [(0.2, 0.444), (0.4, 0.389), (0.6, 0.336)])
def test_wrong_sign_chances_are_the_published_ones(ratio: float, chance: float) -> None:
    assert wrong_sign_chance(ratio * 0.013, 0.013) == pytest.approx(chance, abs=5e-4)
    random = np.random.default_rng(5)
    pairs = random.standard_normal((200_000, 2))
    assert np.mean(pairs[:, 0] + ratio < pairs[:, 1]) == pytest.approx(chance, abs=0.005)


def test_wrong_sign_without_noise_or_difference() -> None:
    assert (wrong_sign_chance(0.1, 0), wrong_sign_chance(0, 0), wrong_sign_chance(0, 1)) == (0, 0.5, 0.5)


def test_runs_for_80_percent_power() -> None:
    assert runs_per_arm(0.02, 0.02) == pytest.approx(15.7, abs=0.05)
    assert np.ceil(runs_per_arm(0.02, 0.02)) == 16
    assert runs_per_arm(0.01, 0.02) == pytest.approx(4 * runs_per_arm(0.02, 0.02))


def test_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.array([0.71, 0.76, 0.83, 0.8, 0.79])
    without = [np.delete(values, k).mean() for k in range(5)]
    mean, low, high = mean_interval(values)
    assert jackknife_interval(mean, without) == pytest.approx((low, high))
