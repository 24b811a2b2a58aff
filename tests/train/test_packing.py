"""Packs as what moves: their composition, positions, losses, and models in which samples of a pack see each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ordermerge.cli import main
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.eval.imbalance.losses import sample_losses
from ordermerge.run_directory import read_positions
from ordermerge.train.packing import pack_samples, require_apart
from ordermerge.train.sft_config import check_sft

Write = Callable[..., Experiment]
SFT = {"packing": True, "max_length": 24, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}


def tokens(count: int) -> Dataset:
    """Return samples of 3 to 30 tokens, the first two of which are not learned."""
    rows = [[3 + (7 * row + place) % 40 for place in range(3 + 27 * row // (count - 1))] for row in range(count)]
    labels = [[-100, -100, *row[2:]] for row in rows]
    return Dataset.from_dict({"input_ids": rows, "labels": labels, "sample_id": [row * 2 for row in range(count)]})


def test_samples_are_packed_whole_and_noted() -> None:
    samples = tokens(20)
    packed, packs = pack_samples(samples, 32)
    assert packs.sample_ids.tolist() == samples["sample_id"]
    assert packed["sample_id"] == list(range(len(packed)))
    for number, (row, lengths) in enumerate(zip(packed["input_ids"], packed["seq_lengths"], strict=True)):
        inside = (packs.packs == number).nonzero().flatten().tolist()
        assert len(row) == sum(lengths) <= 32
        assert sorted(lengths) == sorted(len(samples["input_ids"][place]) for place in inside)
        parts = [part.tolist() for part in torch.tensor(row).split(lengths)]
        assert sorted(parts) == sorted(samples["input_ids"][place] for place in inside)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_losses_in_packs_are_those_of_samples_alone(attention: str, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention).eval()
    require_apart(model)
    samples = tokens(12)
    packed, _ = pack_samples(samples, 32)
    alone = sample_losses(model, samples["input_ids"], samples["labels"], batch_tokens=64)
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([{name: row[name] for name in ("input_ids", "labels", "seq_lengths")} for row in packed])
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1], batch["labels"][0, 1:], reduction="none", ignore_index=-100)
    begins = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    found = {}
    for begin, end in zip(begins, [*begins[1:], len(logits)], strict=True):
        learned = batch["labels"][0, begin + 1 : end] != -100
        found[tuple(batch["input_ids"][0, begin:end].tolist())] = float(each[begin : end - 1][learned].mean())
    together = [found[tuple(row)] for row in samples["input_ids"]]
    assert together == pytest.approx(alone.tolist(), abs=1e-5)


def test_models_whose_samples_see_each_other_are_refused() -> None:
    config = transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(UserError, match=r"bloom with attention `.*` lets a sample see the one before it in its pack"):
        require_apart(transformers.AutoModelForCausalLM.from_config(config))


def test_packs_move_as_one(write_experiment: Write, tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_text('{"question": "abcd?", "answer": "1"}\n' * 3)
    data = {"validation": "valid.jsonl"}
    write_experiment(orders={"unit": "pack", "branch_at": 0.3}, sft={**SFT, "eval_strategy": "epoch"}, data=data)

    def invoke(command: str, *arguments: str) -> str:
        done = CliRunner().invoke(main, [command, *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    said = invoke("train", str(tmp_path / "experiment.yml"), "--runs-dir", str(tmp_path))
    run = tmp_path / "tiny"
    saved = [load_file(run / "orders" / str(order) / "order/permutations.safetensors") for order in range(2)]
    count = saved[0]["permutations"].shape[1]
    assert 40 / 3 <= count < 40
    assert f"order_0: training on 40 samples in {count} packs, 2 epochs" in said
    assert torch.equal(saved[0]["packs"], saved[1]["packs"])
    assert not torch.equal(saved[0]["permutations"], saved[1]["permutations"])
    record: dict[str, Any] = json.loads((run / "orders/0/order/order.json").read_text())
    assert (record["samples"], record["packs"], record["samples_consumed"]) == (40, count, 80)
    assert record["steps"] == 2 * -(-count // 2)
    common = 2 * record["branch"]
    assert torch.equal(saved[0]["permutations"][0, :common], saved[1]["permutations"][0, :common])
    assert len(record["eval_losses"]) == 2

    orders, problems = read_positions(run, 2)
    assert not problems
    assert (orders[0].units, orders[0].sample_ids.tolist()) == (count, list(range(40)))
    for epoch, permutation in enumerate(saved[1]["permutations"]):
        for place, pack in enumerate(permutation):
            assert (orders[1].positions[epoch][saved[1]["packs"] == pack] == place).all()

    invoke("losses", str(run), "--device", "cpu")
    assert f"2 orders of 40 samples in {count} fixed packs" in invoke("imbalance", str(run))


@pytest.mark.parametrize(
    ("orders", "sft", "expected"),
    [
        ({"unit": "pack"}, {}, "`orders.unit: pack` needs `sft.packing: true`"),
        (
            {},
            SFT,
            "`sft.packing` cannot be set: a position in the order must be one sample, unless `orders.unit` is pa",
        ),
        (
            {"unit": "pack"},
            {**SFT, "packing_strategy": "wrapped"},
            "`sft.packing_strategy` must be bfd: others cut sam",
        ),
        (
            {"unit": "pack", "strategy": "file", "file": "x.json"},
            SFT,
            "takes no `strategy: file`: your orders are of s",
        ),
        ({"unit": "pack"}, {**SFT, "eval_packing": True}, "`sft.eval_packing` cannot be set: validation losses are of"),
    ],
)
def test_refused(orders: dict[str, Any], sft: dict[str, Any], expected: str, write_experiment: Write) -> None:
    assert expected in " ".join(check_sft(write_experiment(orders=orders, sft=sft)))
