"""`ordermerge pareto` on two models that were taught different things: what is found, kept, done again and refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from scipy.special import expit, logit

from ordermerge.cli import main
from ordermerge.commands.pareto import ParetoSearch
from ordermerge.commands.surrogates import sample_coefficients
from ordermerge.eval.scoring.table import Row
from ordermerge.eval.task_data import PACK
from ordermerge.locks import lock

pytestmark = pytest.mark.integration

TASK = """
include: PACK/completion.yaml
task: NAME
dataset_kwargs: {data_files: tasks/NAME.jsonl}
"""
TAUGHT = {"left": "bcd", "right": "xyz"}


@pytest.fixture(scope="module")
def place(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a model that was taught each task, and the tasks."""
    folder = tmp_path_factory.mktemp("pareto")
    base, *_ = make_family(count=0, dtype=torch.float32)
    shutil.copytree(base, folder / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    (folder / "tasks").mkdir()
    for name, completion in TAUGHT.items():
        records = [{"prompt": letter, "completion": completion} for letter in "abcdefgh"]
        (folder / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.replace("PACK", str(PACK)).replace("NAME", name))
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        tokens = tokenizer([f"{letter}{completion}" for letter in "abcdefgh"], return_tensors="pt").input_ids
        labels = tokens.clone()
        labels[:, 0] = -100
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(15):
            optimizer.zero_grad()
            model(tokens, labels=labels).loss.backward()
            optimizer.step()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def pareto(*options: str, models: tuple[str, ...] = ("left", "right"), tasks: str = "left,right") -> Result:
    arguments = [*models, "--base", "base", "--tasks", tasks, "--include-path", "tasks", *options]
    return CliRunner().invoke(main, ["pareto", *arguments, "--device", "cpu", "--batch-size", "8"])


def scored_by(*of_tasks: Callable[[np.ndarray], float]) -> Callable[..., list[Row]]:
    """Return what stands for `evaluate_models`: scores of each task by the coefficients in a recipe."""

    def evaluate(files: list[str], out: Path, settings: dict[str, Any], *, force: bool) -> list[Row]:
        rows = []
        for file in files:
            recipe = yaml.safe_load(Path(file).read_text())
            point = np.array([model["parameters"]["weight"] for model in recipe["models"]])
            for task, score in zip(TAUGHT, of_tasks, strict=True):
                rows.append(Row(Path(file).name, task, "acc", "none", float(score(point)), 0.01, True, 100))
        return rows

    return evaluate


def first(point: np.ndarray) -> float:
    return expit(2 * point[0] - (point**2).sum())


def second(point: np.ndarray) -> float:
    return expit(2 * point[1] - (point**2).sum())


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParetoSearch, "noise", lambda self, points: (None, None))


@pytest.mark.usefixtures("here", "without_noise")
def test_worked_example_through_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ordermerge.commands.pareto.evaluate_models", scored_by(first, second))
    done = pareto("--points", "6", "--out", "example", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert found["models"] == ["left", "right"]
    assert found["samples"] == 12  # twice the parameters of a quadratic
    assert [fit["r_squared"] for fit in found["fits"]] == pytest.approx([1, 1], abs=1e-6)
    assert found["fits"][0]["parameters"] == pytest.approx([-1, -1, 0, 2, 0, 0], abs=1e-4)
    promised = [point for point in found["points"] if point["kind"] == "promised"]
    assert len(promised) >= 4
    for point in promised:
        assert point["on_front"]
        assert sum(point["coefficients"]) == pytest.approx(1, abs=2e-3)
        assert point["predicted"] == pytest.approx([score["value"] for score in point["scores"]], abs=1e-4)
    names = {point["name"] for point in found["points"] if point["on_front"]}
    assert {file.stem for file in Path("example/front").iterdir()} == names
    assert {"1_0", "0_1", "0.5_0.5"} <= names
    recipe = yaml.safe_load(Path("example/front/0.5_0.5.yml").read_text())
    assert recipe["merge_method"] == "task_arithmetic"
    assert [model["parameters"]["weight"] for model in recipe["models"]] == [0.5, 0.5]
    assert found["degenerate"] is None

    bytes_before = {file: file.read_bytes() for file in Path("example").rglob("*") if file.is_file()}
    shutil.rmtree("example")
    Path("example/front").mkdir(parents=True)
    Path("example/front/0_0.123.yml").write_text("of an earlier search")
    again = pareto("--points", "6", "--out", "example")
    assert again.exit_code == 0, again.output
    assert {file: file.read_bytes() for file in Path("example").rglob("*") if file.is_file()} == bytes_before
    assert "left acc ↑: sigmoid of a quadratic, 6 parameters, 12 samples: R² 1.00" in again.output
    assert "left acc ↑" in Path("example/pareto.svg").read_text(encoding="utf-8")


@pytest.mark.usefixtures("here", "without_noise")
def test_a_point_that_is_best_in_every_task_is_a_degenerate_front(monkeypatch: pytest.MonkeyPatch) -> None:
    same = scored_by(first, lambda point: float(expit(logit(first(point)) / 2 - 1)))
    monkeypatch.setattr("ordermerge.commands.pareto.evaluate_models", same)
    done = pareto("--points", "2", "--out", "one")
    assert done.exit_code == 0, done.output
    said = "The front is degenerate: 1_0 is the best in every task; there is no trade-off to choose from."
    assert said in done.output
    assert json.loads(Path("one/pareto.json").read_text())["degenerate"] == said
    assert [file.name for file in Path("one/front").iterdir()] == ["1_0.yml"]


@pytest.mark.usefixtures("here", "without_noise")
def test_samples_that_round_alike_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ordermerge.commands.pareto.evaluate_models", scored_by(first, second))
    twice = sample_coefficients(2, 12, seed=0)[[*range(12), 5]]
    monkeypatch.setattr("ordermerge.commands.pareto.sample_coefficients", lambda *_: twice)
    done = pareto("--samples", "13", "--points", "2", "--out", "twice", "--json")
    assert done.exit_code == 0, done.output
    names = [point["name"] for point in json.loads(done.stdout)["points"]]
    assert len(names) == len(set(names))
    assert json.loads(done.stdout)["samples"] == 12


@pytest.mark.usefixtures("here")
def test_scores_that_are_no_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ordermerge.commands.pareto.evaluate_models", scored_by(first, lambda _: math.inf))
    done = pareto("--out", "infinite")
    assert done.exit_code == 1
    assert "1_0.yml: scores inf by acc of right, to which no surrogate can be fitted" in done.output


@pytest.mark.usefixtures("here")
def test_merges_are_scored_once_and_traded_off() -> None:
    options = ("--metric", "bits_per_byte", "--samples", "7", "--points", "2")
    done = pareto(*options)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(Path("pareto/pareto.json").read_text())
    left, right = (
        {point["name"]: point["scores"][task]["value"] for point in found["points"]} for task in range(len(TAUGHT))
    )
    assert left["1_0"] < left["0.5_0.5"] < left["0_1"]  # fewer bits are better
    assert right["0_1"] < right["0.5_0.5"] < right["1_0"]
    front = {point["name"] for point in found["points"] if point["on_front"]}
    assert {name for name in left if left[name] == min(left.values())} <= front
    untold = "Whether this front is noise cannot be told: left bits_per_byte: its value is not a mean over documents."
    assert (found["degenerate"], found["untold"]) == (None, untold)
    assert "quadratic, 6 parameters, 7 samples" in done.output
    assert {path.name for path in Path("pareto").iterdir()} == {
        *("eval", "front", "recipes", "pareto.json", "pareto.png", "pareto.svg", "pareto.csv")
    }
    made = {file: file.read_bytes() for file in Path("pareto").rglob("*") if file.is_file()}
    again = pareto(*options)
    assert again.exit_code == 0, again.output
    assert ": scored after" not in again.output
    assert {file: file.read_bytes() for file in Path("pareto").rglob("*") if file.is_file()} == made
    other = pareto("--metric", "loglikelihood", "--samples", "7", "--points", "2", "--json")  # a mean over documents
    assert other.exit_code == 0, other.output
    assert "0_1.yml: already scored" in other.output
    assert json.loads(other.stdout)["degenerate"] is json.loads(other.stdout)["untold"] is None
    wrong = pareto("--samples", "7", "--metric", "nonsense")  # of what is scored
    assert wrong.exit_code == 1
    assert "--metric: must name one score that every task has: loglikelihood,none or " in wrong.output


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "changed", "said"),
    [
        ((), {"models": ("left",)}, "a front is of merges of at least 2 models; got 1"),
        ((), {"tasks": "left"}, "--tasks: a front takes at least 2 tasks, between which to choose; got 1"),
        (("--samples", "6"), {}, "of 2 models has 6 parameters, which takes at least 7 samples; got 6"),
        (("--metric", "a", "--metric", "b", "--metric", "c"), {}, "--metric: must be given once, or once for each of"),
        ((), {"models": ("left", "mean.yml")}, "mean.yml: is a recipe, and coefficients multiply models"),
        ((), {"models": ("left", "rihgt")}, "rihgt: no such folder"),
        ((), {"models": ("left", "left")}, "left listed more than once"),
        ((), {"tasks": "left,nothing"}, "task 'nothing' is unknown"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(options: tuple[str, ...], changed: dict[str, Any], said: str) -> None:
    done = pareto(*options, "--out", "refused", **changed)
    assert done.exit_code == 1
    assert said in done.output
    assert not Path("refused").exists()


@pytest.mark.usefixtures("here")
def test_a_second_process_leaves() -> None:
    with lock(Path("held")):
        done = pareto("--out", "held")
    assert done.exit_code == 1
    assert "is making it; give the command again when that has ended, or with `--wait`" in done.output
