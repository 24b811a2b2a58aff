"""Precision: what the weights are kept in is what the configuration says, and training that overflows is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.sft import train_orders

Write = Callable[..., Experiment]
SHORT = {"num_train_epochs": 1, "learning_rate": 1.0e-4}


def train(experiment: Experiment, folder: Path) -> dict[str, torch.Tensor]:
    (directory,) = train_orders(experiment, folder, only=0)
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(("dtype", "bf16"), [("bfloat16", False), ("bfloat16", True), ("float16", False)])
def test_a_sub_model_is_stored_in_the_models_dtype_whatever_the_autocast(
    dtype: str, bf16: bool, tmp_path: Path, write_experiment: Write
):
    weights = train(write_experiment(model={"dtype": dtype}, sft={**SHORT, "bf16": bf16}), tmp_path)
    assert {value.dtype for value in weights.values()} == {getattr(torch, dtype)}
    assert all(value.isfinite().all() for value in weights.values())


def test_autocast_rounds_the_products_and_not_the_weights(tmp_path: Path, write_experiment: Write):
    sft = {"no": {**SHORT, "bf16": False}, "bfloat16": {**SHORT, "bf16": True}}
    weights = {name: train(write_experiment(sft=sft[name]), tmp_path / name)["lm_head.weight"] for name in sft}
    assert not torch.equal(*weights.values())
    for value in weights.values():
        assert value.dtype == torch.float32
        assert not torch.equal(value, value.bfloat16().float())  # finer than bfloat16 holds


def test_float16_autocast_is_refused_on_a_cpu_which_ignores_it(tmp_path: Path, write_experiment: Write):
    experiment = write_experiment(sft={"bf16": None, "fp16": True, "use_cpu": True})
    with pytest.raises(UserError, match=r"`sft.fp16` does nothing on the CPU, where this runs; set `bf16: true`"):
        train_orders(experiment, tmp_path)


@pytest.mark.parametrize(
    ("logging_steps", "message"),
    [
        (
            1,
            r"order_0: the loss is nan at step \d of 14; lower `sft.learning_rate`, or train in a dtype of wider range",
        ),
        (
            100,
            r"order_0: the loss is nan at step 14 of 14; lower `sft.learning_rate`, or train in a dtype of wider range",
        ),
    ],
)
def test_weights_that_are_no_numbers_are_not_saved(
    logging_steps: int, message: str, tmp_path: Path, write_experiment: Write
):
    experiment = write_experiment(sft={"learning_rate": 1e30, "logging_steps": logging_steps})
    with pytest.raises(UserError, match=message):
        train_orders(experiment, tmp_path, only=0)
    assert not (tmp_path / "orders" / "0").exists()
