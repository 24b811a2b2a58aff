"""The selection of values on CPUs: what `selection` says, by compiled loops."""

import math
from types import ModuleType

import numpy as np
import torch

from ordermerge.compiled import share_out
from ordermerge.counter import stream_key
from ordermerge.merge_methods.shares import share_draws

_ROUNDS = 32  # drawn in one pass over the values


def fill_compiled(
    loops: ModuleType,
    out: torch.Tensor,
    models: list[torch.Tensor],
    weights: list[float],
    base: torch.Tensor | None,
    resample: float,
    stream: tuple[int, str],
) -> None:
    """Write the merged values to `out`.

    Args:
        loops: The module `ordermerge.loops`.
        out: See `ordermerge.merge_methods.selection.fill_elements`, for this and all others.
        models: Contiguous lanes.
        weights: As `whole_weights` returns them.
        base: Contiguous lanes, or None.
        resample: Number of rounds, or `math.inf`.
        stream: Seed and tensor name.
    """
    if base is not None and math.isinf(resample):
        whole = all(isinstance(weight, int) for weight in weights)
        part = np.array(weights, out.numpy().dtype if whole else np.float32)
        arguments = out.numpy(), _addresses(models), part, _keys(stream, 0, 1)[0], base.numpy()
        share_out(lambda start, stop: loops.select_changed(*arguments, start, stop), out.numel())
        return
    rounds = 0 if base is None else int(resample)
    models, marks = share_draws(models, weights)
    lanes, addresses, first = out.numpy(), _addresses(models), np.array(marks, np.int16)
    origin = lanes if base is None else base.numpy()

    def select(start: int, stop: int) -> None:
        for number in range(0, rounds + 1, _ROUNDS):
            keys = _keys(stream, number, min(number + _ROUNDS, rounds + 1))
            if not loops.select(lanes, addresses, first, keys, origin, number > 0, rounds > 1, start, stop):
                break

    share_out(select, out.numel())


def _addresses(models: list[torch.Tensor]) -> np.ndarray:
    return np.array([lanes.data_ptr() for lanes in models], np.int64)


def _keys(stream: tuple[int, str], first: int, last: int) -> np.ndarray:
    return np.array([stream_key(*stream, number) for number in range(first, last)], np.uint64)
