"""What sub-models changed of their base model: counts and sums over the values of one piece of a tensor."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ordermerge.unchanged import changed, to_lanes

_LANES = 4  # 16-bit lanes of a 64-bit word
_MOST_WORDS = (1 << 16) - 1  # of more words, the sum of ones could overflow a lane


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
    not_finite: int
    probed: int
    fine: np.ndarray

    def __add__(self, other: "Totals") -> "Totals":
        mine, others = vars(self), vars(other)
        return Totals(**{name: mine[name] + others[name] for name in mine})


class Scratch:
    """Tensors that one thread uses for piece after piece: fresh memory for each costs more than the arithmetic."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of that shape and dtype, with arbitrary content, in the memory of that name."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size, dtype=torch.uint8)
        return self._memory[name][:size].view(dtype).view(shape)


def measure(rows: torch.Tensor, scratch: Scratch | None = None) -> Totals:
    """Count and sum over one piece of a tensor.

    Counts are exact. Products are taken in float32 (float64 for float64 values) within the piece.

    Args:
        rows: The sub-models' values and, last, the base model's, shape [K + 1, n], of a floating-point dtype.
        scratch: Memory to work in; fresh if not given.
    """
    scratch = scratch or Scratch()
    subs = len(rows) - 1
    count, by_sub = _count_changes(rows, scratch)
    wide = scratch.get("wide", tuple(rows.shape), torch.promote_types(rows.dtype, torch.float32)).copy_(rows)
    wide[:-1] -= wide[-1]
    products, known = wide @ wide.T, count
    if not products.sum().isfinite():
        finite = wide.isfinite().all(0)
        wide, known = wide[:, finite].double(), count[finite]
        products = wide @ wide.T
    changed_by = _histogram(count, subs, scratch)
    directed = changed_by if known is count else _histogram(known, subs, scratch)  # of values with known directions
    votes = torch.sum(wide[:-1].sign_(), 0, out=scratch.get("votes", (known.numel(),), wide.dtype)).abs_()
    voted = float(votes.sum())
    flags = _flags(scratch, 1, known)
    unanimous = scratch.get("unanimous", tuple(known.shape), known.dtype).copy_(votes)
    torch.eq(unanimous, known, out=flags[0, : len(known)])
    once, changes = int(directed[1]), int(directed @ np.arange(subs + 1))
    return Totals(
        values=count.numel(),
        changed_by=changed_by,
        changed=by_sub,
        shared=int(directed[2:].sum()),
        agreeing=int(_row_sums(flags)[0]) - int(directed[:2].sum()),
        changes=changes - once,
        majority=(changes + voted) / 2 - once,
        products=products.double().numpy(),
        not_finite=count.numel() - known.numel(),
        probed=0,
        fine=np.zeros(subs + 1, np.int64),
    )


def _count_changes(rows: torch.Tensor, scratch: Scratch) -> tuple[torch.Tensor, np.ndarray]:
    """Return by how many sub-models each value was changed, shape [n], and how many values each changed, shape [K]."""
    *subs, base = (to_lanes(row) for row in rows)
    flags = _flags(scratch, len(subs), base)
    count = scratch.get("count", tuple(base.shape), base.dtype).zero_()
    for sub, out in zip(subs, flags, strict=True):
        count += out[: len(base)].copy_(changed(sub, base))
    return count, _row_sums(flags)


def _histogram(count: torch.Tensor, most: int, scratch: Scratch) -> np.ndarray:
    flags = _flags(scratch, most + 1, count)
    torch.eq(count, torch.arange(most + 1, dtype=count.dtype)[:, None], out=flags[:, : len(count)])
    return _row_sums(flags)


def _flags(scratch: Scratch, rows: int, lanes: torch.Tensor) -> torch.Tensor:
    """Return rows of lanes for zeros and ones, each as long as `lanes` and then zero up to whole words."""
    flags = scratch.get("flags", (rows, -(-len(lanes) // _LANES) * _LANES), lanes.dtype)
    flags[:, len(lanes) :] = 0
    return flags


def _row_sums(flags: torch.Tensor) -> np.ndarray:
    """Return the sum of each row of zeros and ones.

    16-bit lanes are added four at a time, as parts of 64-bit words: several times faster, and exact.
    """
    if flags.dtype != torch.int16:
        return flags.sum(1).numpy()
    parts = flags.view(torch.int64).split(_MOST_WORDS, dim=1)
    words = np.stack([part.sum(1).numpy() for part in parts]).view(np.uint16)
    return words.reshape(len(parts), len(flags), _LANES).sum((0, 2), dtype=np.int64)
