"""The selection of values on CPUs: what `selection` says in plain torch, bit for bit, by loops that Numba compiles.

A loop works on a small piece of every model at a time. Even where all tensors start at the same place of a page, and so
compete for the same part of a processor's first cache, the pieces of several models fit into it. Values are selected by
`x ^ ((x ^ y) & -condition)`, which LLVM vectorises; it does not vectorise a conditional store.
"""

import math

import numpy as np
import torch

from ordermerge.compiled import share_out
from ordermerge.counter import stream_key
from ordermerge.loops import DRAWS_PER_WORD, changed, has_zero, lanes_at, loop, part, write_draws
from ordermerge.merge_methods.selection import Selection
from ordermerge.merge_methods.shares import share_draws

_PIECE = 256  # values
_ROUNDS = 32  # drawn in one pass over the values


def fill_compiled(out: torch.Tensor, selection: Selection) -> None:
    """Write the merged values to `out`.

    Args:
        out: Lanes of the result, shape [numel].
        selection: Where they come from.
    """
    models, weights, base, resample, stream = selection
    if base is not None and math.isinf(resample):
        whole = all(isinstance(weight, int) for weight in weights)
        parts = np.array(weights, out.numpy().dtype if whole else np.float32)
        arguments = out.numpy(), _addresses(models), parts, _keys(stream, 0, 1)[0], base.numpy()
        share_out(lambda start, stop: select_changed(*arguments, start, stop), out.numel())
        return
    rounds = 0 if base is None else int(resample)
    models, marks = share_draws(models, weights)
    lanes, addresses, first = out.numpy(), _addresses(models), np.array(marks, np.int16)
    origin = lanes if base is None else base.numpy()

    def select_span(start: int, stop: int) -> None:
        for number in range(0, rounds + 1, _ROUNDS):
            keys = _keys(stream, number, min(number + _ROUNDS, rounds + 1))
            if not select(lanes, addresses, first, keys, origin, number > 0, rounds > 1, start, stop):
                break

    share_out(select_span, out.numel())


def _addresses(models: list[torch.Tensor]) -> np.ndarray:
    return np.array([lanes.data_ptr() for lanes in models], np.int64)


def _keys(stream: tuple[int, str], first: int, last: int) -> np.ndarray:
    return np.array([stream_key(*stream, number) for number in range(first, last)], np.uint64)


@loop
def select(
    out: np.ndarray,
    models: np.ndarray,
    marks: np.ndarray,
    keys: np.ndarray,
    base: np.ndarray,
    again: bool,
    movable: bool,
    start: int,
    stop: int,
) -> bool:
    """Select values `start` to `stop`, and draw again those that are the base's; return whether some still are.

    Args:
        out: The result's lanes, shape [numel].
        models: Addresses of the K models' lanes, which are of the type and shape of `out`; int64 of shape [K].
        marks: The draw from which on each model is taken and not the one before; int16 of shape [K].
        keys: Streams of the selection and of the rounds after it, uint64.
        base: The base model's lanes; not looked at where nothing is drawn again.
        again: The selection is in `out` already: all keys are of rounds.
        movable: Draw again only where one of the models differs from the base.
        start: First value, a multiple of 4.
        stop: End of the values.
    """
    words = np.empty(_PIECE // DRAWS_PER_WORD, np.uint64)
    draws = words.view(np.int16)
    waiting = np.empty(_PIECE, out.dtype)
    rounds = keys if again else keys[1:]
    left = False
    for first in range(start, stop, _PIECE):
        last = min(first + _PIECE, stop)
        piece = out[first:last]
        if not again:
            write_draws(words, keys[0], first)
            for k in range(len(models)):
                _take(piece, lanes_at(models[k], out, first, last), draws, marks[k])
        if len(rounds):
            origin = base[first:last]
            zeros = has_zero(origin)
            for i in range(len(piece)):
                waiting[i] = -out.dtype.type(not movable)
            for k in range(len(models) if movable else 0):
                _add_changed(waiting, lanes_at(models[k], out, first, last), origin, zeros)
            some = _keep_unchanged(waiting, piece, origin, zeros)
            for key in rounds:
                if not some:
                    break
                write_draws(words, key, first)
                for k in range(len(models)):
                    _take_where(waiting, piece, lanes_at(models[k], out, first, last), draws, marks[k])
                some = _keep_unchanged(waiting, piece, origin, zeros)
            left |= some
    return left


@part
def _take(out: np.ndarray, lanes: np.ndarray, draws: np.ndarray, mark: int) -> None:
    for i in range(len(out)):
        out[i] ^= (out[i] ^ lanes[i]) & -out.dtype.type(draws[i] >= mark)


@part
def _take_where(waiting: np.ndarray, out: np.ndarray, lanes: np.ndarray, draws: np.ndarray, mark: int) -> None:
    for i in range(len(out)):
        out[i] ^= (out[i] ^ lanes[i]) & waiting[i] & -out.dtype.type(draws[i] >= mark)


@part
def _add_changed(waiting: np.ndarray, lanes: np.ndarray, base: np.ndarray, zeros: bool) -> None:
    """Set all bits of `waiting` where the lanes differ from the base's."""
    for i in range(len(base)):
        waiting[i] |= -waiting.dtype.type(changed(lanes, base, i, zeros))


@part
def _keep_unchanged(waiting: np.ndarray, lanes: np.ndarray, base: np.ndarray, zeros: bool) -> bool:
    """Clear `waiting` where the lanes differ from the base's; return whether any is left."""
    left = waiting.dtype.type(0)
    for i in range(len(base)):
        waiting[i] &= ~-waiting.dtype.type(changed(lanes, base, i, zeros))
        left |= waiting[i]
    return left != 0


@loop
def select_changed(
    out: np.ndarray, models: np.ndarray, weights: np.ndarray, key: int, base: np.ndarray, start: int, stop: int
) -> None:
    """Select values `start` to `stop`, in proportion to weight, from the models that differ from the base.

    The weights of those models are summed up in order. The draw, scaled to their total, marks the model to take: the
    first with which the sum is above it.

    Args:
        out: As for `select`.
        models: As for `select`.
        weights: Whole numbers of the lanes' type, or float32; shape [K].
        key: The stream of draws, uint64.
        base: The base model's lanes.
        start: First value, a multiple of 4.
        stop: End of the values.
    """
    words = np.empty(_PIECE // DRAWS_PER_WORD, np.uint64)
    draws = words.view(np.int16)
    sums, marks = np.empty(_PIECE, weights.dtype), np.empty(_PIECE, weights.dtype)
    for first in range(start, stop, _PIECE):
        last = min(first + _PIECE, stop)
        piece, origin = out[first:last], base[first:last]
        zeros = has_zero(origin)
        write_draws(words, key, first)
        for i in range(len(piece)):
            sums[i] = 0
        for k in range(len(models)):
            _add_weights(sums, lanes_at(models[k], out, first, last), origin, weights[k], zeros)
        for i in range(len(piece)):
            share = (np.float32(draws[i]) + np.float32(2**15 + 0.5)) * np.float32(2**-16)
            # Rounded down where the sums are whole numbers: those above it are the same.
            marks[i] = weights.dtype.type(share * np.float32(sums[i]))
            sums[i] = 0
        for k in range(len(models)):
            _take_covered(piece, lanes_at(models[k], out, first, last), marks, sums, origin, weights[k], zeros)


@part
def _add_weights(sums: np.ndarray, lanes: np.ndarray, base: np.ndarray, weight: float, zeros: bool) -> None:
    for i in range(len(base)):
        sums[i] += weight * sums.dtype.type(changed(lanes, base, i, zeros))


@part
def _take_covered(
    out: np.ndarray,
    lanes: np.ndarray,
    marks: np.ndarray,
    sums: np.ndarray,
    base: np.ndarray,
    weight: float,
    zeros: bool,
) -> None:
    """Take the lanes where the sum of the weights so far is not above the mark, and add this model's weight to it."""
    for i in range(len(base)):
        before = sums[i]
        out[i] ^= (out[i] ^ lanes[i]) & -out.dtype.type(marks[i] >= before)
        sums[i] = before + weight * sums.dtype.type(changed(lanes, base, i, zeros))
