"""`ordermerge eval` on recipes, which are merged for as long as they are scored, and on ensembles."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import constants
from mergekit.options import MergeOptions

import ordermerge.commands.temporary_merge
from ordermerge.cli import main
from ordermerge.commands.merging import merge
from ordermerge.eval.scoring.saved import load_rows, load_scores

pytestmark = pytest.mark.integration

TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_text: "{{question}}"
"""
CHOICE = 'task: choice\noutput_type: multiple_choice\ndoc_to_choice: ["a", "b", "c"]\ndoc_to_target: "{{label}}"\n'
ECHO = """task: echo
output_type: generate_until
doc_to_target: "{{question}}"
generation_kwargs: {until: ["<eos>"], max_gen_toks: 4, do_sample: false}
"""

OPTIONS = ("--include_path", "tasks", "--device", "cpu", "--batch-size", "4")


@pytest.fixture
def place(make_family: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw = random.Random(0)
    lines = [{"question": "".join(draw.choices("abcdefgh", k=4)), "label": draw.randrange(3)} for _ in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    for name, own in (("choice", CHOICE), ("echo", ECHO)):
        text = own + TASK.replace("DATA", str(tmp_path / "data.jsonl"))
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    for path in make_family(count=2):
        (tmp_path / path.name).symlink_to(path)
    for name, method in (("mean", "linear"), ("drawn", "parameter_selection")):
        recipe = {"merge_method": method, "models": [{"model": "sub0"}, {"model": "sub1"}], "dtype": "bfloat16"}
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({**recipe, "parameters": {"weight": 1}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score(*arguments: str, tasks: str = "choice") -> Result:
    return CliRunner().invoke(main, ["eval", *arguments, *OPTIONS, "--tasks", tasks, "--out", "out"])


def answers(name: str, task: str = "choice") -> list:
    return [
        json.loads(line)["resps"] for line in load_scores(Path("out") / name).samples[task].read_text().splitlines()
    ]


def test_a_recipe_is_scored_like_the_folder_that_it_makes_one_at_a_time(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def watched(recipe: Path, out: Path, options: MergeOptions, **how: Any) -> None:
        assert [path.name for path in Path("out").glob(".merging.scratch-*")] == [out.parent.name]
        merge(recipe, out, options, **how)
        made.append(out.name)

    monkeypatch.setattr(ordermerge.commands.temporary_merge, "merge", watched)
    merge(Path("drawn.yml"), Path("folder"), MergeOptions())
    done = score("mean.yml", "sub0", "drawn.yml", "folder")
    assert done.exit_code == 0, done.output
    assert made == ["mean.yml", "drawn.yml"]
    assert [path.name for path in Path("out").iterdir() if path.name.startswith(".")] == []
    assert answers("drawn.yml") == answers("folder")
    assert answers("drawn.yml") != answers("mean.yml")
    assert "calibration error" in done.output
    again = score("mean.yml", "sub0", "drawn.yml", "folder")
    assert (again.exit_code, len(made), again.output.count("already scored")) == (0, 2, 4)
    Path("mean.yml").write_text(Path("mean.yml").read_text().replace("weight: 1", "weight: 2"))
    changed = score("mean.yml")
    assert changed.exit_code == 1
    assert "recipe.parameters.weight: 1, now 2: the scores of mean.yml were made with the old value" in changed.output
    assert "`--force` scores that anew; another `--out` keeps it" in changed.output
    forced = score("mean.yml", "--force", "--json")
    assert (forced.exit_code, len(made)) == (0, 3)
    row = json.loads(forced.stdout)[0]
    assert (row["model"], row["task"], row["n"]) == ("mean.yml", "choice", 12)


def test_limits_and_orders_of_several_runs_have_results_of_their_own(place: Path) -> None:
    for run, model in (("a", "sub0"), ("b", "sub1")):
        (place / run / "orders").mkdir(parents=True)
        (place / run / "experiment.yml").touch()
        (place / run / "orders" / "0").symlink_to((place / model).resolve())
    for arguments in (["a/orders/0"], ["b/orders/0"], ["b/orders/0", "--limit", "5"], ["b/orders/0", "--limit", "3"]):
        done = score(*arguments)
        assert done.exit_code == 0, done.output
    rows = {row.model: row.n for row in load_rows(Path("out"))}
    assert rows == {"a-orders-0": 12, "b-orders-0": 12, "b-orders-0-limit5": 5, "b-orders-0-limit3": 3}
    assert answers("a-orders-0") != answers("b-orders-0")


def test_what_is_not_there_is_told_before_anything_is_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    missing = score("sbu0", "org/model")
    assert missing.exit_code == 1
    assert "sbu0: no such model folder (looked in" in missing.output
    assert "did you mean 'sub0'?; nor is it in the Hugging Face cache, and the hub cannot be reached" in missing.output
    assert "org/model: no such model folder" in missing.output
    assert "did you mean 'sub1'?" in score("./sbu1").output
    assert not Path("out").exists()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = CliRunner().invoke(main, ["eval", "sub0", "--tasks", "choice", "--include_path", "tasks", "--device=cuda:0"])
    assert done.exit_code == 1
    assert "device: cuda:0 is not there: torch has no CUDA device on this machine; leave `device` out" in done.output


def test_the_tasks_there_are_are_listed_the_users_own_first(place: Path) -> None:
    done = CliRunner().invoke(main, ["eval", "--tasks", "list", "--include_path", "tasks"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines.index("choice") < lines.index("gsm8k")
    assert "echo" in lines


def test_a_recipe_that_fails_leaves_nothing_and_loses_no_other_model(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(recipe: Path, out: Path, options: MergeOptions, **how: Any) -> None:
        out.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(ordermerge.commands.temporary_merge, "merge", broken)
    done = score("mean.yml", "sub0")
    assert done.exit_code == 1
    assert "mean.yml (mean.yml) could not be scored: " in done.output
    assert "disk full" in done.output
    assert {row.model for row in load_rows(Path("out"))} == {"sub0"}
    assert list(Path("out").glob(".merging.scratch-*")) == []


def test_a_recipe_with_a_mistake_is_refused_before_anything_is_scored(place: Path) -> None:
    Path("bad.yml").write_text(Path("mean.yml").read_text().replace("weight", "wieght"))
    done = score("sub0", "bad.yml", "no.yml")
    assert done.exit_code == 1
    assert "no.yml: no such file" in done.output
    done = score("sub0", "bad.yml")
    assert "bad.yml: unknown parameter `parameters.wieght` for linear" in done.output
    assert "--ensemble is of models that are there, not of recipes" in score("mean.yml", "--ensemble").output
    assert not Path("out").exists()


def test_an_ensemble_of_copies_scores_as_the_model_and_of_others_as_their_mean(place: Path) -> None:
    Path("copy").symlink_to(Path("sub0").resolve())
    done = score("sub0", "copy", "--ensemble", tasks="choice,echo")
    assert done.exit_code == 0, done.output
    assert answers("ensemble", "echo") == answers("sub0", "echo")
    for alone, together in zip(answers("sub0"), answers("ensemble"), strict=True):
        found = [float(response[0][0]) for response in together]
        assert found == pytest.approx([float(response[0][0]) for response in alone], abs=1e-6)
    shutil.copytree("sub1", "foreign")
    tokenizer = Path("foreign/tokenizer.json")
    tokenizer.write_text(tokenizer.read_text().replace('"a"', '"A"'))
    arguments = ["sub0", "foreign", "--ensemble", *OPTIONS, "--tasks", "choice", "--out", "other"]
    refused = CliRunner().invoke(main, ["eval", *arguments])
    assert "an ensemble is of models with one vocabulary" in refused.output
    changed = score("sub0", "sub1", "--ensemble")
    assert "the model: its content has changed" in changed.output
