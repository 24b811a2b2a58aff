"""Progress of counted work: what is said, and when."""

import io
import os

import pytest

from ordermerge.progress import Counted, ProgressLine, describe_rate, describe_time, tell_load


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7325, "2:02:05"), (36_000, "10 h")]
)
def test_times_are_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert describe_time(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.1, "10 s/step"), (1, "1 steps/s"), (12.345, "12.3 steps/s")])
def test_slow_work_is_told_in_seconds_each(rate: float, text: str) -> None:
    assert describe_rate(rate, "step") == text


def follow(*, live: bool, name: str = "order_0") -> str:
    """Return what is written of the second of three models, each of 100 requests, of which one takes 2 s."""
    now = [0.0]
    stream = io.StringIO()
    counted = Counted("request", 3, ProgressLine(stream=stream, live=live, clock=lambda: now[0]))
    for place in (1, 2):
        counted.next(f"[{place}/3] {name}")
        counted.begin(100)
        for _ in range(100 if place == 1 else 40):
            now[0] += 2
            counted.advance()
    counted.end()
    return stream.getvalue()


def test_a_log_has_a_line_a_minute_with_the_rest_of_the_model_and_of_all() -> None:
    lines = follow(live=False).splitlines()
    assert len(lines) == 4  # in 280 s
    assert lines[0] == "[1/3] order_0: 30/100, 2 s/request, 2:20 left, 9:00 all"
    assert lines[-1] == "[2/3] order_0: 20/100, 2 s/request, 2:40 left, 6:00 all"


def test_a_terminal_has_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    parts = follow(live=True, name="a model of a very long name " * 4).split("\r")
    assert len(parts) == 143  # each request, and twice to clear
    assert max(len(part.rstrip()) for part in parts) == 80
    assert parts[-1].strip() == parts[-2].strip() == ""


@pytest.mark.parametrize(("load", "told"), [(0.5, False), (1000.0, True)])
def test_other_work_on_the_machine_is_told(
    load: float, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    tell_load()
    assert ("beside it, this may take 10 to 30 times longer" in capsys.readouterr().err) == told
