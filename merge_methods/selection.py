"""Which sub-model each value comes from: the draw, and the selection by it.

Everything here works on *lanes*, values as integers (`ordermerge.unchanged.to_lanes`). Plain torch operations say what
is computed. They serve accelerators; on CPUs compiled loops compute the same (`compiled`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from ordermerge.compiled import with_numba
from ordermerge.counter import random_words, stream_key
from ordermerge.merge_methods.shares import DRAWS, share_draws, whole_weights
from ordermerge.unchanged import changed

_DRAWS_PER_WORD = 4
# Elements worked on at once, a multiple of the draws per word: enough for an accelerator, little memory.
_CHUNK = 1 << 20


class Selection(NamedTuple):
    """Where each value is taken from.

    Attributes:
        models: Contiguous lanes of the sub-models of positive weight, each of shape [numel].
        weights: As `whole_weights` returns them.
        base: Contiguous lanes of the base model, or None where nothing is drawn again.
        resample: Number of rounds, or `math.inf`; not looked at without a base.
        stream: Seed and tensor name, which together name the draw.
    """

    models: list[torch.Tensor]
    weights: list[float]
    base: torch.Tensor | None
    resample: float
    stream: tuple[int, str]


def fill_elements(
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor | None,
    resample: float,
    stream: tuple[int, str],
) -> None:
    """Write the merged values to `out`.

    Args:
        out: Lanes of the result, shape [numel].
        models: As in `Selection`.
        weights: Of the models, all positive.
        base: As in `Selection`.
        resample: As in `Selection`.
        stream: As in `Selection`.
    """
    selection = Selection(models, whole_weights(weights), base, resample, stream)

    def fill_by_loops() -> None:
        from ordermerge.merge_methods.compiled import fill_compiled

        fill_compiled(out, selection)

    if out.device.type == "cpu":
        with_numba(fill_by_loops, otherwise=lambda: _fill(out, selection))
    else:
        _fill(out, selection)


def _fill(out: torch.Tensor, selection: Selection) -> None:
    models, weights, base, resample, stream = selection
    for start in range(0, out.numel(), _CHUNK):
        span = slice(start, start + _CHUNK)
        piece, pieces = out[span], [lanes[span] for lanes in models]
        draw = functools.partial(_draws, stream, start, piece)
        if base is None:
            piece.copy_(_select(pieces, weights, draw(0)))
        elif math.isinf(resample):
            piece.copy_(_select_changed(pieces, weights, base[span], draw(0)))
        else:
            piece.copy_(_select_again(pieces, weights, base[span], int(resample), draw))


def _draws(stream: tuple[int, str], start: int, like: torch.Tensor, number: int) -> torch.Tensor:
    """Return a round's draws of as many elements, from `start` onwards: whole numbers, uniform on [-2^15, 2^15)."""
    words = -(-len(like) // _DRAWS_PER_WORD)
    made = random_words(stream_key(*stream, number), start // _DRAWS_PER_WORD, words, device=like.device)
    return made.view(torch.int16)[: len(like)].int()


def _select(models: list[torch.Tensor], weights: Sequence[float], draws: torch.Tensor) -> torch.Tensor:
    """Return each element of the model in whose share of the draws its draw falls."""
    models, marks = share_draws(models, weights)
    out = models[0]
    for lanes, mark in zip(models[1:], marks[1:], strict=True):
        out = torch.where(draws < mark, out, lanes)
    return out


def _select_again(
    models: list[torch.Tensor],
    weights: Sequence[float],
    base: torch.Tensor,
    rounds: int,
    draw: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Return the selection, drawn again, `rounds` times, where it equals the base."""
    out = _select(models, weights, draw(0))
    waiting = ~changed(out, base)
    if rounds > 1:  # what no model that can be drawn has changed is not waited for
        movable = torch.zeros_like(waiting)
        for lanes in share_draws(models, weights)[0]:
            movable |= changed(lanes, base)
        waiting &= movable
    for number in range(1, rounds + 1):
        if not waiting.any():
            break
        out = torch.where(waiting, _select(models, weights, draw(number)), out)
        waiting &= ~changed(out, base)
    return out


def _select_changed(
    models: list[torch.Tensor], weights: Sequence[float], base: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """Return values drawn, in proportion to weight, from the models that changed them.

    The weights of the models that changed a value are summed up in order. The draw, scaled to their total, falls into
    one model's part of the sum; where the total is 0 the last model's value, unchanged, is taken.
    """
    total = torch.zeros_like(draws, dtype=torch.float32)
    for lanes, weight in zip(models, weights, strict=True):
        total += changed(lanes, base).float() * weight
    marks = (draws.float() + (DRAWS + 1) / 2) / DRAWS * total
    out, before = models[0], torch.zeros_like(total)
    for (previous, lanes), weight in zip(pairwise(models), weights, strict=False):
        before += changed(previous, base).float() * weight
        out = torch.where(marks < before, out, lanes)
    return out


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
    models, marks = share_draws(models, whole_weights(weights))
    table, tables = out.view(rows, -1), [lanes.view(rows, -1) for lanes in models]
    for start in range(0, rows, _CHUNK):
        draws = _draws(stream, start, table[start : start + _CHUNK], 0)
        choice = torch.bucketize(draws, torch.tensor(marks[1:], dtype=draws.dtype, device=out.device), right=True)
        for index, lanes in enumerate(tables):
            where = (choice == index).nonzero().squeeze(1) + start
            table.index_copy_(0, where, lanes.index_select(0, where))
