"""Which sub-model each value comes from: the draw, and the selection by it, over flat integer lanes.

Everything here works on *lanes* (`ordermerge.unchanged.to_lanes`) in pieces that fit a cache, with integer operations
that torch vectorises: comparisons that write bool, and `torch.where`, are several times slower on 16-bit values. All
scratch belongs to the call, because mergekit runs kernels in threads.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

import torch

from ordermerge.counter import counters, mix_words, stream_key
from ordermerge.unchanged import Base

_DRAW_BITS = 16
_DRAWS = 1 << _DRAW_BITS
_DRAWS_PER_WORD = 64 // _DRAW_BITS
# Sums of whole weights up to this are counted exactly in 16-bit lanes, and scaled exactly by a draw in float32.
_LARGEST_TOTAL = 127
# A weight this much smaller than the largest is still counted as positive in float32.
_SMALLEST_WEIGHT = 2.0**-100
# Elements worked on at once, a multiple of the draws per word: few enough for a CPU's cache, enough for an accelerator.
_CHUNK_CPU = 1 << 19
_CHUNK_ACCELERATOR = 1 << 20


class _Workspace:
    """Scratch tensors of one call, made once and used for every piece.

    Args:
        like: A lanes tensor: its type and device are those of the scratch.
    """

    def __init__(self, like: torch.Tensor):
        self.chunk = _CHUNK_CPU if like.device.type == "cpu" else _CHUNK_ACCELERATOR
        self._like = like
        self._size = min(self.chunk, like.numel())
        self._tensors: dict[str, torch.Tensor] = {}
        words = -(-self._size // _DRAWS_PER_WORD)
        self._counters = counters(words, device=like.device)
        self._words, self._shifted = torch.empty_like(self._counters), torch.empty_like(self._counters)

    def get(self, name: str, length: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the first `length` elements of the scratch tensor of that name; their content is arbitrary."""
        if name not in self._tensors:
            self._tensors[name] = torch.empty(self._size, dtype=dtype or self._like.dtype, device=self._like.device)
        return self._tensors[name][:length]

    def draws(self, stream: tuple[int, str, int], start: int, length: int) -> torch.Tensor:
        """Return the draws of elements `start` onwards: uniform on [-2^15, 2^15), in the lanes' type."""
        words = slice(-(-length // _DRAWS_PER_WORD))
        first = start // _DRAWS_PER_WORD
        out, scratch = self._words[words], self._shifted[words]
        mixed = mix_words(self._counters[words], stream_key(*stream), first, out=out, scratch=scratch)
        draws = mixed.view(torch.int16)[:length]
        return draws if self._like.dtype == torch.int16 else self.get("draws", length).copy_(draws)


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
    space = _Workspace(out)
    weights = whole_weights(weights)
    for start in range(0, out.numel(), space.chunk):
        span = slice(start, start + space.chunk)
        piece, pieces = out[span], [lanes[span] for lanes in models]
        draws = space.draws((*stream, 0), start, piece.numel())
        if base is None:
            _select(piece, pieces, weights, draws, space)
        elif math.isinf(resample):
            _select_changed(piece, pieces, weights, Base(base[span]), draws, space)
        else:
            _select(piece, pieces, weights, draws, space)
            _resample(piece, pieces, weights, Base(base[span]), int(resample), (stream, start), space)


def whole_weights(weights: Sequence[float]) -> list[float]:
    """Return the same proportions as small whole numbers, or else as fractions of the largest weight.

    Args:
        weights: Positive numbers.
    """
    shares = [weight / max(weights) for weight in weights]
    near = [Fraction(share).limit_denominator(_LARGEST_TOTAL) for share in shares]
    whole = [share * math.lcm(*(share.denominator for share in near)) for share in near]
    exact = all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(near, shares, strict=True))
    if exact and all(whole) and sum(whole) <= _LARGEST_TOTAL:
        return [int(weight) for weight in whole]
    return [max(share, _SMALLEST_WEIGHT) for share in shares]


def _thresholds(weights: Sequence[float]) -> list[int]:
    """Return, for each model, the draw (on [-2^15, 2^15]) below which it or an earlier one is taken."""
    totals = list(accumulate(weights))
    return [round(_DRAWS * (total / totals[-1])) - _DRAWS // 2 for total in totals]


def _select(
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: Sequence[float],
    draws: torch.Tensor,
    space: _Workspace,
) -> None:
    """Write to `out` each element of the first model whose threshold lies above the element's draw."""
    thresholds = _thresholds(weights)
    last = thresholds.index(_DRAWS // 2)
    chosen = space.get("chosen", out.numel())
    below = models[last]
    for lanes, threshold in zip(reversed(models[:last]), reversed(thresholds[:last]), strict=True):
        below = _blend(below, lanes, torch.lt(draws, threshold, out=chosen), out, space)
    if not last:
        out.copy_(below)


def _blend(
    below: torch.Tensor, lanes: torch.Tensor, chosen: torch.Tensor, out: torch.Tensor, space: _Workspace
) -> torch.Tensor:
    """Write `lanes` where `chosen` is 1 and `below` where it is 0: below + (lanes - below) * chosen modulo 2^bits."""
    difference = torch.sub(lanes, below, out=space.get("difference", out.numel()))
    return torch.addcmul(below, difference, chosen, out=out)


def _select_changed(
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: Sequence[float],
    base: Base,
    draws: torch.Tensor,
    space: _Workspace,
) -> None:
    """Write to `out` a value drawn, in proportion to weight, from the models that changed it.

    The weights of the changed models are summed up in order; the draw, scaled by their total, falls below the sum at
    the model to take, and nowhere where the total is 0.
    """
    length, whole = out.numel(), all(isinstance(weight, int) for weight in weights)
    dtype = out.dtype if whole else torch.float32
    sums: list[torch.Tensor] = []
    for index, (lanes, weight) in enumerate(zip(models, weights, strict=True)):
        changed = base.changed(lanes, out=space.get("changed", length))
        if not whole:
            changed = space.get("weighed", length, dtype).copy_(changed)
        total = space.get(f"sum {index}", length, dtype)
        sums.append(
            torch.add(sums[-1], changed, alpha=weight, out=total) if sums else torch.mul(changed, weight, out=total)
        )
    marks = space.get("marks", length, torch.float32).copy_(draws)
    marks.add_((_DRAWS + 1) / 2).mul_(1 / _DRAWS).mul_(sums[-1])
    if whole:  # a whole sum lies above the mark where it lies above the whole part of it
        marks = space.get("whole marks", length).copy_(marks)
    chosen = space.get("chosen", length)
    below = models[-1]
    for lanes, total in zip(reversed(models[:-1]), reversed(sums[:-1]), strict=True):
        if whole:
            torch.lt(marks, total, out=chosen)
        else:  # faster in two steps
            chosen.copy_(torch.lt(marks, total, out=total))
        below = _blend(below, lanes, chosen, out, space)
    if len(models) == 1:
        out.copy_(below)


def _resample(
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: Sequence[float],
    base: Base,
    rounds: int,
    where: tuple[tuple[int, str], int],
    space: _Workspace,
) -> None:
    """Draw again, `rounds` times, where `out` equals the base."""
    stream, start = where
    length = out.numel()
    pending = base.unchanged(out, out=space.get("pending", length))
    changed = space.get("changed", length)
    if rounds > 1:  # what no model that can be drawn has changed is not waited for
        movable = space.get("movable", length).zero_()
        marks = [-_DRAWS // 2, *_thresholds(weights)]
        for lanes, (low, high) in zip(models, pairwise(marks), strict=True):
            if high > low:
                movable |= base.changed(lanes, out=changed)
        pending &= movable
    drawn = space.get("drawn", length)
    for number in range(1, rounds + 1):
        _select(drawn, models, weights, space.draws((*stream, number), start, length), space)
        _blend(out, drawn, pending, out, space)
        if number < rounds:
            pending &= base.unchanged(out, out=changed)
            if not pending.max():
                break


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
    space = _Workspace(out[:rows])
    thresholds = torch.tensor(_thresholds(whole_weights(weights)), device=out.device)
    table, tables = out.view(rows, -1), [lanes.view(rows, -1) for lanes in models]
    for start in range(0, rows, space.chunk):
        draws = space.draws((*stream, 0), start, min(space.chunk, rows - start))
        choice = torch.bucketize(draws, thresholds, right=True)
        for index, lanes in enumerate(tables):
            where = (choice == index).nonzero().squeeze(1) + start
            table.index_copy_(0, where, lanes.index_select(0, where))
