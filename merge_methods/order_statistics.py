"""Values at given ranks of numbers that come by in pieces: exact, in memory that does not grow with their number."""

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch

_BITS = 16
_BINS = 1 << _BITS
# Orders the bits of negative floats as integers: flips all but the sign.
_MAGNITUDE = 0x7FFFFFFF

Pieces = Callable[[], Iterable[tuple[Hashable, torch.Tensor]]]


def values_at_ranks(pieces: Pieces, ranks: Callable[[Hashable, int], Sequence[int]]) -> dict[Hashable, list[float]]:
    """Return the values that series of numbers would have at given places if they were sorted.

    The numbers are gone through twice: once to count the upper 16 bits of each, once to count the lower ones of those
    whose upper bits are those sought. The result does not depend on the pieces. -0.0 comes before 0.0, and a NaN (of
    positive sign) after everything.

    Args:
        pieces: Gives the numbers, each time it is called, as pairs of a series' name and a part of it: contiguous
            float32 of shape [n], of any n and on any device.
        ranks: Given a series' name and length, returns the places asked for, from 0 (smallest) to length - 1.

    Returns:
        For each series, the values at its ranks, in their order.
    """
    upper: dict[Hashable, torch.Tensor] = {}
    for series, piece in pieces():
        counts = torch.bincount((_ordered(piece) >> _BITS) + _BINS // 2, minlength=_BINS)
        upper[series] = counts + upper.get(series, 0)
    places = {
        series: [_place(counts, rank) for rank in ranks(series, int(counts.sum()))] for series, counts in upper.items()
    }
    lower: dict[tuple[Hashable, int], torch.Tensor] = {}
    for series, piece in pieces():
        ordered = _ordered(piece)
        for bucket in {bucket for bucket, _ in places[series]}:
            within = ordered[(ordered >> _BITS) == bucket - _BINS // 2] & (_BINS - 1)
            lower[series, bucket] = torch.bincount(within, minlength=_BINS) + lower.get((series, bucket), 0)
    return {
        series: [_value(bucket, _place(lower[series, bucket], rest)[0]) for bucket, rest in found]
        for series, found in places.items()
    }


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """Return int32 numbers in the order of the float32 values."""
    bits = values.view(torch.int32)
    return bits ^ ((bits >> 31) & _MAGNITUDE)


def _place(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """Return the bucket that holds the value of a rank, and its rank within the bucket."""
    ends = counts.cumsum(0)
    bucket = int(torch.searchsorted(ends, rank, right=True))
    return bucket, rank - int(ends[bucket] - counts[bucket])


def _value(upper: int, lower: int) -> float:
    ordered = torch.tensor([((upper - _BINS // 2) << _BITS) + lower], dtype=torch.int64).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & _MAGNITUDE)).view(torch.float32).item()
