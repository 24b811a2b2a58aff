"""Several processes that train one order together: what all know, and what only the first does."""

from collections.abc import Callable
from typing import Any, TypeVar

import click
from torch import distributed

T = TypeVar("T")


def count() -> int:
    """Return the number of processes; 1 until a trainer's configuration has been made."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Return this process's number; the main process is 0."""
    return distributed.get_rank() if _together() else 0


def wait() -> None:
    """Wait until all processes are here."""
    if _together():
        distributed.barrier()


def gather(value: T) -> list[T]:
    """Return what each process gave, by rank; all must call it.

    Args:
        value: Anything that can be pickled.
    """
    values: list[Any] = [value] * count()
    if _together():
        distributed.all_gather_object(values, value)
    return values


def on_main(work: Callable[[], T]) -> T:
    """Do something on the main process alone, and return its result on all; all must call it.

    Args:
        work: What to do; its result must be one that can be pickled.

    Raises:
        SystemExit: On the other processes, if it fails on the main one, which then says why: with status 0, as a
            launcher ends all processes when the first has failed, and must not end the main one before it has spoken.
    """
    if not _together():
        return work()
    outcome: list[Any] = [None, True]
    try:
        if rank() == 0:
            outcome = [work(), False]
    finally:
        distributed.broadcast_object_list(outcome)
    if outcome[1]:
        raise SystemExit(0)
    return outcome[0]


def say(line: str) -> None:
    """Print a line to standard error, once for all processes.

    Args:
        line: The line.
    """
    if rank() == 0:
        click.echo(line, err=True)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
