"""Known answers, agreement with SciPy, and how often intervals and tests are right over many simulated data sets."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from ordermerge.eval import statistics

RNG = np.random.default_rng(7)
# Simulated rates are judged at four standard errors of the simulation, plus what a few hundred documents leave of an
# asymptotic method: about 1 % at n = 300.
SETS = 1_000


def one(values, strata=None, shares=(1.0,)) -> statistics.Estimate:
    column = np.asarray(values, dtype=np.float64)[:, None]
    return statistics.estimate(column, strata or [len(column)], shares)[0]


def binary(p_first: float, p_second: float, n: int, sets: int, singles: int = 1) -> np.ndarray:
    """Differences of 0/1 scores that share the documents' difficulty, shape [n, sets]."""
    rng = np.random.default_rng(11)
    ease = rng.normal(size=(n, sets))

    def score(p: float) -> np.ndarray:
        return (ease + rng.normal(size=(n, sets)) < stats.norm.ppf(p) * np.sqrt(2)).astype(float)

    return score(p_first) - np.mean([score(p_second) for _ in range(singles)], axis=0)


def tolerance(rate: float, sets: int = SETS) -> float:
    return 4 * float(np.sqrt(rate * (1 - rate) / sets)) + 0.01


@pytest.mark.parametrize(("gains", "losses"), [(9, 2), (1, 0), (40, 40), (300, 210)])
def test_sign_flip_of_binary_scores_is_mcnemars_exact_test(gains, losses):
    terms = np.array([1.0] * gains + [-1.0] * losses + [0.0] * 50) / 1319
    expected = stats.binomtest(gains, gains + losses, 0.5).pvalue
    assert statistics.sign_flip_p_value(terms) == (pytest.approx(expected, rel=1e-9), True)


def test_sign_flip_of_a_mean_of_singles_equals_all_sign_flips():
    terms = np.array([0.25, 0.25, -0.5, 0.75, 1.0, -0.25, 0.5, 0.0, 1.0, 0.75, -0.75]) / 11
    sums = [abs(np.dot(signs, terms)) for signs in itertools.product([1, -1], repeat=len(terms))]
    expected = np.mean(np.array(sums) >= abs(terms.sum()) - 1e-12)
    assert statistics.sign_flip_p_value(terms) == (pytest.approx(expected, rel=1e-9), True)


def test_sign_flip_of_any_numbers_agrees_with_scipy():
    terms = RNG.normal(0.4, 1, size=12)
    exact = stats.permutation_test((terms,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    p_value, is_exact = statistics.sign_flip_p_value(terms)
    assert not is_exact
    assert p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / statistics.RESAMPLES))


def test_sign_flip_is_never_0_and_of_equal_models_1():
    assert statistics.sign_flip_p_value(np.zeros(5)) == (1.0, True)
    assert statistics.sign_flip_p_value(RNG.uniform(1, 2, size=200)) == (1 / (statistics.RESAMPLES + 1), False)


def test_sign_flip_does_not_depend_on_scale_or_on_too_long_a_distribution(monkeypatch):
    terms = RNG.integers(-4, 5, size=60) / 4
    exact, _ = statistics.sign_flip_p_value(terms)
    assert statistics.sign_flip_p_value(terms / 3e7) == (pytest.approx(exact), True)
    monkeypatch.setattr(statistics, "_EXACT_UNITS", 10)
    sampled, is_exact = statistics.sign_flip_p_value(terms)
    assert not is_exact
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / statistics.RESAMPLES))


def test_holm_known_answer():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_interval_agrees_with_scipy_and_is_the_same_each_time():
    values = RNG.exponential(size=150) - 0.7
    found = one(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    error = 0.03 * values.std()  # Monte Carlo error of the ends, at 9,999 draws a fortieth of the standard error
    assert found.difference == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=error / 3)
    assert one(values) == found


def test_columns_are_estimated_as_if_alone():
    values = RNG.normal(size=(40, 3))
    for column, found in enumerate(statistics.estimate(values, [40], [1.0])):
        assert asdict(found) == pytest.approx(asdict(one(values[:, column])))


def test_draws_stay_within_strata_and_shares_weigh_them():
    values = [1.0] * 10 + [3.0] * 30
    for shares, expected in (([0.25, 0.75], 2.5), ([0.5, 0.5], 2.0)):
        found = one(values, [10, 30], shares)
        assert (found.difference, found.low, found.high) == pytest.approx((expected,) * 3)
    several = one([*RNG.normal(size=50), *RNG.normal(size=200)], [50, 200], [0.5, 0.5])
    width = 2 * 1.96 * np.sqrt(0.25 / 50 + 0.25 / 200)
    assert several.high - several.low == pytest.approx(width, rel=0.25)  # the two samples' own variances


def test_models_alike_on_every_document_and_a_single_document():
    alike = one([0.0] * 20)
    assert (alike.low, alike.high, alike.p_value, alike.detectable) == (0, 0, 1, None)
    single = one([1.0])
    assert (single.difference, single.p_value, single.detectable) == (1, 1, None)


def test_detectable_known_answer():
    values = np.array([1.0, -1.0] * 50)
    assert one(values).detectable == pytest.approx((1.959964 + 0.841621) * np.sqrt(100 / 99) / 10, rel=1e-6)
    # half a mean of 100 and half of one of 400, each document's difference 1 or -1
    variance = 0.25 / 99 + 0.25 / 399
    group = one([1.0, -1.0] * 250, [100, 400], [0.5, 0.5])
    assert group.detectable == pytest.approx(2.801585 * np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("singles", [1, 4], ids=["against one model", "against the mean of four"])
def test_interval_covers_the_truth(singles, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1_999)
    monkeypatch.setattr(statistics, "sign_flip_p_value", lambda terms: (1.0, True))
    found = statistics.estimate(binary(0.85, 0.8, 300, SETS, singles), [300], [1.0])
    covered = np.mean([one.low <= 0.05 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=tolerance(0.95))


def test_interval_of_a_group_covers_the_truth(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1_999)
    monkeypatch.setattr(statistics, "sign_flip_p_value", lambda terms: (1.0, True))
    parts = [binary(0.9, 0.8, 100, SETS), binary(0.5, 0.5, 400, SETS)]
    found = statistics.estimate(np.concatenate(parts), [100, 400], [0.5, 0.5])
    assert np.mean([one.low <= 0.05 <= one.high for one in found]) == pytest.approx(0.95, abs=tolerance(0.95))


@pytest.mark.parametrize("singles", [1, 4], ids=["against one model", "against the mean of four"])
def test_false_positives_are_as_rare_as_they_say(singles):
    p_values = np.array([statistics.sign_flip_p_value(d)[0] for d in binary(0.8, 0.8, 300, SETS, singles).T])
    for level in (0.05, 0.2):
        assert np.mean(p_values <= level) <= level + tolerance(level) - 0.01 * (singles == 1)  # exact for one model
        assert np.mean(p_values <= level) >= 0.6 * level  # and the test is not idle


def test_false_positives_of_numbers_with_a_skewed_difference(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 499)
    values = RNG.gamma(4, size=(300, 500)) - 4
    p_values = np.array([statistics.sign_flip_p_value(d)[0] for d in values.T])
    assert np.mean(p_values <= 0.05) == pytest.approx(0.05, abs=tolerance(0.05, 500))


def test_detectable_difference_is_found_with_the_stated_power():
    found = binary(0.87, 0.8, 300, SETS)
    detectable = statistics.estimate(found[:, :20], [300], [1.0])
    size = float(np.mean([one.detectable for one in detectable]))
    noise = np.random.default_rng(3).normal(scale=found.std(), size=(300, 1_000)) + size
    t = noise.mean(axis=0) / (noise.std(axis=0, ddof=1) / np.sqrt(300))
    assert np.mean(np.abs(t) > 1.96) == pytest.approx(statistics.POWER, abs=tolerance(0.8, 1_000))
