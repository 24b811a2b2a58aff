"""What sub-models changed of their base model, counted and summed up by loops that Numba compiles.

`changes` says the same in plain torch. A piece is short enough for 16-bit lanes to hold its counts, which is faster.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ordermerge.eval.inspect.changes import Sums
from ordermerge.loops import changed, has_zero, loop, part

_PIECE = 1024  # values of each model that are measured at a time


def measure_compiled(rows: torch.Tensor, lanes: torch.Tensor) -> Sums:
    """Count and sum over one piece of a tensor.

    Args:
        rows: The sub-models' values and, last, the base model's, shape [K + 1, n].
        lanes: Their bits, of the same shape.
    """
    models = len(rows)
    changed_of, changed_by, unknown = np.zeros(models - 1, int), np.zeros(models, int), np.zeros(models, int)
    products, sizes = np.zeros((models, models)), np.zeros(models)
    values = lanes if rows.dtype == torch.bfloat16 else rows.float() if rows.dtype == torch.float16 else rows
    tasks = np.empty((models, _PIECE), np.float64 if rows.dtype == torch.float64 else np.float32)
    agreeing, majority = _measure(
        lanes.numpy(), values.numpy(), tasks, changed_of, changed_by, unknown, products, sizes
    )
    return Sums(changed_of, changed_by, changed_by - unknown, agreeing, majority, products, sizes)


@intrinsic  # type: ignore[untyped-decorator]
def _number(context: Any, value: Any) -> Any:
    """Return the number that a bfloat16's bits stand for; a float as it is."""
    if isinstance(value, types.Float):
        return value(value), lambda context, builder, signature, arguments: arguments[0]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(value), generate


@loop
def _measure(
    lanes: np.ndarray,
    values: np.ndarray,
    tasks: np.ndarray,
    changed_of: np.ndarray,
    changed_by: np.ndarray,
    unknown_changed_by: np.ndarray,
    products: np.ndarray,
    sizes: np.ndarray,
) -> tuple[int, int]:
    """Add to the counts and sums of `Sums`, with task vectors in `tasks`; return its `agreeing` and `majority`."""
    subs, agreeing, majority = len(lanes) - 1, 0, 0
    count, votes = np.empty(_PIECE, lanes.dtype), np.empty(_PIECE, lanes.dtype)
    exact = np.empty((subs + 1, _PIECE), np.float64)
    total, exact_total = np.empty(_PIECE, tasks.dtype), np.empty(_PIECE, np.float64)
    found_sizes = np.empty(subs + 1, np.float64)
    found = np.empty((subs + 1, subs + 1), np.float64)
    for first in range(0, lanes.shape[1], _PIECE):
        last = min(first + _PIECE, lanes.shape[1])
        known, zeros = last - first, has_zero(lanes[subs, first:last])
        _start(count, votes, tasks[subs], values[subs, first:last])
        for k in range(subs):
            _subtract(tasks[k], values[k, first:last], values[subs, first:last])
            changed_of[k] += _compare(count, votes, tasks[k], lanes[k, first:last], lanes[subs, first:last], zeros)
        _count_equal(changed_by, count[:known])
        if not _multiply(found, found_sizes, total, tasks, known):
            known = _keep_finite(exact, tasks, count, votes, known, unknown_changed_by)
            _multiply(found, found_sizes, exact_total, exact, known)
        for a in range(subs + 1):
            sizes[a] += found_sizes[a]
            for b in range(a + 1):
                products[a, b] += found[a, b]
                products[b, a] = products[a, b]
        for i in range(known):
            size = abs(votes[i])
            agreeing += size == count[i]
            majority += size
    return agreeing, majority


@part
def _start(count: np.ndarray, votes: np.ndarray, copy: np.ndarray, base: np.ndarray) -> None:
    for i in range(len(base)):
        count[i] = votes[i] = 0
        copy[i] = _number(base[i])  # type: ignore[call-arg]


@part
def _subtract(task: np.ndarray, values: np.ndarray, base: np.ndarray) -> None:
    for i in range(len(base)):
        task[i] = _number(values[i]) - _number(base[i])  # type: ignore[call-arg]


@part
def _compare(
    count: np.ndarray, votes: np.ndarray, task: np.ndarray, lanes: np.ndarray, base: np.ndarray, zeros: bool
) -> int:
    """Count what one model changed: 1 to `count`, and to `votes` 1 or -1 by its direction; return how many."""
    lane, number = count.dtype.type, count.dtype.type(0)
    for i in range(len(base)):
        differs = lane(changed(lanes, base, i, zeros))
        count[i] += differs
        votes[i] += lane(differs - 2 * (task[i] < 0))
        number = lane(number + differs)
    return number


@part
def _count_equal(counts: np.ndarray, numbers: np.ndarray) -> None:
    """Add to each of `counts` how many numbers equal its index."""
    for index in range(len(counts)):
        wanted, equal = numbers.dtype.type(index), numbers.dtype.type(0)
        for i in range(len(numbers)):
            equal = numbers.dtype.type(equal + (numbers[i] == wanted))
        counts[index] += equal


@part
def _multiply(products: np.ndarray, sizes: np.ndarray, summed: np.ndarray, tasks: np.ndarray, known: int) -> bool:
    """Write the products of all pairs of rows a >= b, two by two rows at a time; return whether they are finite.

    And the L1 norms of all rows but the last, and of their sum, which goes to `summed`.
    """
    total, last = 0.0, len(tasks) - 1
    summed[:known] = 0
    for a in range(0, last + 1, 2):
        if a + 1 < last:
            found = _dots_and_sizes(tasks[a], tasks[a + 1], summed, known)
            products[a, a], products[a + 1, a], products[a + 1, a + 1], sizes[a], sizes[a + 1] = found
            total += found[0] + found[1] + found[2]
        elif a < last:
            sizes[a] = _size(tasks[a], summed, known)
        for b in range(0, a if a + 1 < last else a + 1, 2):
            c, d = min(a + 1, last), min(b + 1, last)
            found = _dots(tasks[a], tasks[c], tasks[b], tasks[d], known)
            products[a, b], products[a, d], products[c, b], products[c, d] = found
            total += found[0] + found[1] + found[2] + found[3]
    sizes[last] = _sum_of_sizes(summed, known)
    return np.isfinite(total)


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _dots(a: np.ndarray, c: np.ndarray, b: np.ndarray, d: np.ndarray, length: int) -> tuple[float, ...]:
    ab = ad = cb = cd = a.dtype.type(0)
    for i in range(length):
        ab += a[i] * b[i]
        ad += a[i] * d[i]
        cb += c[i] * b[i]
        cd += c[i] * d[i]
    return ab, ad, cb, cd


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _dots_and_sizes(a: np.ndarray, c: np.ndarray, summed: np.ndarray, length: int) -> tuple[float, ...]:
    aa = ac = cc = size_a = size_c = a.dtype.type(0)
    for i in range(length):
        aa += a[i] * a[i]
        ac += a[i] * c[i]
        cc += c[i] * c[i]
        size_a += abs(a[i])
        size_c += abs(c[i])
        summed[i] += a[i] + c[i]
    return aa, ac, cc, size_a, size_c


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _size(a: np.ndarray, summed: np.ndarray, length: int) -> float:
    size = a.dtype.type(0)
    for i in range(length):
        size += abs(a[i])
        summed[i] += a[i]
    return size


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _sum_of_sizes(values: np.ndarray, length: int) -> float:
    total = values.dtype.type(0)
    for i in range(length):
        total += abs(values[i])
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
