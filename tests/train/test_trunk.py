"""Branched experiments: one trunk, and orders that go on from it to the bits of unbranched ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ordermerge.config.schema import Experiment
from ordermerge.config.trainings import branched_price
from ordermerge.errors import UserError
from ordermerge.train import sft
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import OrderTrainer

Write = Callable[..., Experiment]
# Seven steps an epoch, fourteen in all; the schedule needs the whole length.
SFT = {"lr_scheduler_type": "linear", "logging_steps": 4, "eval_strategy": "epoch"}


@pytest.fixture
def write(write_experiment: Write, dropping: Path, tmp_path: Path) -> Write:
    """Return a function that writes an experiment over a base model with dropout."""

    def write(**sections: dict[str, Any]) -> Experiment:
        sections = {"data": {"validation": "valid.jsonl"}, **sections}
        sections["sft"] = {**SFT, **sections.get("sft", {})}
        (tmp_path / "valid.jsonl").write_text('{"question": "abcd?", "answer": "1"}\n')
        return write_experiment(model={"path": str(dropping)}, **sections)

    return write


def outcome(folder: Path) -> dict[str, Any]:
    """Return what an order must have in common with another made of the same permutations."""
    record = json.loads((folder / "order" / "order.json").read_text())
    kept = ("losses", "eval_losses", "epoch_fingerprints", "samples_consumed", "steps", "train_loss")
    names = ("model.safetensors", "adapter_model.safetensors", "order/permutations.safetensors")
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    return files | {name: record[name] for name in kept}


@pytest.mark.parametrize(
    ("orders", "lora", "place"),
    [
        ({"branch_at": 0.75}, None, None),
        ({"branch_at": 7, "strategy": "rotate"}, None, "on_evaluate"),
        ({"branch_at": 3, "strategy": "batch"}, {"r": 4, "lora_dropout": 0.3}, None),
    ],
)
def test_an_order_of_a_branched_run_equals_an_unbranched_one(
    orders: dict[str, Any], lora: dict[str, Any] | None, place: str | None, write: Write, tmp_path: Path
):
    more = {} if lora is None else {"lora": lora}
    branched = train_orders(write(orders=orders, **more), tmp_path / "branched")
    assert [folder.name for folder in branched] == ["0", "1"]
    trunk = tmp_path / "branched" / "orders" / "trunk"
    assert sorted(path.name for path in trunk.iterdir()) == ["order"]  # its state is gone
    record = json.loads((trunk / "order" / "order.json").read_text())
    step = {0.75: 10}.get(orders["branch_at"], orders["branch_at"])
    assert (record["branch"], record["steps"], record["order"]) == (step, step, None)
    given = {"strategy": "file", "file": str(tmp_path / "branched" / "orders"), "branch_at": None}
    plain = train_orders(write(orders=given, **more), tmp_path / "plain")
    assert [outcome(folder) for folder in plain] == [outcome(folder) for folder in branched]
    assert outcome(plain[0]) != outcome(plain[1])
    first, second = (load_file(folder / "order/permutations.safetensors")["permutations"] for folder in branched)
    assert torch.equal(
        first.flatten()[: step // 7 * 40 + step % 7 * 6], second.flatten()[: step // 7 * 40 + step % 7 * 6]
    )


def interrupt_at(step: int) -> Callable[..., Any]:
    training_step = OrderTrainer.training_step

    def interrupt(self: OrderTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *args)

    return interrupt


@pytest.mark.parametrize("branch", [9, 7])
def test_killed_in_trunk_at_the_branch_or_in_a_tail_it_goes_on_to_the_same_bits(
    branch: int, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    experiment = write(orders={"branch_at": branch}, checkpoints={"resume_every": 4})
    expected = [outcome(folder) for folder in train_orders(experiment, tmp_path / "expected")]
    save, described = OrderTrainer._save_checkpoint, sft.describe

    def after_saving(self: OrderTrainer, *args: Any) -> None:
        save(self, *args)
        if self.state.global_step == branch:
            raise KeyboardInterrupt

    def at_the_record(*args: Any) -> Any:
        raise KeyboardInterrupt

    for owner, name, instead in [
        (OrderTrainer, "training_step", interrupt_at(6)),  # in the trunk
        (OrderTrainer, "_save_checkpoint", after_saving),  # the trunk's state half-written
        (sft, "keep_state", at_the_record),  # the trunk's last step done
        (sft, "describe", at_the_record),  # its state moved
        (OrderTrainer, "training_step", interrupt_at(13)),  # in a tail
    ]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, instead)
            with pytest.raises(KeyboardInterrupt):
                train_orders(experiment, tmp_path / "run")
    assert sft.describe is described
    found = train_orders(experiment, tmp_path / "run")
    assert [outcome(folder) for folder in found] == expected
    said = capsys.readouterr().err
    for line in (
        "trunk: goes on after step 4",
        f"trunk: goes on after step {branch}",
        "order_0: goes on after step 12",
    ):
        assert f"{line}\n" in said
    assert f"order_1: goes on from the trunk, which ends after step {branch}\n" in said
    trunk = tmp_path / "run" / "orders" / "trunk" / "order" / "order.json"
    noted, whole = (
        json.loads((tmp_path / run / trunk.relative_to(tmp_path / "run")).read_text()) for run in ("run", "expected")
    )
    assert {name: noted[name] for name in ("losses", "eval_losses", "steps", "samples_consumed")} == {
        name: whole[name] for name in ("losses", "eval_losses", "steps", "samples_consumed")
    }


def test_one_order_makes_the_trunk_and_the_last_removes_its_state(write: Write, tmp_path: Path):
    experiment = write(orders={"branch_at": 0.5})
    state = tmp_path / "run" / "orders" / "trunk" / "state" / "checkpoint-7"
    assert [folder.name for folder in train_orders(experiment, tmp_path / "run", only=1)] == ["1"]
    assert state.is_dir()
    train_orders(experiment, tmp_path / "run", only=0)
    assert not state.parent.exists()
    assert len(train_orders(experiment, tmp_path / "run")) == 2


def test_a_damaged_state_is_told(write: Write, tmp_path: Path):
    experiment = write(orders={"branch_at": 0.5})
    train_orders(experiment, tmp_path / "run", only=1)
    optimizer = tmp_path / "run/orders/trunk/state/checkpoint-7/optimizer.pt"
    content = optimizer.read_bytes()
    optimizer.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"no order can go on from .*trunk: .*optimizer.pt: is not what it was when"):
        train_orders(experiment, tmp_path / "run", only=0)


def test_the_price():
    assert branched_price(4, 0.9) == pytest.approx(1.3)
    assert branched_price(4, 0) == 4
