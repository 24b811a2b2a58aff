"""A refused `ordermerge train` leaves a run directory as it was, byte for byte."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ordermerge.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment file whose orders are trained, in `runs/tiny` beside it."""
    folder = tmp_path_factory.mktemp("trained")
    base, *_ = make_family(count=0)
    lines = [json.dumps({"q": f"{a}+{b}=", "a": str(a + b)}) + "\n" for a in range(4) for b in range(4)]
    (folder / "data.jsonl").write_text("".join(lines))
    (folder / "other.jsonl").write_text("".join(lines[1:]))
    content = {
        "name": "tiny",
        "model": {"path": str(base)},
        "data": {"train": "data.jsonl", "prompt": "{q}", "completion": "{a}"},
        "orders": {"count": 2},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "bf16": False},
    }
    (folder / "e.yml").write_text(yaml.safe_dump(content))
    (folder / "of another.yml").write_text(
        yaml.safe_dump(content | {"data": {**content["data"], "train": "other.jsonl"}})
    )
    done = CliRunner().invoke(main, ["train", str(folder / "e.yml"), "--runs-dir", str(folder / "runs")])
    assert done.exit_code == 0, done.output
    return folder / "e.yml"


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("e.yml", ["--order", "2"], "order 2 does not exist"),
        ("e.yml", ["--order", "o"], "order o does not exist"),
        ("e.yml", ["--set", "orders.seed=1"], "orders.seed: 0, now 1"),
        ("e.yml", ["--set", "sft.learning_rate=1", "--order", "1"], "sft.learning_rate: not set, now 1"),
        ("e.yml", ["--set", "sft.learning_rte=1"], "learning_rte"),
        ("e.yml", ["--set", "data.train=no.jsonl"], "no.jsonl"),
        ("of another.yml", [], "data.train: its content has changed"),
        ("of another.yml", ["--order", "0"], "data.train: its content has changed"),
    ],
)
def test_a_refused_training_changes_nothing(file: str, options: list[str], message: str, trained: Path) -> None:
    folder = trained.parent

    def state() -> dict[Path, object]:
        return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in [folder, *folder.rglob("*")]}

    before = state()
    done = CliRunner().invoke(main, ["train", str(folder / file), "--runs-dir", str(folder / "runs"), *options])
    assert done.exit_code == 1
    assert message in done.output
    assert state() == before


def test_what_a_process_left_that_was_killed_as_its_order_was_finished_goes(trained: Path) -> None:
    orders = trained.parent / "runs" / "tiny" / "orders"
    (orders / ".0.partial-x" / "state" / "checkpoint-2").mkdir(parents=True)
    (orders / ".0.lock").touch()
    done = CliRunner().invoke(main, ["train", str(trained), "--runs-dir", str(trained.parent / "runs")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in orders.iterdir()} == {"0", "1"}
