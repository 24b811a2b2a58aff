"""Loggers: each order is a run of its own; nothing is reported to anyone who was not asked for."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl.trainer.base_trainer
from transformers import TrainerControl, TrainerState

from ordermerge.config.schema import Experiment
from ordermerge.train import callbacks
from ordermerge.train.callbacks import EndRun
from ordermerge.train.sft import train_orders
from ordermerge.train.sft_config import check_sft

Write = Callable[..., Experiment]


def test_nothing_is_reported_to_trls_hub(tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch):
    sent: list[Any] = []
    monkeypatch.setattr(trl.trainer.base_trainer, "send_telemetry", lambda *args, **named: sent.append(named))
    monkeypatch.delenv("CI", raising=False)
    train_orders(write_experiment(sft={"num_train_epochs": 1}), tmp_path, only=0)
    assert sent == []


def test_progress_and_warnings_go_to_standard_error(
    tmp_path: Path,
    records: list[dict[str, str]],
    write_experiment: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(callbacks, "_TENTH_SECONDS", 0)
    lines = [*records[:12], *records[:2]]
    train_orders(write_experiment(lines=lines, sft={"logging_steps": 1}), tmp_path)
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert "warning: 2 of 14 samples are exact copies of an earlier one; all are trained on" in lines
    steps = [line for line in lines if " steps/s, " in line or " s/step, " in line]
    assert len(steps) == 2 * 6  # two orders of two epochs of three batches
    assert steps[0].startswith("order_0 1/2: 1/6 (16 %), ")
    assert steps[0].endswith(" all")
    assert steps[-1].startswith("order_1 2/2: 6/6 (100 %), loss ")
    assert steps[-1].endswith(", 0:00 left")


def test_tensorboard_writes_into_the_orders_folder(tmp_path: Path, write_experiment: Write):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for directory in train_orders(write_experiment(sft={"report_to": "tensorboard"}), tmp_path):
        (events,) = (directory / "logs").rglob("events.out.tfevents.*")
        accumulator = EventAccumulator(str(events.parent))
        accumulator.Reload()
        assert [event.step for event in accumulator.Scalars("train/loss")] == [2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize(
    ("report_to", "problems"),
    [
        ("none", []),
        ("all", []),
        ("tensorbord", ["`sft.report_to`: unknown logger 'tensorbord' (did you mean 'tensorboard'?)"]),
        (
            ["none", "neptune"],
            ["`sft.report_to`: neptune is not installed; install its package, or leave neptune out"],
        ),
    ],
)
def test_a_logger_that_is_unknown_or_absent_is_named(report_to: Any, problems: list[str], write_experiment: Write):
    assert check_sft(write_experiment(sft={"report_to": report_to})) == problems


def test_the_next_order_does_not_go_on_in_the_run_of_the_last(monkeypatch: pytest.MonkeyPatch):
    ended: list[str] = []
    wandb = SimpleNamespace(run="a run", finish=lambda: ended.append("a run"))
    end = lambda: EndRun().on_train_end(None, TrainerState(), TrainerControl())  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    end()
    assert ended == ["a run"]
    wandb.run = None
    end()
    monkeypatch.delitem(sys.modules, "wandb")
    end()
    assert ended == ["a run"]
