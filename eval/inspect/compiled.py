"""What sub-models changed of their base model, counted and summed up by loops that Numba compiles.

`changes` says the same in plain torch.
"""

import numba
import numpy as np
import torch

from ordermerge.eval.inspect.changes import Sums
from ordermerge.loops import changed, loop, part

_PIECE = 1024  # values of each model that are measured at a time


def measure_compiled(lanes: torch.Tensor, values: torch.Tensor) -> Sums:
    """Count and sum over one piece of a tensor.

    Args:
        lanes: Bits of the sub-models' values and, last, the base model's; shape [K + 1, n].
        values: The same as float32 or float64.
    """
    models = len(lanes)
    changed_of, changed_by, unknown = np.zeros(models - 1, int), np.zeros(models, int), np.zeros(models, int)
    products = np.zeros((models, models))
    agreeing, majority = _measure(lanes.numpy(), values.numpy(), changed_of, changed_by, unknown, products)
    return Sums(changed_of, changed_by, changed_by - unknown, agreeing, majority, products)


@loop
def _measure(
    lanes: np.ndarray,
    values: np.ndarray,
    changed_of: np.ndarray,
    changed_by: np.ndarray,
    unknown_changed_by: np.ndarray,
    products: np.ndarray,
) -> tuple[int, int]:
    """Add to the counts and products of `Sums`; return its `agreeing` and `majority`."""
    subs, agreeing, majority = len(lanes) - 1, 0, 0
    count, votes = np.empty(_PIECE, lanes.dtype), np.empty(_PIECE, lanes.dtype)
    tasks, exact = np.empty((subs + 1, _PIECE), values.dtype), np.empty((subs + 1, _PIECE), np.float64)
    found = np.empty((subs + 1, subs + 1), np.float64)
    for first in range(0, lanes.shape[1], _PIECE):
        last = min(first + _PIECE, lanes.shape[1])
        known = last - first
        _start(count, votes, tasks[subs], values[subs, first:last])
        for k in range(subs):
            changed_of[k] += _count_changed(count, lanes[k, first:last], lanes[subs, first:last])
            _vote(votes, tasks[k], values[k, first:last], values[subs, first:last])
        _count_equal(changed_by, count[:known])
        if not _multiply(found, tasks, known):
            known = _keep_finite(exact, tasks, count, votes, known, unknown_changed_by)
            _multiply(found, exact, known)
        for a in range(subs + 1):
            for b in range(subs + 1):
                products[a, b] += found[a, b]
        for i in range(known):
            agreeing += abs(votes[i]) == count[i]
            majority += abs(votes[i])
    return agreeing, majority


@part
def _start(count: np.ndarray, votes: np.ndarray, copy: np.ndarray, base: np.ndarray) -> None:
    for i in range(len(base)):
        count[i] = votes[i] = 0
        copy[i] = base[i]


@part
def _count_changed(count: np.ndarray, lanes: np.ndarray, base: np.ndarray) -> int:
    number = 0
    for i in range(len(base)):
        differs = changed(lanes, base, i)
        count[i] += differs
        number += differs
    return number


@part
def _vote(votes: np.ndarray, task: np.ndarray, values: np.ndarray, base: np.ndarray) -> None:
    """Write a task vector, and add 1 to `votes` where it is positive and -1 where it is negative."""
    for i in range(len(base)):
        task[i] = values[i] - base[i]
        votes[i] += votes.dtype.type(task[i] > 0) - votes.dtype.type(task[i] < 0)


@part
def _count_equal(counts: np.ndarray, numbers: np.ndarray) -> None:
    """Add to each of `counts` how many numbers equal its index."""
    for index in range(len(counts)):
        equal = 0
        for i in range(len(numbers)):
            equal += numbers[i] == index
        counts[index] += equal


@part
def _multiply(products: np.ndarray, tasks: np.ndarray, known: int) -> bool:
    """Write the products of all pairs of rows; return whether they are finite."""
    total = 0.0
    for a in range(len(tasks)):
        for b in range(a + 1):
            products[a, b] = products[b, a] = _dot(tasks[a], tasks[b], known)
            total += products[a, b]
    return np.isfinite(total)


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _dot(first: np.ndarray, second: np.ndarray, length: int) -> float:
    total = first.dtype.type(0)
    for i in range(length):
        total += first[i] * second[i]
    return total


@part
def _keep_finite(
    kept: np.ndarray, tasks: np.ndarray, count: np.ndarray, votes: np.ndarray, length: int, others: np.ndarray
) -> int:
    """Move the values that are finite in all rows to the front, and count the others; return how many are kept."""
    known = 0
    for i in range(length):
        finite = True
        for k in range(len(tasks)):
            kept[k, known] = tasks[k, i]
            finite &= np.isfinite(tasks[k, i])
        if not finite:
            others[count[i]] += 1
        count[known], votes[known] = count[i], votes[i]
        known += finite
    return known
