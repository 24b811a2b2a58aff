"""`ordermerge run` with LoRA: adapters and dense sub-models through training, merges, evaluation and report."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file

from ordermerge.cli import main

pytestmark = pytest.mark.integration

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""


@pytest.fixture
def experiment(make_family: Callable[..., list[Path]], tmp_path: Path) -> Path:
    # Stored in float32 and trained in bfloat16, so that a merge in the wrong dtype gives other bits.
    (base,) = make_family(count=0, dtype=torch.float32)
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(5)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(TASK.replace("TEST", str(tmp_path / "data.jsonl")))
    content = {
        "name": "tiny",
        "model": {"path": str(base), "dtype": "bfloat16"},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "bf16": False},
        "lora": {"r": 2, "target_modules": "all-linear"},
        "merges": {
            "average": {"merge_method": "linear", "parameters": {"weight": 1}},
            "resampled": {"merge_method": "parameter_selection_resample"},
        },
        "evaluation": {"tasks": ["sums"], "include_path": "tasks", "batch_size": 16, "device": "cpu"},
    }
    path = tmp_path / "experiment.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(experiment: Path, *options: str, **changes: Any) -> Result:
    content = yaml.safe_load(experiment.read_text())
    experiment.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return CliRunner().invoke(main, ["run", str(experiment), "--runs-dir", str(experiment.parent / "runs"), *options])


def answers(run_directory: Path, model: str) -> list[Any]:
    (file,) = (run_directory / "eval" / model).rglob("samples_*.jsonl")
    return [json.loads(line)["filtered_resps"] for line in file.read_text().splitlines()]


def test_adapters_and_dense_sub_models_give_the_same_merges(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = run(experiment)
    assert small.exit_code == 0, small.output
    whole = run(experiment, name="whole", lora={"r": 2, "target_modules": "all-linear", "save_as": "dense"})
    assert whole.exit_code == 0, whole.output
    runs = experiment.parent / "runs"
    for name in ("average", "resampled"):
        one, other = (load_file(runs / run / "merges" / name / "model.safetensors") for run in ("tiny", "whole"))
        assert one.keys() == other.keys()
        assert all(value.dtype == torch.bfloat16 and value.equal(other[key]) for key, value in one.items())
        for file in ("generation_config.json", "tokenizer_config.json"):
            assert (runs / "tiny" / "merges" / name / file).read_text() == (
                runs / "whole" / "merges" / name / file
            ).read_text()
    assert not list((runs / "tiny").glob(".*"))  # the adapters' dense copies are gone

    # an adapter is scored with its base model: not as that model alone
    assert (runs / "tiny" / "orders" / "0" / "adapter_model.safetensors").exists()
    assert not (runs / "tiny" / "orders" / "0" / "model.safetensors").exists()
    (results,) = (runs / "tiny" / "eval" / "order_0").rglob("results_*.json")
    arguments = json.loads(results.read_text())["config"]["model_args"]
    assert str(runs / "tiny" / "orders" / "0") in str(arguments)
    assert answers(runs / "tiny", "order_0") != answers(runs / "tiny", "base")
    for name in ("base", "order_0", "order_1", "average", "resampled"):
        assert f"| {name} |" in (runs / "tiny" / "report.md").read_text()

    # the recipe is one for the stock command, which its first line gives
    recipe = runs / "tiny" / "recipes" / "resampled.yml"
    command = recipe.read_text().splitlines()[0].removeprefix("# ")
    assert command.endswith(' --lora-merge-dtype bfloat16 --lora-merge-cache "$(mktemp -d)"')
    program, *arguments = shlex.split(command.replace("$(mktemp -d)", str(experiment.parent / "cache")))
    arguments[1] = str(experiment.parent / "stock")
    monkeypatch.setattr(LoaderCache, "loaders", {})
    done = CliRunner().invoke(mergekit_yaml, [*arguments, "--quiet"])
    assert (program, done.exit_code) == ("mergekit-yaml", 0), done.output
    ours = (runs / "tiny" / "merges" / "resampled" / "model.safetensors").read_bytes()
    assert (experiment.parent / "stock" / "model.safetensors").read_bytes() == ours


def test_a_run_directory_may_hold_what_mergekit_splits_at(experiment: Path) -> None:
    runs = experiment.parent / "me@host" / "more+more ~ $x"
    for save_as in ("adapter", "dense"):
        content = {**yaml.safe_load(experiment.read_text()), "name": save_as, "lora": {"r": 2, "save_as": save_as}}
        experiment.write_text(yaml.safe_dump(content, sort_keys=False))
        done = CliRunner().invoke(main, ["run", str(experiment), "--runs-dir", str(runs)])
        assert done.exit_code == 0, done.output
        recipe = (runs / save_as / "recipes" / "resampled.yml").read_text()
        assert yaml.safe_load(recipe)["models"][0]["model"].get("lora", {}).get("path") == (
            str(runs / save_as / "orders" / "0") if save_as == "adapter" else None
        )


def test_adapters_are_scored_by_eval(experiment: Path) -> None:
    assert run(experiment, merges={}, evaluation=None).exit_code == 0
    adapters = [str(experiment.parent / "runs" / "tiny" / "orders" / str(k)) for k in range(2)]
    out, tasks = experiment.parent / "scores", ["--tasks", "sums", "--include-path", str(experiment.parent / "tasks")]
    done = CliRunner().invoke(main, ["eval", *adapters, *tasks, "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["tiny-orders-0", "tiny-orders-1"]
    (Path(adapters[0]) / "adapter_model.safetensors").unlink()
    done = CliRunner().invoke(main, ["eval", adapters[0], *tasks, "--out", str(out / "again")])
    assert done.exit_code == 1
    assert "is incomplete: it has an adapter_config.json but no adapter_model.safetensors" in done.output
