"""What sub-models changed of their base model: counts and sums over the values of one piece of a tensor."""

from dataclasses import dataclass

import numpy as np
import torch

from ordermerge.compiled import with_numba
from ordermerge.unchanged import changed, to_lanes


@dataclass
class Totals:
    """Sums over values, of one tensor or many. K sub-models; arrays are numpy's int64, `products` float64.

    Args:
        values: Number of values of one model.
        changed_by: [K + 1], how many values were changed by 0, 1, ..., K of the sub-models.
        changed: [K], how many values each sub-model changed.
        shared: Values that at least two changed, as far as their task vectors are finite.
        agreeing: Those of them that all who changed them moved in the same direction.
        changes: Changes of shared values, all sub-models together.
        majority: Those changes that go the way of most of the changes of their value; half of them in a draw.
        products: [K + 1, K + 1], dot products of the task vectors and, last, the base model's values.
        sizes: [K + 1], float64, the L1 norms of the task vectors and, last, of their sum.
        not_finite: Values that are infinite or NaN in some model; they count in no product and no direction.
        probed: Values compared in float32 that were looked at for their precision.
        fine: [K + 1], those of them, in each model and the base, that bfloat16 does not hold.
    """

    values: int
    changed_by: np.ndarray
    changed: np.ndarray
    shared: int
    agreeing: int
    changes: int
    majority: float
    products: np.ndarray
    sizes: np.ndarray
    not_finite: int
    probed: int
    fine: np.ndarray

    def __add__(self, other: "Totals") -> "Totals":
        mine, others = vars(self), vars(other)
        return Totals(**{name: mine[name] + others[name] for name in mine})


@dataclass
class Sums:
    """What is counted and summed in one pass over the values of one piece. Counts are numpy's int64.

    Args:
        changed: [K], how many values each sub-model changed.
        changed_by: [K + 1], how many values were changed by 0, 1, ..., K of the sub-models.
        known_changed_by: The same of the values that are finite in the base model and in all task vectors.
        agreeing: How many of those were changed in the same direction by all who changed them, or by nobody.
        majority: Their changes in the direction of most, less those in the other, all values together.
        products: [K + 1, K + 1], float64, dot products of the task vectors and, last, the base model's values.
        sizes: [K + 1], float64, the L1 norms of the task vectors and, last, of their sum.
    """

    changed: np.ndarray
    changed_by: np.ndarray
    known_changed_by: np.ndarray
    agreeing: int
    majority: int
    products: np.ndarray
    sizes: np.ndarray


def measure(rows: torch.Tensor) -> Totals:
    """Count and sum over one piece of a tensor.

    Counts are exact. Products are taken in float32 (float64 for float64 values) within the piece.

    Args:
        rows: The sub-models' values and, last, the base model's, shape [K + 1, n], of a floating-point dtype.
    """
    lanes = to_lanes(rows).view(rows.shape)

    def by_loops() -> Sums:
        from ordermerge.eval.inspect.compiled import measure_compiled

        return measure_compiled(rows, lanes)

    sums = with_numba(by_loops, otherwise=lambda: _measure(rows, lanes))
    by_number = np.arange(len(rows))
    once, changes = sums.known_changed_by[1], sums.known_changed_by @ by_number
    return Totals(
        values=rows.shape[1],
        changed_by=sums.changed_by,
        changed=sums.changed,
        shared=int(sums.known_changed_by[2:].sum()),
        agreeing=int(sums.agreeing - sums.known_changed_by[:2].sum()),
        changes=int(changes - once),
        majority=float((changes + sums.majority) / 2 - once),
        products=sums.products,
        sizes=sums.sizes,
        not_finite=int(rows.shape[1] - sums.known_changed_by.sum()),
        probed=0,
        fine=np.zeros(len(rows), np.int64),
    )


def _measure(rows: torch.Tensor, lanes: torch.Tensor) -> Sums:
    flags = changed(lanes[:-1], lanes[-1])
    count = flags.sum(0)
    tasks = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
    tasks[:-1] -= tasks[-1]
    products, known = tasks @ tasks.T, count
    if not products.sum().isfinite():
        finite = tasks.isfinite().all(0)
        tasks, known = tasks[:, finite].double(), count[finite]
        products = tasks @ tasks.T
    votes = tasks[:-1].sign().sum(0).abs()
    return Sums(
        changed=flags.sum(1).numpy(),
        changed_by=count.bincount(minlength=len(lanes)).numpy(),
        known_changed_by=known.bincount(minlength=len(lanes)).numpy(),
        agreeing=int((votes == known).sum()),
        majority=int(votes.sum()),
        products=products.double().numpy(),
        sizes=torch.cat([tasks[:-1], tasks[:-1].sum(0, keepdim=True)]).abs().sum(1, dtype=torch.float64).numpy(),
    )
