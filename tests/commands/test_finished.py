"""A finished run that has not changed is shown without any work, or library; inputs are read once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge import files
from ordermerge.cli import main
from ordermerge.commands import run as run_module
from ordermerge.run_directory import DIGESTS, FINISHED

pytestmark = pytest.mark.integration
# Runs each command in a process of its own and prints which of the heavy packages it has loaded.
PROBE = """
import json, os, sys
from ordermerge.cli import main
heavy = ("torch", "transformers", "mergekit", "peft", "trl", "datasets", "lm_eval.evaluator", "numba", "matplotlib")
for arguments in json.loads(sys.argv[1]):
    if os.fork():
        assert os.wait()[1] == 0, arguments
        continue
    try:
        main(arguments)
    except SystemExit as done:
        assert done.code == 0, arguments
    print("LOADED", json.dumps([name for name in heavy if name in sys.modules]), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def experiment(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that has been run: two orders, a merge, no evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    base, *_ = make_family(count=0)
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    content = {
        "name": "tiny",
        "model": {"path": str(base), "dtype": "bfloat16"},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "bf16": False},
        "merges": {"resampled": {"merge_method": "parameter_selection_resample"}},
    }
    (folder / "experiment.yml").write_text(yaml.safe_dump(content))
    for path in (*base.iterdir(), folder / "data.jsonl"):
        os.utime(path, (1, 1))  # long settled
    assert run(folder / "experiment.yml").exit_code == 0
    return folder / "experiment.yml"


def run(experiment: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["run", str(experiment), "--runs-dir", str(experiment.parent / "runs"), *options])


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The experiments that were really carried out, in spite of being finished."""
    seen: list[Path] = []
    original = run_module.run_experiment

    def noting(path: Path, *args: object, **options: object) -> None:
        seen.append(path)
        original(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "run_experiment", noting)
    return seen


def test_it_is_shown_as_the_whole_command_shows_it(experiment: Path, worked: list[Path]) -> None:
    shown = run(experiment)
    assert (shown.exit_code, worked) == (0, [])
    (experiment.parent / "runs" / "tiny" / FINISHED).unlink()
    whole = run(experiment)
    assert len(worked) == 1
    assert [line for line in whole.output.splitlines() if "already trained" not in line] == shown.output.splitlines()
    assert "train nothing to do (2 done)" in shown.output
    assert run(experiment).output == shown.output
    assert len(worked) == 1


@pytest.mark.parametrize("name", ["report.html", "merges/resampled/config.json", FINISHED])
def test_what_is_gone_from_the_run_directory_is_seen(experiment: Path, worked: list[Path], name: str) -> None:
    path = experiment.parent / "runs" / "tiny" / name
    content = path.read_bytes()
    path.unlink()
    done = run(experiment)
    assert len(worked) == 1
    if name == "merges/resampled/config.json":
        assert "config.json: is missing" in done.output
        path.write_bytes(content)
    else:
        assert done.exit_code == 0
        assert path.exists()


def test_changed_inputs_options_and_damage_are_seen(experiment: Path, worked: list[Path]) -> None:
    assert run(experiment).exit_code == 0  # settles what the test before has changed
    worked.clear()
    data, noted = experiment.parent / "data.jsonl", experiment.parent / "runs" / "tiny" / FINISHED
    content = data.read_text()
    data.write_text(content.replace("0+1=", "1+0="))
    assert "data.train: its content has changed" in run(experiment).output
    data.write_text(content)
    base = Path(yaml.safe_load(experiment.read_text())["model"]["path"])
    (base / "added.json").write_text("{}")
    run(experiment)
    (base / "added.json").unlink()
    run(experiment, "--dry-run")
    assert "a number" in run(experiment, "--set", "sft.learning_rate=fast").output
    noted.write_text("{")
    assert run(experiment).exit_code == 0
    assert len(worked) == 5
    assert run(experiment).exit_code == 0
    assert len(worked) == 5


def test_an_unchanged_input_is_read_once(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_directory = experiment.parent / "runs" / "tiny"
    digests = run_directory / DIGESTS
    read: list[str] = []
    original = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: (read.append(path.name), original(path))[1])

    def fresh(*arguments: str) -> list[str]:
        files.digests.get().clear()  # as in a new process
        read.clear()
        done = CliRunner().invoke(main, [*arguments, str(experiment), "--runs-dir", str(run_directory.parent)])
        assert done.exit_code == 0, done.output
        return [name for name in read if name in ("data.jsonl", "tokenizer.json", "model.safetensors")]

    os.utime(experiment.parent / "data.jsonl", (1, 1))  # long settled
    fresh("run")
    noted = digests.read_text()
    assert any(name.startswith("tensors of ") for name in json.loads(noted))
    assert fresh("run", "--dry-run") == []
    digests.write_text("{broken")
    asked = fresh("run", "--dry-run")
    assert "data.jsonl" in asked
    assert "model.safetensors" not in asked  # as it was read for its tensors, by name
    assert digests.read_text() == "{broken"  # a dry run writes nothing
    assert "data.jsonl" in fresh("train", "--order", "1")
    assert json.loads(digests.read_text()).keys() <= json.loads(noted).keys()
    assert fresh("train", "--order", "1") == []
    os.utime(experiment.parent / "data.jsonl", (2, 2))
    assert fresh("train", "--order", "1") == ["data.jsonl"]


def test_commands_load_no_more_than_they_need(
    experiment: Path, make_family: Callable[..., list[Path]], save: Callable[..., Path], tmp_path: Path
) -> None:
    run(experiment)
    runs, recipe = str(experiment.parent / "runs"), str(tmp_path / "recipe.yml")
    finished = f"{runs}/tiny"
    base, *models = map(str, make_family("llama", count=2))
    content = {"merge_method": "parameter_selection", "models": [{"model": model} for model in models]}
    Path(recipe).write_text(yaml.safe_dump({**content, "dtype": "bfloat16"}))
    scores = [str(save(tmp_path / name, [0, 1, 1, 0, 1, seed])) for seed, name in enumerate(("a", "b"))]
    tables = ["torch", "transformers", "mergekit", "peft"]  # mergekit imports PEFT itself
    allowed: dict[str, list[tuple[list[str], list[str]]]] = {
        "run": [([str(experiment), "--runs-dir", runs], [])],
        "check": [([finished], []), ([recipe], [*tables])],
        "report": [([finished], ["matplotlib"])],
        "card": [([finished], [])],
        "tasks": [([], [])],
        "compare": [(scores, [])],
        "noise": [(scores, [])],
        "init": [([str(tmp_path / "new")], ["torch", "transformers", "peft", "trl"])],
        "inspect": [(["--base", base, *models], ["torch", "numba"])],
        "orders": [([str(experiment)], ["torch", "transformers", "peft", "trl", "datasets"])],
        "merge": [([recipe, str(tmp_path / "out")], [*tables, "numba"])],
    }
    commands = [[name, *arguments] for name, uses in allowed.items() for arguments, _ in uses]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("LOADED ") for line in done.stdout.splitlines() if line.startswith("LOADED")]
    loaded = [(command, set(json.loads(line))) for command, line in zip(commands, lines, strict=True)]
    assert loaded == [([name, *arguments], set(most)) for name, uses in allowed.items() for arguments, most in uses]
    # These train, score or measure models, or draw what was measured: they need most of it.
    of_models = {"train", "eval", "soup", "pareto", "losses", "imbalance", "curve", "frank-wolfe"}
    assert allowed.keys() | of_models == set(main.commands)
