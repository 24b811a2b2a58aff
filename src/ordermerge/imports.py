"""Imports of what takes seconds to import: torch, transformers, mergekit, TRL."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Let the imports in the block run without Python's garbage collector, a third of whose time it would take.

    These libraries make some million objects, and all of them stay: the collector would go through them many times as
    they are made, and again whenever it runs later and when the process ends. It is told to leave them out for good.
    For a command's own process: what was garbage before the block is never collected either.

    Yields:
        Nothing.
    """
    known, was_on = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if was_on:
            gc.enable()
