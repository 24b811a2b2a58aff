"""What an experiment's evaluation section stands for: its files are found from the experiment file."""

import json
from pathlib import Path

import pytest
import transformers
import yaml
from mergekit.common import ModelReference

from ordermerge.commands.plan import MergeStep, check_experiment, make_plan
from ordermerge.commands.recipes import complete_recipe, write_recipe
from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment
from ordermerge.run_directory import model_paths


def experiment(
    directory: Path, *, revision: str | None = None, lora: object = None, **evaluation: object
) -> Experiment:
    content = {
        "name": "tiny",
        "model": {"path": "org/base", "revision": revision},
        "data": {"train": "org/data", "prompt": "{a}", "completion": "{b}"},
        "orders": {"count": 2},
        "lora": lora,
        "merges": {"resampled": {"merge_method": "parameter_selection_resample"}},
        "evaluation": {"tasks": ["ordermerge_text"], **evaluation},
    }
    (directory / "experiment.yml").write_text(yaml.safe_dump(content))
    return load_experiment(directory / "experiment.yml")


def test_evaluation_settings_find_files_beside_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "tasks").mkdir(parents=True)
    (home / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    given = {"test": ["a.txt", "b.txt"], "train": "a.txt"}
    settings = experiment(home, include_path="tasks", metadata={"data_files": given, "x": 1}).evaluation
    assert settings is not None
    found = str(home / "a.txt")
    assert settings.include_path == str(home / "tasks")
    assert settings.metadata == {"data_files": {"test": [found, "b.txt"], "train": found}, "x": 1}


def test_check_experiment_finds_missing_evaluation_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    monkeypatch.chdir(tmp_path)
    assert check_experiment(experiment(tmp_path, metadata={"data_files": "a.jsonl"})) == []
    (problem,) = check_experiment(experiment(tmp_path, metadata={"data_files": "b.jsonl"}))
    assert problem.startswith("evaluation: task 'ordermerge_text': no such data file: b.jsonl (looked in ")


def test_base_models_revision_is_the_one_merged_and_scored(tmp_path: Path) -> None:
    pinned = experiment(tmp_path, revision="v1")
    assert model_paths(pinned, tmp_path)["base"] == "org/base@v1"
    assert complete_recipe(pinned, tmp_path, "resampled")["base_model"] == "org/base@v1"
    (first, _) = complete_recipe(experiment(tmp_path, revision="v1", lora={"r": 4}), tmp_path, "resampled")["models"]
    assert ModelReference.parse(first["model"]).model.revision == "v1"
    (tmp_path / "org" / "base").mkdir(parents=True)
    local = experiment(tmp_path, revision="v1")
    assert model_paths(local, tmp_path)["base"] == str(tmp_path / "org" / "base")


@pytest.mark.parametrize("kind", ["GPTNeoX", "Llama"])
def test_merges_are_planned_by_tensor_name_where_the_table_is_incomplete(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "org" / "base")
    tiny = experiment(tmp_path)
    (step,) = [step for step in make_plan(tiny, tmp_path / "run").steps if isinstance(step, MergeStep)]
    reason = step.by_name_reason  # of the base model: the orders are not trained yet
    if kind == "Llama":
        assert reason is None
    else:
        assert "lacks `gpt_neox.layers.0.attention.bias`" in str(reason)
        assert reason.endswith("which mergekit requires")
    write_recipe(step.recipe, tmp_path / "r.yml", tmp_path / "out", {"trust_remote_code": True}, by_name=bool(reason))
    program = "ordermerge merge --by-name" if reason else "mergekit-yaml"
    header = (tmp_path / "r.yml").read_text().splitlines()[0]
    assert header == f"# {program} {tmp_path / 'r.yml'} {tmp_path / 'out'} --trust-remote-code"
