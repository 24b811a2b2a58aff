"""The preview shows the orders that training then uses, and statistics with known answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from scipy import stats

from ordermerge.cli import main
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train import base_model
from ordermerge.train.balance import balance, correlations, mean_positions, positions, visits
from ordermerge.train.orders import batch_orders, random_orders, rotate_orders
from ordermerge.train.sft import order_steps, train_orders
from ordermerge.train.tokenized import preview_orders

Write = Callable[..., Experiment]


def _preview(tmp_path: Path, *options: str) -> tuple[str, dict[str, Any]]:
    arguments = ["orders", str(tmp_path / "experiment.yml"), "--json", str(tmp_path / "orders.json"), *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout, json.loads((tmp_path / "orders.json").read_text())


@pytest.mark.parametrize("strategy", ["random", "batch", "rotate", "file"])
def test_the_preview_shows_what_training_records(
    strategy: str,
    tmp_path: Path,
    write_experiment: Write,
    records: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
):
    lines = [dict(record) for record in records]
    lines[2]["question"] = lines[2]["question"] * 4  # 20 tokens of prompt: dropped
    lines[5]["answer"] = "0123456789"  # cut
    orders = {"strategy": strategy, "count": 3}
    if strategy == "file":
        orders["file"] = "mine.json"
        (tmp_path / "mine.json").write_text(json.dumps(random_orders(40, 2, 3, 8).tolist()))
    sections = {"data": {"validation": 0.1}, "sft": {"max_length": 12, "eval_strategy": "epoch"}, "orders": orders}
    experiment = write_experiment(lines=lines, **sections)
    with monkeypatch.context() as patch:
        patch.setattr(base_model, "AutoModelForCausalLM", None)  # loading the base model would fail
        output, shown = _preview(tmp_path)
    for order, directory in enumerate(train_orders(experiment, tmp_path / "run")):
        record = json.loads((directory / "order" / "order.json").read_text())
        saved = load_file(directory / "order" / "permutations.safetensors")
        assert shown["epoch_fingerprints"][order] == record["epoch_fingerprints"]
        assert all(fingerprint in output for fingerprint in record["epoch_fingerprints"])
        assert shown["first_rows"][order] == saved["sample_ids"][saved["permutations"]][:, :3].tolist()
        for name in ("strategy", "seed", "count", "epochs", "samples", "dropped", "truncated", "batch_size"):
            assert shown[name] == record[name]
    assert f"{strategy} ←" in output
    assert [name for name in shown["balance"]] == [
        "random",
        "batch",
        "rotate",
        *(["file"] if strategy == "file" else []),
    ]


@pytest.mark.parametrize(("strategy", "makes"), [("batch", batch_orders), ("rotate", rotate_orders)])
def test_training_follows_the_strategy(strategy: str, makes: Any, tmp_path: Path, write_experiment: Write):
    experiment = write_experiment(orders={"strategy": strategy})
    expected = makes(40, 2, 2, 0, 6)  # batches of 3, accumulated over 2
    for order, directory in enumerate(train_orders(experiment, tmp_path)):
        assert torch.equal(load_file(directory / "order" / "permutations.safetensors")["permutations"], expected[order])


def test_the_number_of_orders_is_an_input_of_rotations_alone(tmp_path: Path, write_experiment: Write):
    def inputs(strategy: str, count: int) -> Any:
        return order_steps(write_experiment(orders={"strategy": strategy, "count": count}), tmp_path)[0].inputs[
            "orders"
        ]

    assert inputs("rotate", 2) == {"strategy": "rotate", "count": 2, "seed": 0}
    for strategy in ("random", "batch"):
        assert inputs(strategy, 2) == inputs(strategy, 3) == {"strategy": strategy, "seed": 0}
    train_orders(write_experiment(orders={"strategy": "rotate"}), tmp_path, only=0)
    with pytest.raises(UserError, match=r"orders/0: orders.count: 2, now 3: order_0 was made with the old value"):
        train_orders(write_experiment(orders={"strategy": "rotate", "count": 3}), tmp_path)


def test_processes_make_the_batches_larger(tmp_path: Path, write_experiment: Write):
    experiment = write_experiment(orders={"strategy": "batch"})
    prepared = preview_orders(experiment, processes=2)
    assert prepared.batch == 12
    assert torch.equal(prepared.orders, batch_orders(40, 2, 2, 0, 12))
    output, shown = _preview(tmp_path, "--processes", "2")
    assert "12 samples per optimizer step" in output
    assert shown["batch_size"] == 12


def test_what_only_training_needs_is_not_asked_for(tmp_path: Path, write_experiment: Write):
    sft = {"fsdp": "full_shard", "bf16": True, "learning_rate": 1e-5}
    experiment = write_experiment(sft=sft)
    assert torch.equal(preview_orders(experiment).orders, random_orders(40, 2, 2, 0))


def test_orders_that_training_would_refuse_are_refused(tmp_path: Path, write_experiment: Write):
    write_experiment(orders={"strategy": "batch"}, sft={"per_device_train_batch_size": 64})
    done = CliRunner().invoke(main, ["orders", str(tmp_path / "experiment.yml")])
    assert done.exit_code == 1
    assert "Error: 40 training samples do not fill one batch of 128" in done.output
    write_experiment(orders={"strategy": "file", "file": "gone.json"}, sft={"packing": True})
    done = CliRunner().invoke(main, ["orders", str(tmp_path / "experiment.yml")])
    assert done.exit_code == 1
    assert "2 problems:" in done.output
    assert "`orders.file`: no file gone.json" in done.output


def test_positions_invert_permutations():
    orders = random_orders(50, 2, 3, 1)
    assert torch.equal(orders.gather(-1, positions(orders)), torch.arange(50).expand(3, 2, 50))


def test_correlations_are_spearmans():
    places = positions(random_orders(30, 1, 3, 0)[:, 0])
    expected = stats.spearmanr(places.numpy(), axis=1).statistic
    assert torch.allclose(correlations(places), torch.tensor(expected), atol=1e-12)
    assert correlations(torch.stack([places[0], 29 - places[0]]))[0, 1] == pytest.approx(-1)


def test_visits_count_orders_by_part():
    places = torch.tensor([[0, 1, 2, 3], [0, 3, 1, 2]])
    assert visits(places).tolist() == [[2, 1, 1, 0], [0, 1, 1, 2]]


def test_mean_positions_of_the_orders_as_in_the_file():
    places = torch.stack([torch.arange(10), torch.arange(10).flip(0)])
    assert torch.allclose(mean_positions(places, 5)[0], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64))
    assert torch.allclose(mean_positions(places, 5).mean(dim=0), torch.full((5,), 0.5, dtype=torch.float64))


def test_balance_of_rotations_is_by_design_and_of_random_orders_on_average():
    # The mean position of rotations is uniform over n/K positions. 4000 samples leave random orders' shares within
    # 4 standard deviations of a binomial share, 4 sqrt(p (1 - p) / 4000) < 0.03.
    rotated = balance(positions(rotate_orders(4000, 1, 4, 0)[:, 0]))
    assert rotated.spread == pytest.approx(1 / (4 * math.sqrt(12)), rel=1e-5)
    assert (rotated.once_each, rotated.never_met) == (1, 0)
    # Rank correlation of a rotation by the share f: 1 - 6 f (1 - f).
    assert rotated.correlation == pytest.approx((-0.5, -0.125), abs=1e-3)
    drawn = balance(positions(random_orders(4000, 1, 4, 0)[:, 0]))
    assert drawn.spread == pytest.approx(1 / math.sqrt(12 * 4), rel=0.05)
    assert drawn.once_each == pytest.approx(math.factorial(4) / 4**4, abs=0.03)
    assert drawn.never_met == pytest.approx(0.75**4, abs=0.03)
    assert max(map(abs, drawn.correlation)) < 4 / math.sqrt(3999)


def test_one_order_has_nothing_to_be_compared_with(tmp_path: Path, write_experiment: Write):
    write_experiment(orders={"count": 1}, sft={"num_train_epochs": 1})
    output, shown = _preview(tmp_path)
    assert "1 order of 40 samples, 1 epoch, strategy random" in output
    assert "Correlation and balance compare orders, and `orders.count` is 1." in output
    assert shown["balance"] == {}
    assert _preview(tmp_path, "--set", "orders.count=3")[1]["count"] == 3
