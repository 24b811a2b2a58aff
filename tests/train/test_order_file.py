"""Orders that the user supplies: read as rows of the data, checked, and trained in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.order_file import check_orders
from ordermerge.train.orders import epoch_fingerprints, random_orders
from ordermerge.train.sft import order_steps, train_orders

Write = Callable[..., Experiment]
ORDERS = random_orders(40, 2, 2, 77)


def _write_orders(path: Path, orders: torch.Tensor | list[Any], **more: torch.Tensor) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(orders.tolist() if isinstance(orders, torch.Tensor) else orders))
    else:
        save_file({"permutations": orders, **more}, path)


def _saved(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "order" / "permutations.safetensors")


@pytest.mark.parametrize("name", ["mine.safetensors", "mine.json"])
def test_each_order_is_trained_as_the_file_says(name: str, tmp_path: Path, write_experiment: Write):
    _write_orders(tmp_path / name, ORDERS)
    experiment = write_experiment(orders={"strategy": "file", "file": name})
    assert check_orders(experiment) == []
    for given, directory in zip(ORDERS, train_orders(experiment, tmp_path / "run"), strict=True):
        saved = _saved(directory)
        assert torch.equal(saved["sample_ids"][saved["permutations"]], given)
        record = json.loads((directory / "order" / "order.json").read_text())
        assert record["strategy"] == "file"
        assert record["epoch_fingerprints"] == epoch_fingerprints(given)


def test_rows_that_are_not_trained_on_are_passed_over(tmp_path: Path, write_experiment: Write, records: list[Any]):
    lines = [dict(record) for record in records]
    lines[2]["question"] = lines[2]["question"] * 4  # 20 tokens of prompt: nothing of the answer is left
    sections = {"data": {"validation": 0.25}, "sft": {"max_length": 12}, "lines": lines}
    _write_orders(tmp_path / "all.safetensors", ORDERS)
    whole = write_experiment(orders={"strategy": "file", "file": "all.safetensors"}, **sections)
    (directory,) = train_orders(whole, tmp_path / "whole", only=1)
    saved = _saved(directory)
    kept = saved["sample_ids"]
    assert len(kept) in (29, 30)
    assert 2 not in kept
    expected = [[row for row in epoch if row in kept] for epoch in ORDERS[1].tolist()]
    assert kept[saved["permutations"]].tolist() == expected
    _write_orders(
        tmp_path / "kept.json", [[[row for row in epoch if row in kept] for epoch in o] for o in ORDERS.tolist()]
    )
    part = write_experiment(orders={"strategy": "file", "file": "kept.json"}, **sections)
    (again,) = train_orders(part, tmp_path / "part", only=1)
    assert all(torch.equal(value, saved[name]) for name, value in _saved(again).items())


def test_the_orders_of_a_run_can_be_used_again(tmp_path: Path, write_experiment: Write, records: list[Any]):
    lines = [dict(record) for record in records]
    lines[2]["question"] = lines[2]["question"] * 4
    sections = {"lines": lines, "sft": {"max_length": 12}}
    first = train_orders(write_experiment(**sections), tmp_path / "first")
    experiment = write_experiment(orders={"strategy": "file", "file": "first/orders", "seed": 5}, **sections)
    second = train_orders(experiment, tmp_path / "second")
    for one, other in zip(first, second, strict=True):
        assert len(_saved(one)["sample_ids"]) == 39
        assert all(torch.equal(value, _saved(other)[name]) for name, value in _saved(one).items())


def test_folders_of_a_run_are_taken_in_the_order_of_their_numbers(tmp_path: Path, write_experiment: Write):
    orders = random_orders(40, 2, 12, 3)
    for k, order in enumerate(orders):
        (tmp_path / "run" / str(k) / "order").mkdir(parents=True)
        _write_orders(tmp_path / "run" / str(k) / "order" / "permutations.safetensors", order.clone())
    experiment = write_experiment(orders={"strategy": "file", "file": "run", "count": 12})
    (directory,) = train_orders(experiment, tmp_path / "out", only=10)
    assert torch.equal(_saved(directory)["permutations"], orders[10])


def test_the_files_content_is_an_input_and_its_name_is_not(tmp_path: Path, write_experiment: Write):
    _write_orders(tmp_path / "a.safetensors", ORDERS)
    _write_orders(tmp_path / "b.safetensors", ORDERS)
    _write_orders(tmp_path / "c.safetensors", ORDERS.flip(0).contiguous())
    inputs = [
        order_steps(write_experiment(orders={"strategy": "file", "file": f"{name}.safetensors"}), tmp_path)[0].inputs
        for name in "abc"
    ]
    assert inputs[0] == inputs[1] != inputs[2]
    train_orders(write_experiment(orders={"strategy": "file", "file": "a.safetensors"}), tmp_path / "run", only=0)
    with pytest.raises(UserError, match=r"orders/0: orders.file: its content has changed: order_0 was made"):
        train_orders(write_experiment(orders={"strategy": "file", "file": "c.safetensors"}), tmp_path / "run", only=0)


REPEATED = ORDERS.clone()
REPEATED[1, 0, 3] = REPEATED[1, 0, 5]


@pytest.mark.parametrize(
    ("name", "orders", "messages"),
    [
        ("o.json", ORDERS[:, 0], [r"must have the shape \[orders, epochs, samples\]; got \[2, 40\]"]),
        ("o.json", [], [r"must have the shape \[orders, epochs, samples\]; got \[0\]"]),
        ("o.json", [[[0, 1], [1]]], [r"o.json must hold lists of row numbers, \[orders\]\[epochs\]\[samples\]; "]),
        ("o.json", [[[0.5, 1.0]]], [r"o.json must hold lists of row numbers, .*; got numbers that are not whole"]),
        ("o.json", [[["a"]]], [r"o.json must hold lists of row numbers, .*; "]),
        ("o.json", {"a": 1}, [r"o.json must hold lists of row numbers, .*; "]),
        ("o.safetensors", ORDERS.int(), [r"must hold `permutations`, int64; it holds permutations \(int32\)"]),
        (
            "o.safetensors",
            random_orders(40, 3, 4, 0),
            [
                r"`orders.file` holds 4 orders, and `orders.count` is 2; they must agree",
                r"`orders.file` holds orders of 3 epochs, and `sft.num_train_epochs` is 2; they must agree",
            ],
        ),
        (
            "o.safetensors",
            REPEATED,
            [rf"order 1 epoch 0 names row {int(REPEATED[1, 0, 3])} more than once; each epoch"],
        ),
    ],
)
def test_a_wrong_file_is_refused_before_the_data_is_read(
    name: str, orders: Any, messages: list[str], tmp_path: Path, write_experiment: Write
):
    _write_orders(tmp_path / name, orders)
    experiment = write_experiment(orders={"strategy": "file", "file": name})
    problems = check_orders(experiment)
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert problem.startswith("`orders.file`")
        with pytest.raises(UserError, match=message):
            raise UserError(problem)
    with pytest.raises(UserError, match=messages[0]):
        train_orders(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda orders: orders + 1, r"`orders.file` names row 40; the training data has rows 0 to 39"),
        (lambda orders: orders - 1, r"`orders.file` names row -1; the training data has rows 0 to 39"),
        (
            lambda orders: torch.stack([order[order != 7].view(2, 39) for order in orders]),
            r"order 0 epoch 0 lacks 1 of the 40 rows that are trained on, such as 7; each epoch must name",
        ),
        (
            lambda orders: orders[:1].expand(2, -1, -1).contiguous(),
            r"orders share epochs \(order 0 epoch 0 = order 1 epoch 0; .*\): `orders.file` gives them so; give every",
        ),
    ],
)
def test_rows_that_do_not_fit_the_data_are_named(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path, write_experiment: Write
):
    _write_orders(tmp_path / "o.safetensors", change(ORDERS))
    with pytest.raises(UserError, match=message):
        train_orders(write_experiment(orders={"strategy": "file", "file": "o.safetensors"}), tmp_path / "run")


def test_a_file_that_is_none_is_named(tmp_path: Path, write_experiment: Write):
    def problem(name: str) -> str:
        (found,) = check_orders(write_experiment(orders={"strategy": "file", "file": name}))
        return found

    assert problem("gone.json").startswith(f"`orders.file`: no file gone.json in {tmp_path} or ")
    (tmp_path / "o.npy").write_bytes(b"")
    assert problem("o.npy").endswith("o.npy; use .safetensors or .json")
    (tmp_path / "o.json").write_text("[[")
    assert "o.json must hold lists of row numbers" in problem("o.json")
    (tmp_path / "o.safetensors").write_bytes(b"xx")
    assert "o.safetensors is not a valid safetensors file: " in problem("o.safetensors")
    save_file({"rows": ORDERS}, tmp_path / "o.safetensors")
    assert problem("o.safetensors").endswith("must hold `permutations`, int64; it holds rows (int64)")
    save_file({"permutations": ORDERS, "sample_ids": torch.arange(39)}, tmp_path / "o.safetensors")
    assert problem("o.safetensors").endswith("`permutations` must be indices into its 39 `sample_ids`")
    (tmp_path / "folder").mkdir()
    assert "folder is a folder without order/permutations.safetensors in each of its folders" in problem("folder")
    for k, epochs in enumerate([2, 1]):
        (tmp_path / "run" / str(k) / "order").mkdir(parents=True)
        _write_orders(tmp_path / "run" / str(k) / "order" / "permutations.safetensors", ORDERS[k, :epochs].clone())
    assert problem("run").endswith("run differ in epochs or samples: [2, 40], [1, 40]")
