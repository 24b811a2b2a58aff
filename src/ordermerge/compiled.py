"""How loops that Numba compiles are run: in several threads, and not where Numba cannot be used."""

import functools
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

# Values that a thread works on before it asks for more: a multiple of the draws per word, and of every loop's piece.
SPAN = 1 << 18

Result = TypeVar("Result")

_failures: list[Exception] = []


def with_numba(work: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
    """Return the result of compiled loops, or else of torch.

    If anything goes wrong, from Numba's import on, this and all later work is left to torch, after one warning.

    Args:
        work: Imports its loops and calls them; may be left half done.
        otherwise: Does the same work without Numba.
    """
    if not _failures:
        try:
            return work()
        except Exception as error:
            _failures.append(error)
            warnings.warn(
                f"Numba cannot be used, and torch does its work, several times slower: {error!r}; "
                "reinstall it: pip install --force-reinstall numba",
                RuntimeWarning,
                stacklevel=2,
            )
    return otherwise()


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
    try:
        go_on()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]
        wait(started)
    for helper in started:
        helper.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ordermerge")


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
