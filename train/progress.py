"""How far training is: a live line for who watches, now and then a line in a log file."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ordermerge.errors import UserError
from ordermerge.train.quiet import is_interactive

_LIVE_SECONDS = 0.2  # between updates of the live line
_LOG_SECONDS = (1, 60)  # between lines of a log file: at least, and at most; else one for each tenth of an order


class Progress(TrainerCallback):
    """Says how far an order is, and how long it and all orders will take.

    Args:
        name: The order's name.
        position: Which of the orders it is, from 1 on.
        count: How many orders are trained one after the other.
        stream: Where to write.
        live: Whether to write one line over and over; by default whether someone watches.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        name: str,
        position: int,
        count: int,
        *,
        stream: TextIO | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name, self._position, self._count = name, position, count
        self._stream, self._clock = stream or sys.stderr, clock
        self._live = is_interactive() if live is None else live
        self._loss: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note when training starts, and at which step: a resumed run does not begin at 0."""
        self._began = self._last = self._clock()
        self._first = state.global_step
        self._tenth = 10 * state.global_step // state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Note the last loss.

        Raises:
            UserError: If it is no number, which no further step can mend.
        """
        self._loss = (logs or {}).get("loss", self._loss)
        # With fp16 autocast, a step that overflows is left out and the next one tried with a smaller scale.
        if self._loss is not None and not math.isfinite(self._loss) and not args.fp16:
            raise UserError(
                f"{self._name}: the loss is {self._loss} at step {state.global_step} of {state.max_steps}; lower "
                "`sft.learning_rate`, or train in a dtype of wider range (`model.dtype: float32` or bfloat16)"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write a line if one is due."""
        if not state.is_world_process_zero:
            return
        now, tenth = self._clock(), 10 * state.global_step // state.max_steps
        since = now - self._last
        least, most = _LOG_SECONDS
        due = since >= _LIVE_SECONDS if self._live else since >= (most if tenth == self._tenth else least)
        if not due:
            return
        self._last, self._tenth = now, tenth
        rate = (state.global_step - self._first) / max(now - self._began, 1e-9)
        line = describe_progress(state.global_step, state.max_steps, rate, self._loss, self._count - self._position)
        self._write(f"{self._name} ({self._position} of {self._count}): {line}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Clear the live line."""
        if self._live and state.is_world_process_zero:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, line: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + line[:width].ljust(width))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def describe_progress(step: int, steps: int, rate: float, loss: float | None, orders_after: int) -> str:
    """Return one line on how far an order is and how long the rest takes.

    Args:
        step: Optimizer steps done.
        steps: Of how many.
        rate: Steps per second.
        loss: The last logged loss, if there is one.
        orders_after: How many orders as long as this one are still to come.
    """
    left = (steps - step) / rate
    parts = [f"step {step} of {steps} ({100 * step // steps} %)"]
    if loss is not None:
        parts.append(f"loss {loss:.4g}")
    parts += [f"{rate:.3g} steps/s", f"{describe_time(left)} left"]
    if orders_after:
        parts.append(f"{describe_time(left + orders_after * steps / rate)} for all orders")
    return ", ".join(parts)


def describe_time(seconds: float) -> str:
    """Return a time as h:mm:ss, without the hours where there are none.

    Args:
        seconds: The time.
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
