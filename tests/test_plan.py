"""What an experiment's evaluation section stands for: its files are found from the experiment file."""

import json
from pathlib import Path

import pytest

from ordermerge.experiment import Experiment
from ordermerge.plan import check_experiment, evaluation_settings


def experiment(directory: Path, **evaluation: object) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "model": {"path": "org/base"},
            "data": {"train": "org/data", "prompt": "{a}", "completion": "{b}"},
            "orders": {"count": 2},
            "evaluation": {"tasks": ["ordermerge_text"], **evaluation},
            "directory": directory,
        }
    )


def test_evaluation_settings_find_files_beside_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "tasks").mkdir(parents=True)
    (home / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    given = {"test": ["a.txt", "b.txt"], "train": "a.txt"}
    settings = evaluation_settings(experiment(home, include_path="tasks", metadata={"data_files": given, "x": 1}))
    found = str(home / "a.txt")
    assert settings.include_path == str(home / "tasks")
    assert settings.metadata == {"data_files": {"test": [found, "b.txt"], "train": found}, "x": 1}


def test_check_experiment_finds_missing_evaluation_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    monkeypatch.chdir(tmp_path)
    assert check_experiment(experiment(tmp_path, metadata={"data_files": "a.jsonl"})) == []
    (problem,) = check_experiment(experiment(tmp_path, metadata={"data_files": "b.jsonl"}))
    assert problem.startswith("evaluation: task 'ordermerge_text': no such data file: b.jsonl (looked in ")
