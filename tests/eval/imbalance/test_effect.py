"""The position effect: planted, it is found with its size; where there is none, none is claimed."""

import numpy as np
import pytest
from scipy.stats import binom, spearmanr

from ordermerge.eval import statistics
from ordermerge.eval.imbalance import effect
from ordermerge.eval.imbalance.effect import contrast, log_loss, position_effect, unit_means
from ordermerge.eval.statistics import Array

ORDERS = 3


def draw_positions(generator: np.random.Generator, n: int, strategy: str = "random") -> np.ndarray:
    if strategy == "rotate":
        places = generator.permutation(n)
        return np.stack([(places + order * n // ORDERS) % n for order in range(ORDERS)])
    return np.stack([generator.permutation(n) for _ in range(ORDERS)])


def draw_logs(generator: np.random.Generator, n: int) -> Array:
    """Return log losses without a position effect: difficulty, levels, noise of unlike spread, shared by groups."""
    difficulty, levels = generator.normal(-2, 1.5, n), generator.normal(0, 0.5, (ORDERS, 1))
    spread = generator.uniform(0.1, 0.6, (ORDERS, 1))
    shared = generator.standard_t(4, (ORDERS, n // 10 + 1))[:, np.arange(n) // 10]
    return difficulty + levels + spread * (shared + generator.standard_t(4, (ORDERS, n)))


def test_effect_known_by_hand() -> None:
    # Contrasts by hand: positions 0 1/2 1 | 1/2 1 0 less sample means 1/4 3/4 1/2 and order means (equal) are
    # -1/4 -1/4 1/2 | 1/4 1/4 -1/2. The losses are 10 i + 2 position, so their contrasts are twice these.
    positions = np.array([[0, 0.5, 1], [0.5, 1, 0]])
    losses = np.array([[10.0, 20, 30], [10, 20, 30]]) + 2 * positions
    assert contrast(positions).tolist() == [[-0.25, -0.25, 0.5], [0.25, 0.25, -0.5]]
    effect = position_effect(losses, positions, permutations=99, resamples=20)
    assert effect.slope == pytest.approx(2)
    assert (effect.low, effect.high) == pytest.approx((2, 2))
    assert effect.rho == pytest.approx(1)


def test_rho_is_spearmans_of_the_contrasts() -> None:
    generator = np.random.default_rng(0)
    losses, positions = draw_logs(generator, 50), draw_positions(generator, 50) / 49
    expected = spearmanr(contrast(positions).ravel().round(12), contrast(losses).ravel()).statistic
    assert position_effect(losses, positions, permutations=9, resamples=9).rho == pytest.approx(expected)


def test_difficulty_and_levels_of_orders_do_not_matter() -> None:
    generator = np.random.default_rng(1)
    losses, positions = generator.normal(size=(ORDERS, 40)), draw_positions(generator, 40) / 39
    plain = position_effect(losses, positions, permutations=99, resamples=99)
    shifted = losses + 5 * generator.normal(size=40) + np.array([[3.0], [0], [-3]])
    again = position_effect(shifted, positions, permutations=99, resamples=99)
    assert (again.slope, again.rho, again.slope_p) == pytest.approx((plain.slope, plain.rho, plain.slope_p))


@pytest.mark.parametrize("strategy", ["random", "rotate"])
def test_a_planted_effect_is_found_with_its_size(strategy: str) -> None:
    slope, trials = -0.4, 100
    effects = []
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        positions = draw_positions(generator, 150, strategy) / 149
        losses = generator.normal(-2, 1.5, 150) + slope * positions + generator.normal(0, 0.4, (ORDERS, 150))
        effects.append(position_effect(losses, positions, permutations=99, resamples=199, seed=seed))
    found = np.array([effect.slope for effect in effects])
    # Five standard errors of the mean over the trials: wrong once in two million.
    assert abs(found.mean() - slope) < 5 * found.std() / np.sqrt(trials)
    # The percentile bootstrap of 150 units covers a little less than 95 %; 0.1 % of 100 such draws lie below 85.
    assert binom.ppf(0.001, trials, 0.94) <= sum(e.low <= slope <= e.high for e in effects)
    assert sum(effect.slope_p <= 0.05 for effect in effects) > 90
    assert sum(effect.rho_p <= 0.05 for effect in effects) > 90


@pytest.mark.parametrize("strategy", ["random", "rotate"])
def test_no_effect_is_flagged_no_more_than_five_times_in_a_hundred(strategy: str) -> None:
    trials, flagged = 600, np.zeros(2)
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        losses, positions = draw_logs(generator, 60), draw_positions(generator, 60, strategy) / 59
        effect = position_effect(losses, positions, permutations=99, resamples=2, seed=seed)
        flagged += [effect.slope_p <= 0.05, effect.rho_p <= 0.05]
    # With 99 permutations an exact test flags 5 in 100. The bounds are passed by chance once in 10,000 each.
    low, high = binom.ppf([1e-4, 1 - 1e-4], trials, 0.05)
    assert np.all((low <= flagged) & (flagged <= high)), flagged


def test_samples_that_move_in_batches_need_the_batch_as_unit() -> None:
    trials, flagged = 200, np.zeros(2)
    units = np.arange(80) // 8
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        positions = (draw_positions(generator, 10) / 9)[:, units]
        noise = generator.normal(size=(ORDERS, 10))[:, units]  # a batch is learnt, or forgotten, together
        losses = generator.normal(size=80) + noise + 0.1 * generator.normal(size=(ORDERS, 80))
        whole = position_effect(losses, positions, permutations=99, resamples=2, seed=seed)
        batches = unit_means(losses, units), unit_means(positions, units)
        single = position_effect(*batches, permutations=99, resamples=2, seed=seed)
        flagged += [whole.slope_p <= 0.05, single.slope_p <= 0.05]
    assert flagged[0] > 50  # what goes wrong without
    assert flagged[1] <= binom.ppf(1 - 1e-4, trials, 0.05)


def test_p_is_a_permutations_p() -> None:
    generator = np.random.default_rng(0)
    positions = draw_positions(generator, 100) / 99
    strong = position_effect(
        positions * -1.0 + 0.01 * generator.normal(size=positions.shape), positions, permutations=199
    )
    assert strong.slope_p == strong.rho_p == 1 / 200  # never 0: the order that was drawn counts as one


def test_many_units_have_the_p_and_the_interval_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    n, permutations = 900, 1999
    positions = draw_positions(generator, n) / (n - 1)
    losses = draw_logs(generator, n) - 0.05 * positions
    exact = position_effect(losses, positions, permutations=permutations)
    for module in (statistics, effect):
        monkeypatch.setattr(module, "MOST_UNITS", 300)
    limit = position_effect(losses, positions, permutations=permutations)
    assert (limit.slope, limit.rho) == (exact.slope, exact.rho)
    for p, other in ((limit.slope_p, exact.slope_p), (limit.rho_p, exact.rho_p)):
        assert 0.01 < other < 0.99
        assert abs(p - other) < 4 * np.sqrt(other * (1 - other) / permutations)  # of the draw; the limit adds less
    # 300 groups of 3 give the width to 1 / sqrt(2 * 300) = 4 %, 2000 resamples its ends to about as much.
    assert limit.high - limit.low == pytest.approx(exact.high - exact.low, rel=0.25)
    strong = position_effect(losses - 5 * positions, positions, permutations=permutations)
    assert strong.slope_p == strong.rho_p == 1 / 2000  # claims no more than permutations could


def test_units_that_never_move_take_no_part() -> None:
    generator = np.random.default_rng(0)
    losses, positions = draw_logs(generator, 40), draw_positions(generator, 40) / 39
    still = np.full((ORDERS, 5), 1.0), generator.normal(size=(ORDERS, 5))
    with_still = position_effect(
        np.concatenate([losses, still[1]], axis=1), np.concatenate([positions, still[0]], axis=1), permutations=99
    )
    assert with_still == position_effect(losses, positions, permutations=99)


def test_orders_alike_are_refused() -> None:
    positions = np.broadcast_to(np.linspace(0, 1, 5), (2, 5))
    with pytest.raises(
        ValueError, match="positions are the same in all orders, so no unit can be compared with itself"
    ):
        position_effect(np.random.default_rng(0).normal(size=(2, 5)), positions)


def test_log_loss_has_a_floor_at_the_rounding_of_a_softmax() -> None:
    assert log_loss(np.array([1.0, np.e, 1e-6, 1e-9, 0])).tolist() == pytest.approx([0, 1, *[np.log(1e-6)] * 3])


def test_unit_means_known_by_hand() -> None:
    found = unit_means(np.array([[1.0, 2, 3, 7], [0, 0, 4, 8]]), np.array([1, 0, 1, 1]))
    assert found.tolist() == [[2, 11 / 3], [0, 4]]
