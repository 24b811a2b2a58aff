from pathlib import Path
from typing import Any

import pytest
import yaml

from ordermerge.config.load import load_experiment
from ordermerge.errors import UserError

WHOLE: dict[str, Any] = {
    "name": "trial",
    "model": {"path": "base", "dtype": "bfloat16"},
    "data": {"train": "train.jsonl", "prompt": "{question}", "completion": "{answer}"},
    "orders": {"count": 4},
    "sft": {"num_train_epochs": 2},
    "merges": {"average": {"merge_method": "linear", "parameters": {"weight": 1}}},
    "evaluation": {"tasks": ["gsm8k"]},
}


def load(tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "experiment.yml"
    path.write_text(yaml.safe_dump({**WHOLE, **changes}))
    return load_experiment(path)


def problems(tmp_path: Path, **changes: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'experiment.yml'}: ")
    return caught.value.problems


def test_empty_sections_are_absent(tmp_path: Path) -> None:
    experiment = load(tmp_path, sft=None, merges=None, evaluation=None, checkpoints=None)
    assert (experiment.sft, experiment.merges, experiment.evaluation) == ({}, {}, None)
    assert problems(tmp_path, model=None, mrges=None) == [
        "key `model` is missing; write for instance `model: {path: HuggingFaceTB/SmolLM2-135M}`",
        "unknown key `mrges` (did you mean 'merges'?)",
    ]


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    experiment = load(tmp_path)
    assert experiment.orders.strategy == "random"
    assert experiment.orders.seed == 0
    assert experiment.data.split == "train"
    assert experiment.evaluation.model == "hf"


def test_paths_start_at_the_file_then_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "base").mkdir()
    monkeypatch.chdir(work)
    assert load(tmp_path).model.path == str(work / "base")
    (tmp_path / "base").mkdir()
    assert load(tmp_path).model.path == str(tmp_path / "base")
    assert load(tmp_path, model={"path": "org/model"}).model.path == "org/model"
    assert load(tmp_path, model={"path": "../absent"}).model.path == str(tmp_path.parent / "absent")


def test_all_problems_are_reported_at_once_with_suggestions(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        model={"path": "base", "dtyp": "bfloat16"},
        orders={"count": 0, "stratgy": "random"},
        evalutaion={"tasks": ["gsm8k"]},
    )
    assert len(found) == 4
    text = "\n".join(found)
    assert "unknown key `model.dtyp` (did you mean 'dtype'?)" in text
    assert "unknown key `orders.stratgy` (did you mean 'strategy'?)" in text
    assert "unknown key `evalutaion` (did you mean 'evaluation'?)" in text
    assert "`orders.count` must be a number of at least 1; got 0" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "`name` must be a plain name (letters, digits, `.`, `_`, `-`); got 'a/b'"),
        ({"merges": {"../x": {}}}, "must be a plain name"),
        (
            {"model": {"path": "x", "dtype": "int8"}},
            "`model.dtype` must be 'float32', 'bfloat16' or 'float16'; got 'int8'",
        ),
        ({"model": {}}, "key `model.path` is missing"),
        ({"name": "n" * 250}, "`name` must be text of at most 100 characters; got 'nnn"),
        ({"orders": {"count": 1_000_000}}, "`orders.count` must be a number of at most 1,000; got 1000000"),
        ({"evaluation": {"tasks": ["t"], "limit": "inf"}}, "`evaluation.limit` must be a finite number; got 'inf'"),
        ({"model": {"path": {"a": 1}}}, "`model.path` must be text; got {'a': 1}"),
        ({"merges": ["a"]}, "`merges` must be a mapping of keys; got ['a']; write for instance `merges: {"),
        (
            {"data": {"train": "t", "prompt": "{q}"}},
            "`data` needs `prompt` and `completion` (templates), or `messages`",
        ),
        (
            {"data": {"train": "t", "prompt": "{q}", "completion": "{a}", "messages": "m"}},
            "`data` takes `messages`, or `prompt` and `completion`, not both",
        ),
        ({"data": {"train": "t", "messages": "m", "validation": 1.5}}, "validation"),
        ({"evaluation": {"tasks": []}}, "`evaluation.tasks`"),
        (
            {"orders": {"count": 4, "strategy": "sorted"}},
            "`orders.strategy` must be 'random', 'batch', 'rotate' or 'file'; got 'sorted'",
        ),
        ({"orders": {"count": 4, "strategy": "file"}}, "`orders` needs `file`, your orders, for `strategy: file`"),
        (
            {"orders": {"count": 4, "strategy": "batch", "file": "o.json"}},
            "`orders` takes `file` only with `strategy: file`; got `strategy: batch`, `file: o.json`",
        ),
    ],
)
def test_each_mistake_gets_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert any(message in problem for problem in problems(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no\.yml: no such file \(looked in .*\)"),
        ("a: [", r"no\.yml: not valid YAML: while parsing"),
        ("- a", r"no\.yml: must hold a YAML mapping .*; got list"),
        ("", r"no\.yml: must hold a YAML mapping .*; got NoneType"),
    ],
)
def test_unreadable_files_are_told_apart(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "no.yml").write_text(content)
    with pytest.raises(UserError, match=message):
        load_experiment(tmp_path / "no.yml")


@pytest.mark.parametrize(
    ("key", "value"), [("directory", "/tmp"), ("made_with", "by hand"), ("made_with", {"file": "x.yml", "by": "me"})]
)
def test_keys_that_only_runs_write_are_unknown_to_users(key: str, value: object, tmp_path: Path):
    path = tmp_path / "e.yml"
    section = {"train": "t.jsonl", "messages": "m"}
    content = {"name": "x", "model": {"path": "b"}, "data": section, "orders": {"count": 2}, key: value}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"unknown key `{key}`"):
        load_experiment(path)
