"""Order noise: how much of a score's spread over repeated runs is theirs, how much the documents'; what follows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from scipy.stats import chi2, f, norm

from ordermerge.errors import UserError, percent
from ordermerge.eval.comparison.documents import ModelValues, NotPaired, common_scores, pair
from ordermerge.eval.comparison.record import LeftOut
from ordermerge.eval.scoring.table import NO_FILTER, digits
from ordermerge.eval.statistics import LEVEL, POWER, Array, mean_interval
from ordermerge.eval.tables import print_columns

MULTIPLES = (0.2, 0.4, 0.6, 1.0, 2.0)  # differences in units of the order sigma, where none are asked for


@dataclass(frozen=True)
class Components:
    """What the scores of repeated runs on the same documents vary by; variances of one run's score.

    Attributes:
        total: Over runs, as scored.
        orders: What would be left of it with endless documents; 0 where the estimate is below 0.
        orders_low: Lower end of its confidence interval.
        orders_high: Upper end.
        noise: The rest of it: runs err on different documents.
        documents: Of the runs' mean score over other draws of as many documents, which all runs share.
        degrees_of_freedom: Of the variance over runs: runs less families.
    """

    total: float
    orders: float
    orders_low: float
    orders_high: float
    noise: float
    documents: float
    degrees_of_freedom: int


@dataclass(frozen=True)
class Power:
    """What one difference between two ways of training amounts to.

    Attributes:
        difference: The true difference of their mean scores.
        wrong_sign: Chance that one run each gets its sign wrong, by the orders alone.
        wrong_sign_here: The same with the noise that so many documents add.
        runs: Runs of each way that show it with a chance of `POWER`, by the orders alone; None without order noise.
        wrong_sign_interval: Of `wrong_sign`, by the interval of the order sigma.
        runs_interval: Of `runs`, likewise.
    """

    difference: float
    wrong_sign: float
    wrong_sign_here: float
    runs: float | None
    wrong_sign_interval: tuple[float, float]
    runs_interval: tuple[float, float]


@dataclass(frozen=True)
class OrderNoise:
    """The noise of one score.

    Attributes:
        task: Task or group of tasks.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers.
        families: Names of the repeated runs, by family.
        documents: How many.
        mean: Of all runs' scores.
        spread: Standard deviation of one run's score over runs, as scored.
        order_sigma: What would be left of it with endless documents.
        order_low: Lower end of its confidence interval.
        order_high: Upper end.
        item_sigma: What the documents add to it, as runs err on different ones.
        removable: Share of the spread's variance that more documents would remove.
        document_sigma: Standard error of the mean over other draws of documents, which all runs share.
        power: For some differences.
    """

    task: str
    metric: str
    filter: str
    families: dict[str, list[str]]
    documents: int
    mean: float
    spread: float
    order_sigma: float
    order_low: float
    order_high: float
    item_sigma: float
    removable: float
    document_sigma: float
    power: list[Power]


@dataclass(frozen=True)
class FamilyGain:
    """What a merge gained over its single models, by family.

    Attributes:
        task: Task or group of tasks.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers.
        merge: The merge.
        gains: Its score less the mean of the single ones, by family.
        mean: Of these.
        low: Lower end of its confidence interval over families: what other training orders would change.
        high: Upper end.
    """

    task: str
    metric: str
    filter: str
    merge: str
    gains: dict[str, float]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class NoiseReport:
    """What `ordermerge noise` found.

    Attributes:
        noise: By task and metric.
        gains: Of merges that several families have.
        left_out: Scores that are no mean over documents.
        confidence: Of the intervals.
        target_power: Of `Power.runs`.
    """

    noise: list[OrderNoise]
    gains: list[FamilyGain]
    left_out: list[LeftOut]
    confidence: float = LEVEL
    target_power: float = POWER


def variance_components(families: Sequence[Array], strata: Sequence[int], shares: Sequence[float]) -> Components:
    """Return what the scores of repeated runs vary by: documents crossed with runs, runs within families.

    With y[i, r] = mean + document i + run r + rest, the variance of a run's mean over n documents is that of the runs
    plus that of the rest / n; the mean squares of the two-way analysis tell them apart. The interval is Williams' for
    nested variances (Biometrika 49, 1962; also by Tukey): exact as the documents' share is known well, as it is here.

    Args:
        families: For each family the values, shape [n, runs], at least 2 documents in each stratum and 2 runs; the
            documents are the same, those of one stratum together.
        strata: Documents in each stratum (a task, or each sub-task of a group), summing to n.
        shares: Weight of each stratum's mean in the score, summing to 1.
    """
    weights = np.repeat(np.divide(shares, strata), strata)
    freedom = sum(values.shape[1] - 1 for values in families)
    scores = [weights @ values for values in families]
    total = sum(float(((one - one.mean()) ** 2).sum()) for one in scores) / freedom
    parts = [np.split(values, np.cumsum(strata)[:-1]) for values in families]
    terms, terms_freedom = [], []
    for stratum, (count, share) in enumerate(zip(strata, shares, strict=True)):
        squares = sum(_interaction(part[stratum]) for part in parts)
        terms_freedom.append(freedom * (count - 1))
        terms.append(share**2 * squares / terms_freedom[-1] / count)
    noise = sum(terms)
    # Satterthwaite's degrees of freedom of a sum of mean squares
    noise_freedom = noise**2 / sum(t**2 / k for t, k in zip(terms, terms_freedom, strict=True)) if noise else math.inf
    low, high = _williams_interval(total, freedom, noise, noise_freedom)
    means = np.mean([values.mean(axis=1) for values in families], axis=0)
    cuts = np.split(means, np.cumsum(strata)[:-1])
    documents = sum(share**2 * cut.var(ddof=1) / len(cut) for cut, share in zip(cuts, shares, strict=True))
    return Components(total, max(total - noise, 0.0), low, high, noise, float(documents), freedom)


def wrong_sign_chance(difference: float, sigma: float) -> float:
    """Return the chance that one run each of two ways of training gets the sign of their difference wrong.

    Phi(-difference / (sqrt(2) sigma)): the scores are normal with the same standard deviation.

    Args:
        difference: The true difference of the mean scores.
        sigma: Standard deviation of one run's score.
    """
    return float(norm.cdf(-abs(difference) / (math.sqrt(2) * sigma))) if sigma > 0 else 0.0 if difference else 0.5


def runs_per_arm(difference: float, sigma: float) -> float:
    """Return how many runs of each of two ways of training show their difference with a chance of `POWER`.

    2 (z of the confidence + z of the power)^2 (sigma / difference)^2, for a two-sided test at 1 - `LEVEL` with sigma
    known; to be rounded up.

    Args:
        difference: The true difference of the mean scores, not 0.
        sigma: Standard deviation of one run's score.
    """
    return float(2 * ((norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER)) * sigma / difference) ** 2)


def order_noise(
    families: Mapping[str, Sequence[ModelValues]],
    merges: Mapping[str, Sequence[ModelValues]],
    differences: Sequence[float] = (),
) -> NoiseReport:
    """Return the noise of every score that all runs have.

    Args:
        families: For each family the repeated runs, at least 2; all scored alike.
        merges: For each family what was merged of them.
        differences: Of mean scores, to tell what they amount to; `MULTIPLES` of the order sigma, if none is given.

    Raises:
        UserError: If a family has fewer than 2 runs.
    """
    for name, models in families.items():
        if len(models) < 2:
            raise UserError(f"{name}: order noise takes at least 2 repeated runs; got {len(models)}")
    every = [model for models in families.values() for model in models]
    found, left_out = [], []
    for key in common_scores(every):
        try:
            found.append(_noise_of(key, every, families, differences))
        except NotPaired as reason:
            left_out.append(LeftOut(*key, str(reason)))
    return NoiseReport(found, list(_gains(families, merges)), left_out)


def print_noise(report: NoiseReport, file: IO[str] | None = None) -> None:
    """Print the tables; nothing is cut.

    Args:
        report: What was found.
        file: Where to print; standard output if not given.
    """
    header = ["score", "runs", "documents", "mean", "spread", "order sigma", f"{percent(report.confidence)} interval"]
    lines = [
        [_title(one), f"{sum(map(len, one.families.values()))}", f"{one.documents:,}", digits(one.mean),
         digits(one.spread), digits(one.order_sigma), f"{digits(one.order_low)} to {digits(one.order_high)}",
         digits(one.item_sigma), percent(one.removable), digits(one.document_sigma)]
        for one in report.noise
    ]  # fmt: skip
    header += ["item noise", "removable", "documents' s.e."]
    notes = [
        "spread: standard deviation of one run's score over orders, as scored. order sigma: what would be left of it "
        "with endless documents. item noise: the rest, as runs err on different documents. removable: the share of the "
        "spread's variance that more documents would remove. documents' s.e.: of the mean, by the draw of documents, "
        "which all runs share.",
    ]
    print_columns(header, lines, notes, file)
    for one in report.noise:
        print(f"\n{_title(one)}, one run each of two ways of training (with the order sigma's interval):", file=file)
        columns = [
            "true difference",
            "wrong sign",
            "with these documents",
            f"runs each, {percent(report.target_power)} power",
        ]
        rows = [[digits(p.difference), _chance(p), f"{p.wrong_sign_here:.3f}", _runs(p)] for p in one.power]
        print_columns(columns, rows, file=file)
    if report.gains:
        print("\nMerged model less the mean of its single ones, over families of orders:", file=file)
        lines = [
            [f"{gain.merge}, {_title(gain)}", " ".join(map(digits, gain.gains.values())), digits(gain.mean),
             f"{digits(gain.low)} to {digits(gain.high)}"]
            for gain in report.gains
        ]  # fmt: skip
        print_columns(
            ["merge", "by family", "mean", f"{percent(report.confidence)} interval over orders"], lines, file=file
        )
    for left in report.left_out:
        print(f"{_title(left)} is left out: {left.reason}.", file=file)


def _interaction(values: Array) -> float:
    """Return the sum of squares of values [documents, runs] about their documents' and their runs' means."""
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((rest**2).sum())


def _williams_interval(total: float, freedom: int, noise: float, noise_freedom: float) -> tuple[float, float]:
    """Return the ends of the confidence interval of the variance of orders, at least 0."""
    if total == 0:
        return 0.0, 0.0
    ends = []
    for quantile in ((1 + LEVEL) / 2, (1 - LEVEL) / 2):
        ratio = f.ppf(quantile, freedom, noise_freedom) if math.isfinite(noise_freedom) else 0.0
        ends.append(max(float(freedom / chi2.ppf(quantile, freedom) * (total - noise * ratio)), 0.0))
    return ends[0], ends[1]


def _noise_of(
    key: tuple[str, str, str],
    every: Sequence[ModelValues],
    families: Mapping[str, Sequence[ModelValues]],
    differences: Sequence[float],
) -> OrderNoise:
    values = pair(every, [model.rows[key] for model in every])
    if min(values.strata) < 2:
        raise NotPaired("it has a single document")
    sizes = [len(models) for models in families.values()]
    parts = np.split(values.values, np.cumsum(sizes)[:-1], axis=1)
    found = variance_components(parts, values.strata, values.shares)
    sigma, spread = math.sqrt(found.orders), math.sqrt(found.total)
    asked = differences or [multiple * sigma for multiple in MULTIPLES if sigma]
    return OrderNoise(
        *key,
        families={name: [model.name for model in models] for name, models in families.items()},
        documents=len(values.values),
        mean=float(np.mean([model.rows[key].value for model in every])),
        spread=spread,
        order_sigma=sigma,
        order_low=math.sqrt(found.orders_low),
        order_high=math.sqrt(found.orders_high),
        item_sigma=math.sqrt(found.noise),
        removable=min(found.noise / found.total, 1.0) if found.total else 0.0,
        document_sigma=math.sqrt(found.documents),
        power=[_power(difference, found) for difference in asked],
    )


def _power(difference: float, found: Components) -> Power:
    sigma, ends = math.sqrt(found.orders), (math.sqrt(found.orders_low), math.sqrt(found.orders_high))
    return Power(
        difference,
        wrong_sign_chance(difference, sigma),
        wrong_sign_chance(difference, math.sqrt(found.orders + found.noise)),
        runs_per_arm(difference, sigma) if sigma else None,
        (wrong_sign_chance(difference, ends[0]), wrong_sign_chance(difference, ends[1])),
        (runs_per_arm(difference, ends[0]), runs_per_arm(difference, ends[1])),
    )


def _gains(
    families: Mapping[str, Sequence[ModelValues]], merges: Mapping[str, Sequence[ModelValues]]
) -> Iterator[FamilyGain]:
    """Yield what each merge gained that several families have."""
    by_merge: dict[str, dict[str, ModelValues]] = {}
    for family, models in merges.items():
        for model in models:
            by_merge.setdefault(model.name.removeprefix(f"{family}/"), {})[family] = model
    for merge, merged in by_merge.items():
        if len(merged) < 2:
            continue
        for key in common_scores([*merged.values(), *(single for family in merged for single in families[family])]):
            gains = {
                family: model.rows[key].value - float(np.mean([single.rows[key].value for single in families[family]]))
                for family, model in merged.items()
            }
            mean, low, high = mean_interval(list(gains.values()))
            yield FamilyGain(*key, merge, gains, mean, low, high)


def _chance(power: Power) -> str:
    low, high = power.wrong_sign_interval
    return f"{power.wrong_sign:.3f} ({low:.3f} to {high:.3f})"


def _runs(power: Power) -> str:
    low, high = (max(math.ceil(runs), 1) for runs in power.runs_interval)
    return "" if power.runs is None else f"{math.ceil(power.runs):,} ({low:,} to {high:,})"


def _title(one: OrderNoise | FamilyGain | LeftOut) -> str:
    return " ".join([one.task, one.metric, *([] if one.filter == NO_FILTER else [one.filter])])
