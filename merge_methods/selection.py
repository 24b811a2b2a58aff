"""Which sub-model each value comes from: the draw, and the selection by it, over flat integer lanes.

Everything here works on *lanes* (`ordermerge.unchanged.to_lanes`) in pieces that fit a cache. Masks are integers 0
and -1 of the lanes' own type and are applied bitwise: comparisons that write bool, and `torch.where`, are several
times slower on 16-bit values. All scratch belongs to the call, because mergekit runs kernels in threads.
"""

import math
from itertools import accumulate

import torch

from ordermerge.counter import random_words, stream_key
from ordermerge.unchanged import Base

_DRAW_BITS = 16
_DRAWS = 1 << _DRAW_BITS
_DRAWS_PER_WORD = 64 // _DRAW_BITS
# A weight this much smaller than the largest is still counted as positive in float32.
_SMALLEST_WEIGHT = 2.0**-100
# Elements worked on at once, a multiple of the draws per word: few enough for a CPU's cache, enough for an accelerator.
_CHUNK_CPU = 1 << 17
_CHUNK_ACCELERATOR = 1 << 21


def fill_elements(
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: list[float],
    base: torch.Tensor | None,
    resample: float,
    stream: tuple[int, str],
) -> None:
    """Write the merged values to `out`.

    Args:
        out: Lanes of the result, shape [numel].
        models: Lanes of the sub-models of positive weight, each of shape [numel].
        weights: Their weights, all positive.
        base: Lanes of the base model, or None where nothing is drawn again.
        resample: Number of rounds, or `math.inf`; not looked at without a base.
        stream: Seed and tensor name, which together name the draw.
    """
    chunk = _CHUNK_CPU if out.device.type == "cpu" else _CHUNK_ACCELERATOR
    for start in range(0, out.numel(), chunk):
        span = slice(start, start + chunk)
        pieces = [lanes[span] for lanes in models]
        draws = _draws((*stream, 0), start, out[span])
        if base is None:
            _select(out[span], pieces, weights, draws)
        elif math.isinf(resample):
            _select_changed(out[span], pieces, weights, Base(base[span]), draws)
        else:
            _select(out[span], pieces, weights, draws)
            _resample(out[span], pieces, weights, Base(base[span]), int(resample), stream, start)


def _draws(stream: tuple[int, str, int], start: int, like: torch.Tensor) -> torch.Tensor:
    """Return the draws of elements `start` onwards: uniform on [-2^15, 2^15), of the shape and type of `like`."""
    words = -(-like.numel() // _DRAWS_PER_WORD)
    bits = random_words(stream_key(*stream), start // _DRAWS_PER_WORD, words, device=like.device)
    return bits.view(torch.int16)[: like.numel()].to(like.dtype)


def _thresholds(weights: list[float]) -> list[int]:
    """Return, for each model, the draw (on [-2^15, 2^15]) below which it or an earlier one is taken."""
    totals = list(accumulate(weight / max(weights) for weight in weights))
    return [round(_DRAWS * total / totals[-1]) - _DRAWS // 2 for total in totals]


def _select(out: torch.Tensor, models: list[torch.Tensor], weights: list[float], draws: torch.Tensor) -> None:
    """Write to `out` each element of the first model whose threshold lies above the element's draw."""
    thresholds = _thresholds(weights)
    last = thresholds.index(_DRAWS // 2)
    out.copy_(models[last])
    chosen, scratch = torch.empty_like(out), torch.empty_like(out)
    for lanes, threshold in zip(reversed(models[:last]), reversed(thresholds[:last]), strict=True):
        torch.lt(draws, threshold, out=chosen)
        _blend(out, lanes, chosen, scratch)


def _blend(out: torch.Tensor, lanes: torch.Tensor, chosen: torch.Tensor, scratch: torch.Tensor) -> None:
    """Take `lanes` into `out` where `chosen` is 1; bitwise, because `torch.where` is slow on 16-bit lanes."""
    torch.bitwise_xor(out, lanes, out=scratch)
    out ^= scratch.bitwise_and_(chosen.neg_())


def _select_changed(
    out: torch.Tensor, models: list[torch.Tensor], weights: list[float], base: Base, draws: torch.Tensor
) -> None:
    """Write to `out` a value drawn, in proportion to weight, from the models that changed it."""
    totals: list[torch.Tensor] = []
    for lanes, weight in zip(models, weights, strict=True):
        changed = base.changed(lanes).to(torch.float32).mul_(max(weight / max(weights), _SMALLEST_WEIGHT))
        totals.append(changed.add_(totals[-1]) if totals else changed)
    # At least one draw lies below any total > 0, and none at or above the last total.
    marks = draws.to(torch.float32).add_((_DRAWS + 1) / 2).mul_(1 / _DRAWS).mul_(totals[-1])
    out.copy_(models[-1])
    chosen, scratch = torch.empty_like(out), torch.empty_like(out)
    for lanes, total in zip(reversed(models[:-1]), reversed(totals[:-1]), strict=True):
        torch.lt(marks, total, out=chosen)
        _blend(out, lanes, chosen, scratch)


def _resample(
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: list[float],
    base: Base,
    rounds: int,
    stream: tuple[int, str],
    start: int,
) -> None:
    """Draw again, `rounds` times, where `out` equals the base."""
    pending = base.changed(out).bitwise_xor_(1)
    if rounds > 1:  # what no model changed is not waited for
        movable = torch.zeros_like(out)
        for lanes in models:
            movable |= base.changed(lanes)
        pending &= movable
    drawn, scratch = torch.empty_like(out), torch.empty_like(out)
    for number in range(1, rounds + 1):
        if not pending.any():
            break
        _select(drawn, models, weights, _draws((*stream, number), start, out))
        _blend(out, drawn, pending.clone(), scratch)
        pending &= base.changed(out).bitwise_xor_(1)


def fill_blocks(
    out: torch.Tensor, models: list[torch.Tensor], weights: list[float], rows: int, stream: tuple[int, str]
) -> None:
    """Write to `out` whole rows, each from one model.

    Args:
        out: Lanes of the result, shape [numel].
        models: Lanes of the sub-models of positive weight, each of shape [numel].
        weights: Their weights, all positive.
        rows: How many rows of equal length the tensor has.
        stream: Seed and tensor name, which together name the draw.
    """
    if not out.numel():
        return
    draws = _draws((*stream, 0), 0, out[:rows])
    choice = torch.bucketize(draws, torch.tensor(_thresholds(weights), device=out.device), right=True)
    table = out.view(rows, -1)
    for index, lanes in enumerate(models):
        where = (choice == index).nonzero().squeeze(1)
        table.index_copy_(0, where, lanes.view(rows, -1).index_select(0, where))
