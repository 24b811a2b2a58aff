"""Loops over lanes that Numba compiles for CPUs: the draws of a merge, and the selections by them.

`ordermerge.merge_methods.selection` says in plain torch what they compute, bit for bit. All of them are in this file:
Numba keeps compiled code for as long as the file of the called function is the same, whatever that function calls.

A loop works on a small piece of every model at a time. Even where all tensors start at the same place of a page, and so
compete for the same part of a processor's first cache, the pieces of several models fit into it. Values are selected by
`x ^ ((x ^ y) & -condition)`, which LLVM vectorises; it does not vectorise a conditional store.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

_PIECE = 256  # values
_DRAWS_PER_WORD = 4
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_part = numba.njit(nogil=True)


def _loop(function: Callable[..., Any]) -> Any:
    """Compile at the first call; where Numba finds a folder to keep the result in, only once per machine."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@_part
def _lanes(address: int, like: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return lanes `first` to `last` of a model: by addresses, a loop is compiled once for any number of models."""
    return numba.carray(_pointer(address), like.shape, like.dtype)[first:last]  # type: ignore[call-arg]


@_part
def _changed(lane: int, base: int, minus_zero: int) -> bool:
    """Like `ordermerge.unchanged.changed`."""
    return (lane != base) & ((lane | base) != minus_zero)


@_part
def _minus_zero(lanes: np.ndarray) -> int:
    return lanes.dtype.type(-1 << (8 * lanes.itemsize - 1))


@_part
def _draw(words: np.ndarray, key: int, first: int) -> None:
    """Write the words that hold the draws of values `first` onwards (see `ordermerge.counter`)."""
    count = np.uint64(first // _DRAWS_PER_WORD + 1)
    for i in range(len(words)):
        word = key + (count + np.uint64(i)) * _GAMMA
        word = (word ^ (word >> np.uint64(30))) * _MIX_1
        word = (word ^ (word >> np.uint64(27))) * _MIX_2
        words[i] = word ^ (word >> np.uint64(31))


@_loop
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
    words = np.empty(_PIECE // _DRAWS_PER_WORD, np.uint64)
    draws = words.view(np.int16)
    waiting = np.empty(_PIECE, out.dtype)
    rounds = keys if again else keys[1:]
    left = False
    for first in range(start, stop, _PIECE):
        last = min(first + _PIECE, stop)
        piece = out[first:last]
        if not again:
            _draw(words, keys[0], first)
            for k in range(len(models)):
                _take(piece, _lanes(models[k], out, first, last), draws, marks[k])
        if len(rounds):
            origin = base[first:last]
            for i in range(len(piece)):
                waiting[i] = -out.dtype.type(not movable)
            for k in range(len(models) if movable else 0):
                _add_changed(waiting, _lanes(models[k], out, first, last), origin)
            some = _keep_unchanged(waiting, piece, origin)
            for key in rounds:
                if not some:
                    break
                _draw(words, key, first)
                for k in range(len(models)):
                    _take_where(waiting, piece, _lanes(models[k], out, first, last), draws, marks[k])
                some = _keep_unchanged(waiting, piece, origin)
            left |= some
    return left


@_part
def _take(out: np.ndarray, lanes: np.ndarray, draws: np.ndarray, mark: int) -> None:
    for i in range(len(out)):
        out[i] ^= (out[i] ^ lanes[i]) & -out.dtype.type(draws[i] >= mark)


@_part
def _take_where(waiting: np.ndarray, out: np.ndarray, lanes: np.ndarray, draws: np.ndarray, mark: int) -> None:
    for i in range(len(out)):
        out[i] ^= (out[i] ^ lanes[i]) & waiting[i] & -out.dtype.type(draws[i] >= mark)


@_part
def _add_changed(waiting: np.ndarray, lanes: np.ndarray, base: np.ndarray) -> None:
    """Set all bits of `waiting` where the lanes differ from the base's."""
    minus_zero = _minus_zero(base)
    for i in range(len(base)):
        waiting[i] |= -waiting.dtype.type(_changed(lanes[i], base[i], minus_zero))


@_part
def _keep_unchanged(waiting: np.ndarray, lanes: np.ndarray, base: np.ndarray) -> bool:
    """Clear `waiting` where the lanes differ from the base's; return whether any is left."""
    minus_zero, left = _minus_zero(base), waiting.dtype.type(0)
    for i in range(len(base)):
        waiting[i] &= ~-waiting.dtype.type(_changed(lanes[i], base[i], minus_zero))
        left |= waiting[i]
    return left != 0


@_loop
def select_changed(
    out: np.ndarray, models: np.ndarray, weights: np.ndarray, key: int, base: np.ndarray, start: int, stop: int
) -> None:
    """Select values `start` to `stop`, in proportion to weight, from the models that differ from the base.

    The draw is scaled to the sum of those models' weights, and the model is taken in whose part of the sum it falls.

    Args:
        out: As for `select`.
        models: As for `select`.
        weights: Whole numbers of the lanes' type, or float32; shape [K].
        key: The stream of draws, uint64.
        base: The base model's lanes.
        start: First value, a multiple of 4.
        stop: End of the values.
    """
    words = np.empty(_PIECE // _DRAWS_PER_WORD, np.uint64)
    draws = words.view(np.int16)
    sums, marks = np.empty(_PIECE, weights.dtype), np.empty(_PIECE, weights.dtype)
    for first in range(start, stop, _PIECE):
        last = min(first + _PIECE, stop)
        piece, origin = out[first:last], base[first:last]
        _draw(words, key, first)
        for i in range(len(piece)):
            sums[i] = 0
        for k in range(len(models)):
            _add_weights(sums, _lanes(models[k], out, first, last), origin, weights[k])
        for i in range(len(piece)):
            share = (np.float32(draws[i]) + np.float32(2**15 + 0.5)) * np.float32(2**-16)
            marks[i] = weights.dtype.type(
                share * np.float32(sums[i])
            )  # a whole sum covers it where it covers its floor
            sums[i] = 0
        for k in range(len(models)):
            _take_covered(piece, _lanes(models[k], out, first, last), marks, sums, origin, weights[k])


@_part
def _add_weights(sums: np.ndarray, lanes: np.ndarray, base: np.ndarray, weight: float) -> None:
    minus_zero = _minus_zero(base)
    for i in range(len(base)):
        sums[i] += weight * sums.dtype.type(_changed(lanes[i], base[i], minus_zero))


@_part
def _take_covered(
    out: np.ndarray, lanes: np.ndarray, marks: np.ndarray, sums: np.ndarray, base: np.ndarray, weight: float
) -> None:
    """Take the lanes whose mark the sum so far does not cover, and add this model's weight to the sum."""
    minus_zero = _minus_zero(base)
    for i in range(len(base)):
        before = sums[i]
        out[i] ^= (out[i] ^ lanes[i]) & -out.dtype.type(marks[i] >= before)
        sums[i] = before + weight * sums.dtype.type(_changed(lanes[i], base[i], minus_zero))
