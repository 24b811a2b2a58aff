"""Progress: what is said of an order under way, and when."""

import io
from collections.abc import Callable, Sequence

import pytest
from transformers import TrainerControl, TrainerState

from ordermerge.train.callbacks import Progress, describe_progress, describe_time


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7325, "2:02:05")])
def test_times_are_read_as_on_a_clock(seconds: float, text: str):
    assert describe_time(seconds) == text


def test_a_line_says_how_far_and_how_long():
    line = describe_progress(30, 120, 1.5, 0.51234, orders_after=2)
    assert line == "step 30 of 120 (25 %), loss 0.5123, 1.5 steps/s, 1:00 left, 3:40 for all orders"
    assert describe_progress(1, 2, 0.01, None, orders_after=0) == "step 1 of 2 (50 %), 0.01 steps/s, 1:40 left"


def follow(steps: int, seconds: Sequence[float], *, live: bool = False, first: int = 0, main: bool = True) -> str:
    """Return what is written while the given times pass, step by step."""
    stream, now = io.StringIO(), iter([0.0, *seconds])
    clock: Callable[[], float] = lambda: next(now)  # noqa: E731
    progress = Progress("order_1", 2, 4, stream=stream, live=live, clock=clock)
    state = TrainerState(global_step=first, max_steps=steps, is_world_process_zero=main)
    progress.on_train_begin(None, state, TrainerControl())
    for step in range(first + 1, first + len(seconds) + 1):
        state.global_step = step
        progress.on_step_end(None, state, TrainerControl())
        progress.on_log(None, state, TrainerControl(), logs={"loss": 1 / step} if step % 2 else {"eval_loss": 9})
    progress.on_train_end(None, state, TrainerControl())
    return stream.getvalue()


def test_a_log_has_a_line_for_each_tenth():
    lines = follow(100, [float(step) for step in range(1, 101)]).splitlines()
    assert len(lines) == 10
    assert lines[3] == (
        "order_1 (2 of 4): step 40 of 100 (40 %), loss 0.02564, 1 steps/s, 1:00 left, 4:20 for all orders"
    )


def test_a_log_has_a_line_for_each_minute_of_long_orders():
    lines = follow(10_000, [25.0 * step for step in range(1, 13)]).splitlines()
    assert [line.split(" of 10000")[0] for line in lines] == [
        f"order_1 (2 of 4): step {step}" for step in (3, 6, 9, 12)
    ]


def test_the_rate_of_a_resumed_order_is_that_of_its_new_steps():
    (line,) = follow(100, [8.0], first=59).splitlines()
    assert "step 60 of 100 (60 %), 0.125 steps/s, 5:20 left" in line


def test_a_live_line_is_overwritten_not_too_often_and_cleared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    parts = follow(10, [0.1, 0.21, 0.3, 0.5], live=True).split("\r")
    assert [len(part) for part in parts] == [0, 59, 59, 59, 0]
    assert [part.split(", ")[0].strip() for part in parts] == [
        "",
        "order_1 (2 of 4): step 2 of 10 (20 %)",
        "order_1 (2 of 4): step 4 of 10 (40 %)",
        "",
        "",
    ]


def test_one_of_several_processes_speaks():
    assert follow(10, [1.0, 2.0], main=False) == ""
