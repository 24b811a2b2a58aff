"""Conclusions of `ordermerge inspect`: what the numbers mean for merging and resampling, in plain words."""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from ordermerge.eval.inspect.tables import decimal, percent

# Resampling replaces at most the values that some sub-models changed and others did not. Training with float32 weights
# leaves about 1 % of bfloat16 values unchanged, where it made no measurable difference; training with bfloat16 weights
# leaves 12 to 20 %. The line is drawn between the two.
RESAMPLING_MATTERS = 0.05
# Task vectors of unrelated trainings are close to orthogonal (Ilharco et al., arXiv 2212.04089), those of one data set
# in several orders share what the data teach (a cosine of about a half in the quickstart, whose order noise is large).
UNRELATED_COSINE = 0.1
# At this cosine, two sub-models are 5 times closer to each other than to the base: their merge hardly differs from
# either.
ALIKE_COSINE = 0.98
# The cosines of a copy differ from 1 by rounding alone (float32 sums: under 1e-5).
COPY_COSINE = 1 - 1e-5
# Unrelated models are at least their own norm apart; fine-tuning moves weights by a small part of it.
UNRELATED_NORM = 0.9
# The mean cosine of unrelated updates is 0, give or take 1/sqrt(values times pairs): so many times that is no chance.
_DEVIATIONS = 4
# Where model stock's denominator is this small, it keeps the base model.
_SINGULAR = 1e-6
_NAMED = 3  # of many pairs of models, so many are named


def conclusions(overall: Mapping[str, Any]) -> list[str]:
    """Return what a summary of all tensors means, one sentence each.

    Args:
        overall: See `ordermerge.eval.inspect.summary.summarise`.
    """
    return [*_base_lines(overall), *_sibling_lines(overall), *_resampling_lines(overall), *_finite_lines(overall)]


def model_stock_warnings(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence where `model_stock` would extrapolate: in tensors whose updates point apart.

    Args:
        tensors: The summary of each tensor (see `ordermerge.eval.inspect.summary.summarise`).
    """
    apart = {}
    for name, summary in tensors.items():
        count, cosine = len(summary["norm"]), summary["cosine"] and summary["cosine"]["mean"]
        if cosine is not None and cosine < -_DEVIATIONS / math.sqrt(math.comb(count, 2) * summary["values"]):
            apart[name] = cosine
    if not apart:
        return
    lowest = min(apart, key=lambda name: apart[name])
    step = 1 + (len(tensors[lowest]["norm"]) - 1) * apart[lowest]
    factor = len(tensors[lowest]["norm"]) * apart[lowest] / step if abs(step) > _SINGULAR else None
    yield (
        f"in {len(apart)} of {len(tensors)} tensors the sub-models' updates point apart (mean cosine down to "
        f"{decimal(apart[lowest])}, in {lowest}): there `model_stock` would extrapolate, to the other side of the base "
        f"model{f' ({factor:.2f} times their mean)' if factor is not None else ''}; `linear` does not"
    )


def _base_lines(overall: Mapping[str, Any]) -> Iterator[str]:
    for name, share in overall["unchanged_by_model"].items():
        if share == 1:
            yield f"{name} equals the base model in every value: it was not fine-tuned, or is the base model itself."
    norms = overall["relative_norm"]
    far = [f"{name} ({norm:.2f})" for name, norm in norms.items() if norm is not None and norm >= UNRELATED_NORM]
    if far:
        yield (
            f"This does not look like the base model of {', '.join(far)}: the difference is as large as the weights "
            f"themselves (in brackets, relative to the base's norm)."
        )


def _sibling_lines(overall: Mapping[str, Any]) -> Iterator[str]:
    cosine = overall["cosine"]
    if cosine is None:
        yield "One model: nothing to compare it with but the base; a merge needs two or more."
        return
    names = list(overall["norm"])
    pairs = {
        (names[i], names[j]): value
        for i, j in combinations(range(len(names)), 2)
        if (value := cosine["matrix"][i][j]) is not None
    }
    if not pairs:
        return
    for what, chosen in (
        ("copies of each other", [pair for pair, value in pairs.items() if value >= COPY_COSINE]),
        ("no siblings, as far as this tells", [pair for pair, value in pairs.items() if value < UNRELATED_COSINE]),
    ):
        if chosen and len(chosen) < len(pairs):
            yield f"{_some_pairs(chosen)}: {what} (cosine {_range([pairs[pair] for pair in chosen])})."
    if cosine["highest"] < UNRELATED_COSINE:
        yield (
            f"Cosine {decimal(cosine['mean'])}: these do not look like siblings. Their task vectors have next to "
            f"nothing in common: other data, another base model, or noise larger than what was learned. A merge may be "
            f"worse than each of them."
        )
    elif cosine["lowest"] >= COPY_COSINE:
        yield "Cosine 1.00: these are copies of one model; merging them changes nothing."
    elif cosine["lowest"] >= ALIKE_COSINE:
        yield (
            f"Cosine {cosine['mean']:.3f}: the sub-models are nearly the same; the order made next to no difference, "
            f"and a merge will hardly differ from any of them."
        )
    elif cosine["lowest"] >= UNRELATED_COSINE:
        yield f"Cosine {_range(pairs.values())}: the sub-models look like siblings, each with traces of its own."


def _resampling_lines(overall: Mapping[str, Any]) -> Iterator[str]:
    kept, never = overall["unchanged"], overall["still_base"]["full"]
    reach = kept - never
    if never == 1:
        return
    if reach < RESAMPLING_MATTERS:
        why = (
            f", and {percent(never)} % are so in all of the models, where no draw helps"
            if kept >= RESAMPLING_MATTERS
            else ""
        )
        yield f"{percent(kept)} % of the sub-models' values are unchanged{why}: resampling will hardly matter."
    else:
        once = percent(overall["still_base"]["1"])
        yield (
            f"{percent(kept)} % of the sub-models' values are unchanged: resampling can matter. Selection leaves "
            f"{percent(kept)} % of the merged values at the base's, `resample: 1` {once} %, `resample: full` "
            f"{percent(never)} %."
        )


def _finite_lines(overall: Mapping[str, Any]) -> Iterator[str]:
    if overall["not_finite"]:
        yield (
            f"{overall['not_finite']:,} values are infinite or NaN in some model; cosines, norms and directions are "
            f"those of the others. Such a model is usually broken."
        )


def _some_pairs(pairs: list[tuple[str, str]]) -> str:
    more = f" and {len(pairs) - _NAMED} more pairs" if len(pairs) > _NAMED else ""
    return ", ".join(f"{first} and {second}" for first, second in pairs[:_NAMED]) + more


def _range(values: Any) -> str:
    low, high = decimal(min(values)), decimal(max(values))
    return low if low == high else f"{low} to {high}"
