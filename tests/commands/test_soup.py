"""`ordermerge soup` on a tiny family: what is chosen, left on disk, done again and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from mergekit.options import MergeOptions

import ordermerge.commands.soup
from ordermerge.cli import main
from ordermerge.commands.merging import merge
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.task_data import PACK

pytestmark = pytest.mark.integration

TASK = """
include: PACK/completion.yaml
task: NAME
dataset_kwargs: {data_files: NAME.jsonl}
"""


@pytest.fixture(scope="module")
def family(make_family: Callable[..., list[Path]]) -> Path:
    """A folder with a model that knows its letters, and that model disturbed a little, a little, and much.

    Near a minimum of the loss the mean of two disturbed models is better than either; the third spoils it.
    """
    base, *_ = make_family(count=0, dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokens = tokenizer([f"{letter}bcd" for letter in "abcdefgh"], return_tensors="pt").input_ids
    labels = tokens.clone()
    labels[:, 0] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(tokens, labels=labels).loss.backward()
        optimizer.step()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for name, noise in (("base", 0.0), ("sub0", 0.1), ("sub1", 0.1), ("sub2", 1.0)):
        changed = {key: value + noise * torch.randn(value.shape, generator=generator) for key, value in trained.items()}
        model.load_state_dict(changed)
        model.save_pretrained(base.parent / name)
        tokenizer.save_pretrained(base.parent / name)
    return base.parent


@pytest.fixture
def place(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the family below `models` and the tasks `valid` and `test`."""
    (tmp_path / "models").symlink_to(family)
    (tmp_path / "tasks").mkdir()
    for name, completion in (("valid", "bcd"), ("test", "xyz")):
        records = [{"prompt": letter, "completion": completion} for letter in "abcdefgh"]
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        text = TASK.replace("PACK", str(PACK)).replace("NAME", name)
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    (tmp_path / "tasks" / "same_data.yaml").write_text(text.replace("test", "same_data", 1).replace("test", "valid"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def soup(*options: str, models: tuple[str, ...] = ("sub0", "sub1", "sub2")) -> Result:
    arguments = [*(f"models/{name}" for name in models), "--tasks", "valid", "--include_path", "tasks", *options]
    return CliRunner().invoke(main, ["soup", *arguments, "--device", "cpu", "--batch-size", "8"])


@pytest.mark.parametrize(
    ("method", "metric"),
    [("linear", "loglikelihood"), ("parameter_selection_resample", "bits_per_byte,none")],
)
def test_soup_from_models_to_tested_merge(
    place: Path, monkeypatch: pytest.MonkeyPatch, method: str, metric: str
) -> None:
    merged: list[str] = []

    def watched(recipe: Path, out: Path, options: MergeOptions, **how: Any) -> None:
        assert not out.parent.exists() or out.name == "model"  # one trial at a time
        merge(recipe, out, options, **how)
        merged.append(out.name)

    monkeypatch.setattr(ordermerge.commands.soup, "merge", watched)
    base = ("--base", "models/base") if method != "linear" else ()
    options = ("--method", method, *base, "--metric", metric, "--test-tasks", "test")
    first = soup(*options)
    assert first.exit_code == 0, (first.output, first.exception)
    log = json.loads(Path("soup/soup.json").read_text())
    sign = 1 if metric == "loglikelihood" else -1
    assert log["higher_is_better"] is (sign > 0)
    assert [len(trial["ingredients"]) for trial in log["trials"][:4]] == [1, 1, 1, 2]
    assert len(log["trials"]) == 5
    kept = [trial for trial in log["trials"] if trial["kept"]]
    assert log["ingredients"] == kept[-1]["ingredients"]
    if method == "linear":
        assert log["ingredients"] == ["sub1", "sub0"]
    assert log["score"] == kept[-1]["score"] == max(sign * trial["score"] for trial in kept) * sign
    scores = {row.model: row.value for row in load_rows(Path("soup/eval")) if row.metric == metric.split(",")[0]}
    assert [scores[trial["ingredients"][0]] for trial in log["trials"][:3]] == [t["score"] for t in log["trials"][:3]]
    assert sorted(scores.values()) == sorted(trial["score"] for trial in log["trials"])
    assert {path.name for path in Path("soup").iterdir()} == {"eval", "model", "recipes", "soup.json", "test"}
    assert len(merged) == 3
    assert {row.task for row in load_rows(Path("soup/test"))} == {"test"}

    # the result is the merge that its own recipe makes
    merge(Path("soup/recipes/model.yml"), Path("again"), MergeOptions())
    assert Path("again/model.safetensors").read_bytes() == Path("soup/model/model.safetensors").read_bytes()

    # run again, nothing is scored and only the result is merged
    markers = {path: path.stat().st_mtime_ns for path in Path("soup").rglob("eval/*/ordermerge_*.json")}
    merged.clear()
    again = soup(*options)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in Path("soup").rglob("eval/*/ordermerge_*.json")} == markers
    assert merged == ["model"]
    assert "soup: already scored" in again.output


def test_soup_interrupted_leaves_no_trial_and_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recipe: Path, out: Path, options: MergeOptions, **how: Any) -> None:
        out.mkdir(parents=True)
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(ordermerge.commands.soup, "merge", broken)
        done = soup("--metric", "loglikelihood")
    assert done.exit_code == 1
    assert "could not be scored: " in done.output.splitlines()[-1]
    assert "disk full" in done.output.splitlines()[-1]
    assert not Path("soup/trial").exists()
    assert not Path("soup/soup.json").exists()
    done = soup("--metric", "loglikelihood")
    assert done.exit_code == 0, done.output
    assert done.output.count("already scored") >= 3


def test_soup_takes_recipes_for_the_models_that_they_make(place: Path) -> None:
    recipe = {"merge_method": "linear", "models": [{"model": "models/sub0"}, {"model": "models/sub1"}]}
    recipe |= {"parameters": {"weight": 1}, "dtype": "float32"}
    Path("mean.yml").write_text(yaml.safe_dump(recipe))
    arguments = ["mean.yml", "models/sub2", "--tasks", "valid", "--include_path", "tasks", "--metric", "loglikelihood"]
    done = CliRunner().invoke(main, ["soup", *arguments, "--device", "cpu", "--batch-size", "8"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(Path("soup/soup.json").read_text())["ingredients"] == ["mean.yml"]
    merge(Path("mean.yml"), Path("mean"), MergeOptions())
    weights = Path("mean/model.safetensors").read_bytes()
    assert Path("soup/ingredients/mean.yml/model.safetensors").read_bytes() == weights
    assert {path.name for path in Path("soup").iterdir()} == {"eval", "ingredients", "model", "recipes", "soup.json"}
    merge(Path("soup/recipes/model.yml"), Path("again"), MergeOptions())
    assert Path("again/model.safetensors").read_bytes() == Path("soup/model/model.safetensors").read_bytes()
    assert {row.model for row in load_rows(Path("soup/eval"))} == {"mean.yml", "sub2", "soup_0+1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--metric: must name one score that every task has: loglikelihood,none or bits_per_byte,none or"),
        (("--test-tasks", "valid"), "--test-tasks: valid has a part in --tasks, which choose the soup; test on others"),
        (("--test-tasks", "same_data"), "tasks/valid.jsonl has a part in --tasks, which choose the soup"),
        (("--test-tasks", "ordermerge_text"), "--test-tasks: task 'ordermerge_text' needs `data_files`"),
        (("--base", "models/base"), "--base: linear would average the base model in; leave it out"),
        (("--method", "parameter_selection_resample"), "needs `base_model`"),
        (("--limit", "0"), "limit: must be above 0"),
    ],
)
def test_soup_mistakes_exit_1_with_a_sentence(place: Path, options: tuple[str, ...], message: str) -> None:
    done = soup(*options)
    assert done.exit_code == 1
    assert message in done.output
    assert not Path("soup/soup.json").exists()


def test_soup_of_one_model_is_refused(place: Path) -> None:
    done = soup(models=("sub0",))
    assert (done.exit_code, done.output) == (1, "Error: a soup is chosen from at least 2 models; got 1\n")
