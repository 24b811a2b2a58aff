"""`ordermerge init`: what it writes passes the checks as it is, runs to the end, and replaces nothing."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge.cli import main


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("kind", ["prompt", "chat", "lora"])
def test_experiment_passes_the_dry_run(kind: str, tmp_path: Path) -> None:
    made = invoke("init", str(tmp_path / "new"), "--kind", kind)
    assert made.exit_code == 0, made.output
    planned = invoke("run", str(tmp_path / "new" / "experiment.yml"), "--dry-run", "--runs-dir", str(tmp_path / "runs"))
    assert planned.exit_code == 0, planned.output
    assert "train order_0, order_1, order_2, annealed" in planned.output


def test_recipe_of_own_checkpoints_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("init", str(tmp_path), "--kind", "merge").exit_code == 0
    monkeypatch.chdir(tmp_path)
    merged = invoke("merge", "recipe.yml", "merged", "--quiet")
    assert merged.exit_code == 0, merged.output
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.integration
def test_experiment_runs_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("init", str(tmp_path)).exit_code == 0
    monkeypatch.chdir(tmp_path)
    small = [part for change in ("orders.count=2", "sft.num_train_epochs=1", "evaluation.limit=4")
             for part in ("--set", change)]  # fmt: skip
    done = invoke("run", "experiment.yml", *small)
    assert done.exit_code == 0, done.output
    (report,) = tmp_path.glob("runs/*/report.md")
    assert "| annealed |" in report.read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    refused = invoke("init", str(tmp_path))
    assert refused.exit_code == 1
    assert "train.jsonl: exists already; name a new folder" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize("length", range(20, 60))
def test_model_of_a_long_path_is_named_whole(length: int, tmp_path: Path) -> None:
    model = "x" * length
    assert invoke("init", str(tmp_path), "--model", model).exit_code == 0
    experiment = yaml.safe_load((tmp_path / "experiment.yml").read_text(encoding="utf-8"))
    assert experiment["model"]["path"] == model
    assert yaml.safe_load((tmp_path / "recipe.yml").read_text(encoding="utf-8"))["base_model"] == model


def test_own_model_is_named_and_none_written(tmp_path: Path) -> None:
    made = invoke("init", str(tmp_path), "--model", "HuggingFaceTB/SmolLM2-135M")
    assert made.exit_code == 0, made.output
    assert "path: HuggingFaceTB/SmolLM2-135M" in (tmp_path / "experiment.yml").read_text()
    assert "tiny random model" not in (tmp_path / "experiment.yml").read_text()
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kind", "merge", "--model", "a"], "give the base model first, then each fine-tuned one"),
        (["--model", "a", "--model", "b"], "an experiment has one base model; got 2"),
    ],
)
def test_models_that_do_not_go_with_the_kind_are_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    refused = invoke("init", str(tmp_path), *arguments)
    assert refused.exit_code == 1
    assert words in refused.output
