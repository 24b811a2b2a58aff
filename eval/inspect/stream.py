"""Reads a base model and its sub-models once, side by side, and sums up what each tensor's values say.

Files are read in pieces that fit a cache, by a few threads; no model is loaded. The results do not depend on the pieces
but for the rounding of sums of products, and not at all on the number of threads.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, TypeVar

import torch

from ordermerge.errors import UserError
from ordermerge.eval.inspect.changes import Totals, measure
from ordermerge.eval.inspect.family import Family, Group
from ordermerge.weights import COPY_AGAIN, FLOATS, Stored

# Values read and worked on at once, of all models together: few enough for a CPU's cache, enough for whole disk reads.
PIECE_VALUES = 1 << 20
# More threads than this read no faster, and each needs memory for its piece.
MOST_THREADS = 8
_OPEN_FILES = 64  # of each thread: at least one for each model
_BFLOAT16_TAIL = 0xFFFF  # bits of a float32 that are 0 in every bfloat16 number

Item = TypeVar("Item")
Result = TypeVar("Result")


def inspect_family(family: Family, *, piece_values: int = PIECE_VALUES) -> Iterator[tuple[Group, Totals]]:
    """Read all models once, side by side, and yield what their values say, tensor by tensor.

    Extra memory is bounded, whatever the size of models and tensors: a thread takes 9 to 26 MiB (float64: 48 MiB).

    Args:
        family: The opened models.
        piece_values: Values worked on at once, of all models together.

    Yields:
        Each tensor, and its sums.

    Raises:
        UserError: If a file ends before its header says.
    """
    per_model = max(1, piece_values // len(family.groups[0].models))
    pieces = ((group, start) for group in family.groups for start in range(0, group.values, per_model))
    local = threading.local()
    threads = min(torch.get_num_threads(), MOST_THREADS)
    with ExitStack() as stack, _one_thread_each(), ThreadPoolExecutor(threads) as pool:

        def work(piece: tuple[Group, int]) -> tuple[Group, Totals]:
            if not hasattr(local, "desk"):
                local.desk = stack.enter_context(_Desk())
            group, start = piece
            return group, _measure_piece(group, start, min(per_model, group.values - start), local.desk)

        results = _in_order(pool, work, pieces, 2 * threads)
        for _, parts in groupby(results, key=lambda result: result[0].name):
            (group, total), *rest = parts
            for _, part in rest:
                total = total + part
            yield group, total


def _measure_piece(group: Group, start: int, length: int, desk: "_Desk") -> Totals:
    rows = desk.memory("rows", (len(group.models), length), group.dtype)
    for row, stored in zip(rows, group.models, strict=True):
        desk.read(stored, start, row)
    fine = None
    if start == 0 and group.dtype == torch.float32:
        fine = (rows.view(torch.int32) & _BFLOAT16_TAIL).ne_(0).sum(1).numpy()
    totals = measure(rows)
    if fine is not None:
        totals.probed, totals.fine = length, fine
    return totals


class _Desk:
    """What one thread works with: the files it reads, kept open, and the memory that it reads to."""

    def __init__(self) -> None:
        self._open: dict[Path, IO[bytes]] = {}
        self._memory: dict[str, torch.Tensor] = {}

    def __enter__(self) -> "_Desk":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, stored: Stored, start: int, out: torch.Tensor) -> None:
        """Fill `out`, of shape [n], with the values from `start` on, cast to its dtype."""
        dtype = FLOATS[str(stored.dtype)]
        values = out if out.dtype == dtype else self.memory("stored", tuple(out.shape), dtype)
        file = self._file(stored.file)
        file.seek((stored.offset or 0) + start * dtype.itemsize)
        left = values.view(torch.uint8).numpy().data
        while left:
            if not (got := file.readinto(left)):  # type: ignore[attr-defined]
                raise UserError(f"{stored.file} ended before its header says; {COPY_AGAIN}")
            left = left[got:]
        if values is not out:
            out.copy_(values)

    def memory(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor with arbitrary content: the same memory for every piece, as fresh memory costs more."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self._memory or self._memory[name].numel() < size:
            self._memory[name] = torch.empty(size, dtype=torch.uint8)
        return self._memory[name][:size].view(dtype).view(shape)

    def _file(self, path: Path) -> IO[bytes]:
        if path not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        return self._open[path]


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield the results in the order of the items, with no more than `ahead` items under way."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep torch from starting threads of its own for pieces that are worked on by ours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
