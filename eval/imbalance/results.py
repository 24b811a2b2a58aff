"""The results of the imbalance analysis for the positions in one epoch, and what they say in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from ordermerge.errors import percent
from ordermerge.eval.imbalance.curves import Curve, Trace, contrast_curve, mean_curve, merged_trace
from ordermerge.eval.imbalance.effect import Effect, log_loss, position_effect
from ordermerge.eval.statistics import Array

SIGNIFICANT = 0.05
ANCHOR, OTHERS = "anchor", "other orders"


@dataclass(frozen=True)
class EpochResult:
    """What the positions in one epoch have to do with the final losses.

    Attributes:
        epoch: "first" or "last".
        log: The effect on log loss: the one that is spoken of.
        raw: The effect on the loss itself.
        spearman: Of each order, the plain rank correlation of loss and position, sample difficulty not removed.
        orders: Of each order, mean loss by position.
        pooled: Mean loss by position over all orders.
        contrast: Log loss by position, from comparisons within samples.
        anchored: Mean loss by the position in an anchor order, each order in turn being the anchor: of the anchor's
            model, of the other orders' mean, of each merged model.
        relative: Log loss of these less the mean log loss of the other orders.
        traces: What each merged model has of the effect.
        averaged: Spread of a sample's mean position over the orders, as a share of that of its position in one: how
            uneven an exact average of the sub-models would leave samples, against a sub-model.
    """

    epoch: str
    log: Effect
    raw: Effect
    spearman: list[float]
    orders: list[Curve]
    pooled: Curve
    contrast: Curve
    anchored: dict[str, Curve]
    relative: dict[str, Curve]
    traces: dict[str, Trace]
    averaged: float


def analyse_epoch(
    epoch: str, losses: Array, positions: Array, merged: Mapping[str, Array], *, bins: int = 10, seed: int = 0
) -> EpochResult:
    """Analyse the positions in one epoch.

    Args:
        epoch: "first" or "last".
        losses: Of the sub-models, shape [K, n], at least two of each.
        positions: From 0 (first) to 1 (last), shape [K, n].
        merged: Losses of each merged model, shape [n].
        bins: Of the curves.
        seed: Of permutations and bootstrap.

    Raises:
        ValueError: If positions are the same in all orders.
    """
    logs, count = log_loss(losses), len(losses)
    others = (losses.sum(axis=0) - losses) / (count - 1)
    log_others = (logs.sum(axis=0) - logs) / (count - 1)
    every = {name: np.broadcast_to(values, losses.shape) for name, values in merged.items()}
    return EpochResult(
        epoch,
        position_effect(logs, positions, seed=seed),
        position_effect(losses, positions, seed=seed),
        [float(spearmanr(*pair).statistic) for pair in zip(losses, positions, strict=True)],
        [mean_curve(*(part[None] for part in pair), bins=bins) for pair in zip(losses, positions, strict=True)],
        mean_curve(losses, positions, bins=bins),
        contrast_curve(logs, positions, bins=bins),
        {n: mean_curve(v, positions, bins=bins) for n, v in {ANCHOR: losses, OTHERS: others, **every}.items()},
        {
            name: mean_curve(log_loss(values) - log_others, positions, bins=bins)
            for name, values in {ANCHOR: losses, **every}.items()
        },
        {name: merged_trace(log_loss(values), logs, positions, seed=seed) for name, values in merged.items()},
        float(positions.mean(axis=0).std() / positions.std(axis=1).mean()),
    )


def in_words(result: EpochResult, orders: int) -> list[str]:
    """Return what was found, a sentence a line.

    Args:
        result: From `analyse_epoch`.
        orders: K.
    """
    effect = result.log
    found = effect.slope_p < SIGNIFICANT
    verdict = (
        ("later is better remembered" if effect.slope < 0 else "earlier is better remembered")
        if found
        else ("no effect found")
    )
    lines = [
        f"Position in the {result.epoch} epoch: {verdict}. The loss of a sample that is met last rather than first is "
        f"{_change(effect.slope)} (95 % interval: {_change(effect.low)} to {_change(effect.high)}; "
        f"p = {_p(effect.slope_p)}; Spearman {effect.rho:+.3f}, p = {_p(effect.rho_p)})."
    ]
    if not found or not result.traces:
        return lines
    width = max(map(len, result.traces))
    lines += [
        f"  {name:{width}} has {percent(trace.share)} of that per order (95 % interval: {percent(trace.share_low)} to "
        f"{percent(trace.share_high)})"
        for name, trace in result.traces.items()
    ]
    return [
        *lines,
        f"  An exact average would have {percent(1 / orders)} per order; with all {orders} together, its samples would "
        f"be {percent(result.averaged)} as uneven by position as a sub-model's.",
    ]


def _change(log_ratio: float) -> str:
    percent = 100 * np.expm1(log_ratio)
    return f"{abs(percent):.1f} % {'lower' if percent < 0 else 'higher'}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"
