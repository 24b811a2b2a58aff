"""`--set KEY=VALUE`: what a value becomes, and where it goes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ordermerge.config.changes import change, described
from ordermerge.config.load import load_experiment
from ordermerge.errors import UserError

GIVEN: dict[str, Any] = {
    "name": "trial",
    "model": {"path": "base"},
    "data": {"train": "t.jsonl", "messages": "m"},
    "orders": {"count": 4},
    "sft": {"num_train_epochs": 2, "learning_rate": 1e-3},
    "merges": {"dare_0.5": {"merge_method": "dare_ties", "parameters": {"density": 0.5}}},
}


@pytest.mark.parametrize(
    ("one", "value"),
    [
        ("name=b", "b"),
        ("name=7", "7"),  # text, where the key wants text
        ("name=1.10", "1.10"),
        ("model.revision=null", None),
        ("model.revision=2024-01-01", "2024-01-01"),
        ("orders.count=1", 1),
        ("orders.branch_at=0.5", 0.5),
        ("data.validation=0.1", 0.1),
        ("data.validation=1.5", 1.5),  # no fraction, and no file either: for the schema to refuse
        ("data.prompt=Q: {a}=", "Q: {a}="),
        ("sft.learning_rate=1e-4", 1e-4),
        ("sft.bf16=false", False),
        ("sft.lr_scheduler_kwargs={num_cycles: 2}", {"num_cycles": 2}),
        ("lora={r: 8}", {"r": 8}),
        ("lora.target_modules=[a, b]", ["a", "b"]),
        ("merges.dare_0.5.parameters.density=0.3", 0.3),
        ("merges.ties.merge_method=ties", "ties"),
        ("evaluation.tasks=[a, b]", ["a", "b"]),
        ("evaluation.tasks=a,b", ["a", "b"]),
        ("evaluation.limit=10", 10),
    ],
)
def test_value_has_the_type_of_its_key(one: str, value: object) -> None:
    found: Any = change(GIVEN, [one])
    key = one.partition("=")[0]
    parts = ["merges", "dare_0.5", *key.split(".")[3:]] if "dare" in key else key.split(".")
    for part in parts:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_nothing_else_changes_and_the_last_one_wins() -> None:
    found = change(GIVEN, ["orders.count=2", "sft.bf16=true", "orders.count=3"])
    assert found == {**GIVEN, "orders": {"count": 3}, "sft": {**GIVEN["sft"], "bf16": True}}
    assert GIVEN["orders"] == {"count": 4}
    assert change(GIVEN, []) == GIVEN


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ("sft.bf16", r"`--set sft.bf16`: must be KEY=VALUE, such as `--set sft.learning_rate=1e-4`"),
        ("=3", "must be KEY=VALUE"),
        ("sft.=3", "must be KEY=VALUE"),
        ("name.first=b", "`--set name.first=b`: there is 'trial', which holds no keys"),
        ("lora={r: 8", "`--set lora={r: 8`: not valid YAML"),
    ],
)
def test_what_is_no_change_is_refused(one: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        change(GIVEN, [one])
    assert message in str(caught.value)


def test_unknown_key_gets_a_suggestion_and_the_change_is_named(tmp_path: Path) -> None:
    path = tmp_path / "e.yml"
    path.write_text(yaml.safe_dump(GIVEN))
    assert load_experiment(path, ["orders.count=1", "name=b"]).name == "b"
    with pytest.raises(UserError) as caught:
        load_experiment(path, ["orders.cuont=1"])
    assert str(caught.value) == f"{path} --set orders.cuont=1: unknown key `orders.cuont` (did you mean 'count'?)"
    assert described(path, []) == str(path)
