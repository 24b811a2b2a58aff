"""What each model costs."""

import json
from pathlib import Path
from typing import Any

import pytest

from ordermerge.commands.prices import Price, annealing_note, controls_within, model_prices, run_prices
from ordermerge.config.schema import Experiment


def experiment(**sections: Any) -> Experiment:
    content = {
        "name": "tiny",
        "model": {"path": "org/base"},
        "data": {"train": "org/data", "prompt": "{q}", "completion": "{a}"},
        "orders": {"count": 4},
        "sft": {"num_train_epochs": 2, "lr_scheduler_type": "constant"},
        "merges": {
            "all": {"merge_method": "linear"},
            "tail": {"merge_method": "linear", "ingredients": {"orders": [1], "checkpoints": 4}},
            "two": {"merge_method": "linear", "ingredients": {"orders": [0, 3]}},
        },
        "controls": {"annealed": {"count": 2}, "longer": True, "twice": {"num_train_epochs": 4}},
        "evaluation": {"tasks": ["t"], "ensemble": True},
    }
    return Experiment.model_validate({**content, **sections})


def test_prices_without_a_branch() -> None:
    prices = model_prices(experiment(), steps=14, samples=80)
    assert prices == {
        "base": Price(0, 0),
        **{f"order_{k}": Price(1, 80) for k in range(4)},
        "annealed": Price(1, 80),
        "annealed_1": Price(1, 80),
        "longer": Price(4, 320),
        "twice": Price(2, 160),
        "all": Price(4, 320),
        "tail": Price(1, 80),
        "two": Price(2, 160),
        "ensemble": Price(4, 320),
    }


def test_prices_with_a_branch_count_the_trunk_once() -> None:
    made = experiment(orders={"count": 4, "branch_at": 0.75})
    prices = model_prices(made, branch=10, steps=14, samples=140)
    runs = {name: round(price.runs, 6) for name, price in prices.items()}
    assert runs == {
        "base": 0,
        **{f"order_{k}": 1 for k in range(4)},
        "annealed": 1,
        "annealed_1": 1,
        "longer": 2,  # 1.75 of 2 epochs are 3.5
        "twice": 2,
        "all": round(1 + 3 * 4 / 14, 6),
        "tail": 1,
        "two": round(1 + 4 / 14, 6),
        "ensemble": round(1 + 3 * 4 / 14, 6),
    }
    assert prices["all"].samples == 260


def test_varied_fields_multiply_the_price() -> None:
    prices = model_prices(experiment(vary={"learning_rate": [1, 2]}, controls={"longer": True}))
    assert (prices["all"], prices["longer"], len(prices)) == (Price(8, None), Price(8, None), 1 + 8 + 1 + 3 + 1)


def test_prices_of_a_run_come_from_its_first_order(tmp_path: Path) -> None:
    made = experiment(orders={"count": 4, "branch_at": 10})
    assert run_prices(made, tmp_path)["order_0"] == Price(1, None)
    assert run_prices(experiment(orders={"count": 4, "branch_at": 0.75}), tmp_path)["all"].runs == 1.75
    record = {"order": 0, "batch_size": 6, "dataset_fingerprint": None, "steps": 14, "branch": 7, "seconds": 1.0}
    record |= {"samples_consumed": 80, "losses": [], "eval_losses": []}
    (tmp_path / "orders" / "0" / "order").mkdir(parents=True)
    (tmp_path / "orders" / "0" / "order" / "order.json").write_text(json.dumps(record))
    prices = run_prices(made, tmp_path)
    assert (prices["all"], prices["longer"]) == (Price(2.5, 200), Price(2.5, 200))


@pytest.mark.parametrize(
    ("price", "names"),
    [
        (1, [["annealed", "annealed_1"]]),
        (2, [["annealed", "annealed_1"], ["twice"]]),
        (3.6, [["annealed", "annealed_1"], ["longer"], ["twice"]]),  # in whole epochs, as `longer` is
    ],
)
def test_controls_of_equal_or_lower_price(price: float, names: list[list[str]]) -> None:
    made = experiment()
    assert controls_within(made, model_prices(made), price) == names


def test_an_experiment_without_anything_annealed_is_told() -> None:
    assert annealing_note(experiment()) is None
    assert str(annealing_note(experiment(controls={}))).startswith(
        "The learning rate (constant) does not decay to 0, in the orders or in a control of their price"
    )
