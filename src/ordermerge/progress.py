"""How far some work is, and how long the rest takes: one live line in a terminal, a line a minute in a log."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from ordermerge.console import is_interactive, say

_LIVE_SECONDS = 0.2  # between updates of the live line
_LOG_SECONDS = 60  # between lines of a log file
MOST_COLUMNS = 80  # of a line, whatever the work


class ProgressLine:
    """Where progress is written.

    Args:
        stream: Standard error, if not given.
        live: Whether to write one line over and over; by default whether someone watches.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, *, stream: TextIO | None = None, live: bool | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.clock = clock
        self.live = is_interactive() if live is None else live
        self._stream = stream or sys.stderr
        self._last = 0.0

    def start(self) -> float:
        """Return the time; the next line is due so long after it."""
        self._last = self.clock()
        return self._last

    def is_due(self, now: float, log_seconds: float = _LOG_SECONDS) -> bool:
        """Return whether to write now; if so, the time counts from here.

        Args:
            now: The clock's time.
            log_seconds: Least time between lines where nobody watches.
        """
        due = now - self._last >= (_LIVE_SECONDS if self.live else log_seconds)
        if due:
            self._last = now
        return due

    def write(self, text: str) -> None:
        """Write a line, over the one before where someone watches.

        Args:
            text: The line.
        """
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + text[:width].ljust(width))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Clear the live line."""
        if self.live:
            self.write("")
            self._stream.write("\r")
            self._stream.flush()


class Counted:
    """Progress of some pieces of work, such as models to score, each of which comes down to counted units.

    Args:
        unit: What is counted, in the singular.
        count: How many pieces there are.
        line: Where to write.

    Attributes:
        count: How many pieces there are.
    """

    def __init__(self, unit: str, count: int = 1, line: ProgressLine | None = None):
        self.count, self._unit, self._line = count, unit, line or ProgressLine()
        self._position, self._name, self._began = 0, "", 0.0
        self._done, self._total, self._start = 0, 0, 0.0

    def next(self, name: str) -> None:
        """Begin with the next piece.

        Args:
            name: What it is called.
        """
        if not self._position:
            self._began = self._line.start()
        self._position, self._name = self._position + 1, name

    def begin(self, total: int) -> None:
        """Begin to count the units of the piece, or of a part of it.

        Args:
            total: How many there are.
        """
        self._done, self._total, self._start = 0, total, self._line.clock()

    def advance(self, units: float | None = 1) -> None:
        """Count units as done, and write a line if one is due.

        Args:
            units: How many.
        """
        now = self._line.clock()
        self._done += int(units or 0)
        if self._done and self._line.is_due(now):
            self._line.write(self._text(now))

    def end(self) -> None:
        """Clear the live line."""
        self._line.clear()

    def _text(self, now: float) -> str:
        rate = self._done / max(now - self._start, 1e-9)
        left = max(0, self._total - self._done) / rate
        text = f": {self._done}/{self._total}, {describe_rate(rate, self._unit)}, {describe_time(left)} left"
        after = self.count - self._position
        if after:
            before = self._position - 1
            each = (self._start - self._began) / before if before else self._total / rate
            text += f", {describe_time(left + after * each)} all"
        return self._name[: MOST_COLUMNS - len(text)] + text


def describe_rate(rate: float, unit: str) -> str:
    """Return a speed: so many a second, or where that is less than one, how many seconds each takes.

    Args:
        rate: Units a second.
        unit: The unit, in the singular.
    """
    return f"{1 / rate:.3g} s/{unit}" if rate < 1 else f"{rate:.3g} {unit}s/s"


def describe_time(seconds: float) -> str:
    """Return a time as h:mm:ss, without the hours where there are none; in whole hours from 10 on.

    Args:
        seconds: The time.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 10:
        return f"{hours} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def tell_load() -> None:
    """Warn where other work keeps this machine's cores busy already: training beside it is many times slower."""
    import torch

    if torch.accelerator.is_available() or not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load >= cores:
        say(
            f"warning: other work keeps this machine busy (load {load:.1f}, cores {cores}); beside it, this may take "
            "10 to 30 times longer than alone"
        )
