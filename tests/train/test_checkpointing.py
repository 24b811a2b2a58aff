"""Models kept along a training, and what is said of the disk they take."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ordermerge.config.schema import CheckpointsSection, Experiment
from ordermerge.errors import UserError
from ordermerge.train.checkpointing import Saves, disk_needed, plan_saves
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import OrderTrainer

Write = Callable[..., Experiment]


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def _equal(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("section", "kept", "resumable"),
    [
        ({}, [], [7, 14]),
        ({"every": 5}, [5, 10, 15, 20], [7, 14]),
        ({"every": 7}, [7, 14], [7, 14]),
        ({"every": 21}, [], [7, 14]),
        ({"every": 0.25}, [5, 10, 16], [7, 14]),
        ({"every": 1.0}, [], [7, 14]),
        ({"every": 0.001}, list(range(1, 21)), [7, 14]),
        ({"resume_every": 8}, [], [8, 16]),
        ({"resume_every": 1.0}, [], []),
    ],
)
def test_steps_that_are_saved(section: dict[str, Any], kept: list[int], resumable: list[int]):
    saves = plan_saves(CheckpointsSection(**section), steps=21, epochs=3)
    assert sorted(saves.kept) == kept
    assert sorted(saves.resumable) == resumable


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "often"])
def test_a_wrong_cadence_is_named(value: Any, write_experiment: Write):
    message = rf"`checkpoints.every` must be a number of steps \(50\) or a fraction of the training .*; got {value!r}"
    with pytest.raises(UserError, match=message):
        write_experiment(checkpoints={"every": value})


def test_disk_needed_counts_models_and_two_training_states(write_experiment: Write):
    model, plain = torch.nn.Linear(10, 10, bias=False), write_experiment()  # 400 bytes
    assert disk_needed(plain, model, Saves(frozenset(), frozenset()), orders=4) == 4 * 400
    assert disk_needed(plain, model, Saves(frozenset({1, 2}), frozenset({1})), orders=4) == 4 * 3 * 400 + 3 * 400
    assert disk_needed(plain, model, Saves(frozenset(), frozenset({1, 2, 3})), orders=1) == 400 + 2 * 3 * 400


def test_disk_needed_counts_of_adapters_what_is_saved(write_experiment: Write):
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 1, bias=False))
    model[0].requires_grad_(False)
    saves, adapter = Saves(frozenset(), frozenset({1})), 40
    adapters, dense = (write_experiment(lora={"save_as": kind}) for kind in ("adapter", "dense"))
    assert disk_needed(adapters, model, saves, orders=2) == 2 * adapter + 3 * adapter
    assert disk_needed(dense, model, saves, orders=2) == 2 * (400 + adapter) + 3 * adapter


def test_kept_models_are_plain_checkpoints_and_change_nothing(
    tmp_path: Path, base: Path, write_experiment: Write, capsys: pytest.CaptureFixture[str]
):
    (plain,) = train_orders(write_experiment(), tmp_path / "plain", only=0)
    (kept,) = train_orders(write_experiment(checkpoints={"every": 3}), tmp_path / "kept", only=0)
    assert "training 1 sub-model, with 4 checkpoints of each, " in capsys.readouterr().err
    assert _equal(plain, kept)
    record = json.loads((kept / "order" / "order.json").read_text())
    assert [entry["folder"] for entry in record["checkpoints"]] == [f"checkpoints/step-{n}" for n in (3, 6, 9, 12)]
    assert [entry["epoch"] for entry in record["checkpoints"]] == pytest.approx([3 / 7, 6 / 7, 9 / 7, 12 / 7])
    files = sorted(path.name for path in plain.iterdir() if path.is_file())
    before = base
    for entry in record["checkpoints"]:
        folder = kept / entry["folder"]
        assert sorted(path.name for path in folder.iterdir()) == files
        for name in files:
            if name != "model.safetensors":
                assert json.loads((folder / name).read_text()) == json.loads((base / name).read_text())
        assert not _equal(folder, before)
        before = folder
    assert sorted(path.name for path in (kept / "checkpoints").iterdir()) == ["step-12", "step-3", "step-6", "step-9"]
    transformers.AutoModelForCausalLM.from_pretrained(before)


def test_a_kept_model_is_that_of_its_step(tmp_path: Path, write_experiment: Write):
    # With a constant rate, the first epoch of two is a training of one epoch.
    (long,) = train_orders(write_experiment(checkpoints={"every": 0.5}), tmp_path / "long", only=0)
    (short,) = train_orders(write_experiment(sft={"num_train_epochs": 1}), tmp_path / "short", only=0)
    assert _equal(long / "checkpoints" / "step-7", short)


def test_training_goes_on_with_its_own_configuration_after_a_save(
    tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    step, seen = OrderTrainer.training_step, []

    def note(self: OrderTrainer, *args: Any) -> torch.Tensor:
        seen.append((self.model.config, self.model.generation_config, self.processing_class))
        return step(self, *args)

    monkeypatch.setattr(OrderTrainer, "training_step", note)
    train_orders(write_experiment(checkpoints={"every": 3}), tmp_path, only=0)
    assert all(one is first for later in seen for one, first in zip(later, seen[0], strict=True))


@pytest.mark.parametrize("save_as", ["adapter", "dense"])
def test_kept_adapters_change_nothing_either(save_as: str, tmp_path: Path, write_experiment: Write):
    lora = {"r": 4, "lora_dropout": 0.3, "save_as": save_as}
    name = "adapter_model.safetensors" if save_as == "adapter" else "model.safetensors"
    (plain,) = train_orders(write_experiment(lora=lora), tmp_path / "plain", only=0)
    (kept,) = train_orders(write_experiment(lora=lora, checkpoints={"every": 5}), tmp_path / "kept", only=0)
    assert (kept / name).read_bytes() == (plain / name).read_bytes()
    files = sorted(path.name for path in plain.iterdir() if path.is_file())
    for step in (5, 10):
        folder = kept / "checkpoints" / f"step-{step}"
        assert sorted(path.name for path in folder.iterdir()) == files
        assert (folder / name).read_bytes() != (plain / name).read_bytes()


def test_orders_trained_without_the_kept_models_are_refused(tmp_path: Path, write_experiment: Write):
    train_orders(write_experiment(), tmp_path, only=0)
    train_orders(write_experiment(checkpoints={"resume_every": 2}), tmp_path, only=0)
    with pytest.raises(UserError, match=r"checkpoints\.every: not set, now 3: order_0 was made with the old value"):
        train_orders(write_experiment(checkpoints={"every": 3}), tmp_path, only=0)


def test_too_full_a_disk_is_refused_before_training(
    tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100_000))
    with pytest.raises(UserError, match=r"training 2 sub-models needs 0.000\d+ GB of disk, and .* has 0.0001 GB free"):
        train_orders(write_experiment(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
