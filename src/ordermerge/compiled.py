"""How the compiled loops are run: with torch in their place where Numba cannot be used, and in several threads."""

import functools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import torch

# Values that a thread works on before it asks for more: a multiple of the draws per word, and of every loop's piece.
SPAN = 1 << 18

_failures: list[Exception] = []


def by_loops(work: Callable[[ModuleType], object]) -> bool:
    """Do a piece of work with the compiled loops, and return whether that was possible.

    Numba is imported by the first call. Whatever goes wrong then or later, work goes on without the loops, after one
    warning.

    Args:
        work: Takes the module `ordermerge.loops`; it may be left half done.
    """
    if _failures:
        return False
    try:
        from ordermerge import loops

        work(loops)
    except Exception as error:
        _failures.append(error)
        warnings.warn(
            f"Numba cannot be used, and torch does its work, several times slower: {error!r}; "
            "reinstall it: pip install --force-reinstall numba",
            RuntimeWarning,
            stacklevel=2,
        )
    return not _failures


def share_out(work: Callable[[int, int], object], length: int) -> None:
    """Do work on the values 0 to `length`, span by span, in as many threads as torch would use.

    Args:
        work: Takes the start and the end of a span; releases the GIL.
        length: Number of values.
    """
    spans = iter(range(0, length, SPAN))

    def go_on() -> None:
        for start in spans:
            work(start, min(start + SPAN, length))

    threads = min(torch.get_num_threads(), -(-length // SPAN))
    helpers = [_pool(torch.get_num_threads()).submit(go_on) for _ in range(threads - 1)]
    go_on()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ordermerge")


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
