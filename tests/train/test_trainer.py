"""What training relies on in transformers and TRL: private members, and a small training's losses as they were."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

import ordermerge.train
from ordermerge.config.schema import Experiment
from ordermerge.counter import random_words, stream_key
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import PRIVATE_ARGUMENTS, PRIVATE_METHODS, PRIVATE_STATE, OrderTrainer

REFERENCE = Path(__file__).with_name("reference_trajectory.json")
# Relative. torch 2.13's kernels with and without AVX2, on one thread and on two, differ by at most 1e-7 over the 14
# losses, of order 3; the rest is room for other machines and their matrix products. Learning the prompts' tokens too,
# for one, changes the first loss by 2.6 %.
TOLERANCE = 1e-4


def test_the_private_members_that_are_used_are_listed_and_there():
    methods = {name for name in vars(OrderTrainer) if hasattr(SFTTrainer, name) and re.match("_[a-z]", name)}
    assert methods <= set(PRIVATE_METHODS)
    for name in PRIVATE_METHODS:
        assert callable(getattr(SFTTrainer, name, None)), name
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (OrderTrainer, SFTTrainer))
        assert list(ours) == list(theirs), name
    listed = {*PRIVATE_METHODS, *PRIVATE_STATE, *PRIVATE_ARGUMENTS}
    for source in Path(ordermerge.train.__file__).parent.glob("*.py"):
        used = re.findall(r"\b(?:trainer|Trainer|args|super\(\))\.(_[a-z]\w*)", source.read_text(encoding="utf-8"))
        assert set(used) <= listed, source


def test_a_small_training_goes_as_it_did(
    write_experiment: Callable[..., Experiment], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A release of torch, transformers or TRL that changes loss, masking, batches or schedule fails here."""
    model = AutoModelForCausalLM.from_pretrained(base)
    for name, weight in model.named_parameters():  # whatever torch's generator draws in this release
        if weight.ndim == 2:
            words = random_words(stream_key("reference", name), 0, weight.numel())
            weight.data = ((words >> 40).double() / 2**24).float().view(weight.shape) * 0.2
    model.save_pretrained(tmp_path / "base")
    for file in base.glob("tokenizer*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    sft = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "logging_steps": 1, "max_length": 8}
    logs, tokens, trainers = list[dict[str, float]](), list[list[int]](), list[OrderTrainer]()
    log, training_step = OrderTrainer.log, OrderTrainer.training_step

    def noting_log(self: OrderTrainer, entry: dict[str, float], *rest: Any) -> None:
        log(self, entry, *rest)
        logs.append(entry)

    def noting_step(self: OrderTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        tokens.append([inputs["attention_mask"].sum().item(), (inputs["labels"] != -100).sum().item()])
        trainers.append(self)
        return training_step(self, model, inputs, *rest)

    monkeypatch.setattr(OrderTrainer, "log", noting_log)
    monkeypatch.setattr(OrderTrainer, "training_step", noting_step)
    train_orders(write_experiment(model={"path": "base"}, sft=sft), tmp_path / "run", only=0)
    steps = [entry for entry in logs if "loss" in entry]
    found = {
        "loss": [entry["loss"] for entry in steps],
        "learning_rate": [entry["learning_rate"] for entry in steps],
        "first_token_counts": tokens[:4],  # of a batch: all, those learnt
    }
    expected = json.loads(REFERENCE.read_text())
    assert found["first_token_counts"] == expected["first_token_counts"]
    assert found["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-12)  # Python's own arithmetic
    assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
    for name in PRIVATE_STATE:
        assert hasattr(trainers[0], name), name
    for name in PRIVATE_ARGUMENTS:
        assert hasattr(trainers[0].args, name), name
