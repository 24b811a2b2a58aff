import json
from pathlib import Path
from typing import Any

import pytest

from ordermerge.commands.plan import model_roles
from ordermerge.config.schema import Experiment

SELECTION = {"merge_method": "parameter_selection"}


def experiment(merges: dict[str, dict[str, Any]]) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "x",
            "model": {"path": "base"},
            "data": {"train": "t.jsonl", "prompt": "{q}", "completion": "{a}"},
            "orders": {"count": 2},
            "merges": merges,
        }
    )


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    record(tmp_path, 0, [])
    record(tmp_path, 1, [])
    return tmp_path


def record(run_directory: Path, order: int, losses: list[float]) -> None:
    path = run_directory / "orders" / str(order) / "order" / "order.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = {"order": order, "batch_size": 1, "dataset_fingerprint": None, "steps": 1, "samples_consumed": 1}
    eval_losses = [{"step": i, "loss": loss} for i, loss in enumerate(losses)]
    path.write_text(json.dumps({**rest, "seconds": 1.0, "losses": [], "eval_losses": eval_losses}))


def test_average_is_the_first_linear_merge(run_directory):
    merges = {"s": SELECTION, "a": {"merge_method": "linear"}, "b": {"merge_method": "linear"}}
    roles = model_roles(experiment(merges), run_directory)
    assert (roles.single, roles.merged, roles.average) == (["order_0", "order_1"], ["s", "a", "b"], "a")
    assert model_roles(experiment({"s": SELECTION}), run_directory).average is None


def test_draws_are_merges_that_differ_in_the_seed_only(run_directory):
    merges = {
        "first": SELECTION,
        "again": {**SELECTION, "parameters": {"seed": 0}},
        "second": {**SELECTION, "parameters": {"seed": 1}},
        "rows": {**SELECTION, "parameters": {"seed": 2, "granularity": "row"}},
        "resample": {"merge_method": "parameter_selection_resample", "parameters": {"seed": 1}},
    }
    assert model_roles(experiment(merges), run_directory).draws == [["first", "second"]]


def test_validation_loss_is_the_last_of_each_and_needs_all(run_directory):
    record(run_directory, 0, [0.5, 0.0])
    assert model_roles(experiment({"s": SELECTION}), run_directory).validation_loss == {}
    record(run_directory, 1, [0.2, 0.4])
    losses = model_roles(experiment({"s": SELECTION}), run_directory).validation_loss
    assert losses == {"order_0": 0.0, "order_1": 0.4}
