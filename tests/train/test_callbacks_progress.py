"""Progress: what is said of an order under way, and when."""

import io
from argparse import Namespace
from collections.abc import Callable, Sequence

import pytest
from transformers import TrainerControl, TrainerState

from ordermerge.errors import UserError
from ordermerge.train.callbacks import Progress, describe_progress


def test_a_line_says_how_far_and_how_long():
    line = describe_progress(30, 120, 1.5, 0.51234, orders_after=2)
    assert line == "30/120 (25 %), loss 0.512, 1.5 steps/s, 1:00 left, 3:40 all"
    assert describe_progress(1, 2, 0.01, None, orders_after=0) == "1/2 (50 %), 100 s/step, 1:40 left"


def test_a_line_fits_80_columns():
    line = describe_progress(9_999, 10_000, 1 / 12.34, 0.012345, orders_after=5)
    assert line == "9999/10000 (99 %), loss 0.0123, 12.3 s/step, 0:12 left, 171 h all"
    whole = "order_1 2/4: " + describe_progress(1_000, 9_000, 1 / 12.34, 0.012345, orders_after=2)
    assert len(whole) <= 80


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
    assert lines[3] == ("order_1 2/4: 40/100 (40 %), loss 0.0256, 1 steps/s, 1:00 left, 4:20 all")


def test_a_log_has_a_line_for_each_minute_of_long_orders():
    lines = follow(10_000, [25.0 * step for step in range(1, 13)]).splitlines()
    assert [line.split("/10000")[0] for line in lines] == [f"order_1 2/4: {step}" for step in (3, 6, 9, 12)]


def test_the_rate_of_a_resumed_order_is_that_of_its_new_steps():
    (line,) = follow(100, [8.0], first=59).splitlines()
    assert "60/100 (60 %), 8 s/step, 5:20 left" in line


def test_a_live_line_is_overwritten_not_too_often_and_cleared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    parts = follow(10, [0.1, 0.21, 0.3, 0.5], live=True).split("\r")
    assert [len(part) for part in parts] == [0, 59, 59, 59, 0]
    assert [part.split(", ")[0].strip() for part in parts] == [
        "",
        "order_1 2/4: 2/10 (20 %)",
        "order_1 2/4: 4/10 (40 %)",
        "",
        "",
    ]


def logged(losses: Sequence[float], steps: int) -> None:
    """Have losses logged, one a step."""
    progress = Progress("order_1", 2, 4, stream=io.StringIO(), live=False)
    arguments = Namespace(fp16=False)
    for step, loss in enumerate(losses, start=1):
        state = TrainerState(global_step=step, max_steps=steps, is_world_process_zero=True)
        progress.on_log(arguments, state, TrainerControl(), logs={"loss": loss})


def test_a_loss_that_rises_over_the_first_tenth_is_told_once(capsys: pytest.CaptureFixture[str]):
    logged([2.0, 2.5, 3.0, 3.5, 3.4, 5.0], 40)
    assert capsys.readouterr().err == (
        "warning: order_1: the loss has risen from 2 to 3.5 in the first 4 of 40 steps; `sft.learning_rate` may be too "
        "high\n"
    )
    logged([2.0, 2.5, 2.9, 2.9, 1.0], 40)
    logged([2.0, 3.5], 2)  # too few to tell
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_no_number_ends_the_training_also_as_the_mean_at_the_end():
    progress = Progress("order_1", 2, 4, stream=io.StringIO(), live=False)
    state = TrainerState(global_step=4, max_steps=4, is_world_process_zero=True)
    for logs in ({"loss": float("nan")}, {"train_loss": float("inf")}):
        with pytest.raises(UserError, match=r"order_1: the loss is (nan|inf) at step 4 of 4; lower"):
            progress.on_log(Namespace(fp16=False), state, TrainerControl(), logs=logs)


def test_one_of_several_processes_speaks():
    assert follow(10, [1.0, 2.0], main=False) == ""
