"""One process at a time makes a thing: locks that the system gives back when their process ends, however it ends."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

import click
from filelock import Timeout, UnixFileLock

from ordermerge.errors import UserError
from ordermerge.files import workshop, write_problem

waits: ContextVar[bool] = ContextVar("waits", default=False)  # what `--wait` says
_POLL_SECONDS = 0.1
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def lock(thing: Path, *, wait: bool | None = None) -> Iterator[bool]:
    """Hold the lock of a thing that is made: a folder or file, which need not exist yet.

    It is a `flock` on the file `.NAME.lock` beside the thing, which goes with it. The system gives the lock back when
    the process dies, whatever children it leaves; a file that a killed process left locks nothing.

    Args:
        thing: What is made under it.
        wait: Whether to wait for another process that holds it; as `--wait` says, if not given.

    Yields:
        Whether there was one to wait for: what was to be made may be there by now.

    Raises:
        UserError: If another process holds it, which the message names, or the lock file cannot be written.
    """
    file = lock_file(thing)
    held = _try(file)
    waited = held is None
    if held is None:
        _leave_or_wait(thing, file, waits.get() if wait is None else wait)
        while (held := _try(file)) is None:
            time.sleep(_POLL_SECONDS)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    try:
        with suppress(OSError):  # it is told to others only; what is made will say that the disk is full
            file.write_text(json.dumps(me), encoding="utf-8")
        yield waited
    finally:
        if os.getpid() == me["pid"]:  # not a forked child that ends by an exception
            file.unlink(missing_ok=True)  # while it is held: who waits for it sees that and opens the next one
            held.release()


def is_locked(thing: Path) -> bool:
    """Return whether a process may be making a thing at this moment.

    Args:
        thing: As in `lock`.
    """
    file = lock_file(thing)
    if not file.exists():
        return False
    held = _try(file)
    if held is None:
        return True
    if not held.is_locked:
        return True  # this file system cannot tell
    file.unlink(missing_ok=True)
    held.release()
    return False


def lock_file(thing: Path) -> Path:
    """Return the file that the lock of a thing is on.

    Args:
        thing: As in `lock`.
    """
    thing = thing.absolute()
    return workshop(thing) / f".{thing.name}.lock"


def _leave_or_wait(thing: Path, file: Path, wait: bool) -> None:
    holder = _holder(file)
    if not wait:
        raise UserError(f"{thing}: {holder} is making it; give the command again when that has ended, or with `--wait`")
    click.echo(f"{thing}: waiting for {holder}, which is making it", err=True)


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it may just be writing it
        return "another process"


def _try(file: Path) -> UnixFileLock | None:
    """Return the lock, None where another holds it; where there are no locks, that is said, and it is not locked."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = UnixFileLock(file, fallback_to_soft=False)
        held.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(write_problem(error, file)) from error
        click.echo(
            f"warning: {file.parent}: this file system has no locks ({error.strerror}); see to it that no second "
            f"process makes the same at the same time",
            err=True,
        )
    return held
