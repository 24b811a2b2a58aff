"""Runs that were never carried out: a run directory with the files, records and scores of a finished one."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ordermerge.commands.plan import make_plan
from ordermerge.commands.tiny_model import write_tiny_model
from ordermerge.config.load import load_experiment
from ordermerge.files import file_records
from ordermerge.models import RUN_FILE
from ordermerge.run_directory import ORDER_RECORD
from ordermerge.stages import Step, mark_done

TASK, DOCUMENTS, DATE = "made_up", 200, "2026-01-02T03-04-05.000006"
_TASK_FILE = f"""
task: {TASK}
dataset_path: json
dataset_kwargs: {{data_files: {{test: TEST}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: exact_match}}]
"""


def write_run(folder: Path, orders: int, merges: int) -> Path:
    """Write an experiment and a run directory in which all of it is done, with made-up scores.

    Args:
        folder: The folder to make.
        orders: The number of orders.
        merges: The number of merges.

    Returns:
        The experiment file; its run is below `runs` beside it.
    """
    (folder / "tasks").mkdir(parents=True)
    write_tiny_model(folder / "base")
    records = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(10) for b in range(10)]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    task = _TASK_FILE.replace("TEST", str(folder / "data.jsonl"))
    (folder / "tasks" / f"{TASK}.yaml").write_text(task, encoding="utf-8")
    selected = {"merge_method": "parameter_selection_resample"}
    content: dict[str, Any] = {
        "name": "made_up",
        "model": {"path": "base"},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": orders},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 10},
        "merges": {f"merge_{seed}": {**selected, "parameters": {"seed": seed}} for seed in range(merges)},
        "evaluation": {"tasks": [TASK], "include_path": "tasks"},
    }
    file = folder / "experiment.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))  # long settled
    experiment, run, random = load_experiment(file), folder / "runs" / content["name"], np.random.default_rng(0)
    for step in make_plan(experiment, run).steps:
        _make(step, folder / "base", random)
    resolved = experiment.model_dump(mode="json", exclude_none=True)
    (run / RUN_FILE).write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    return file


def _make(step: Step, base: Path, random: np.random.Generator) -> None:
    """Write what a step would have made."""
    if step.stage == "eval":
        _score(step, random)
        return
    shutil.copytree(base, step.output, dirs_exist_ok=True, copy_function=os.link)
    noted = _order_record(int(step.output.name)) if step.marker == ORDER_RECORD else {}
    files = file_records(step.output)
    for record in files.values():
        record["sha256"] = f"{record['sha256'][:-8]}{random.integers(2**32):08x}"  # another model than the others
    mark_done(step.output / step.marker, step.inputs, noted, files=files, made_from=step.made_from())


def _order_record(order: int) -> dict[str, object]:
    losses = [{"step": step, "loss": 2.0 / step} for step in range(1, 11)]
    trained = {"steps": 10, "samples_consumed": 100, "seconds": 1.0, "batch_size": 10, "dataset_fingerprint": None}
    return {"order": order, "losses": losses, "eval_losses": [], **trained}


def _score(step: Step, random: np.random.Generator) -> None:
    step.output.mkdir(parents=True, exist_ok=True)
    values = random.integers(2, size=DOCUMENTS).tolist()
    results = {
        "results": {TASK: {"alias": TASK, "sample_len": DOCUMENTS, "exact_match,none": sum(values) / DOCUMENTS}},
        "higher_is_better": {TASK: {"exact_match": True}},
        "n-samples": {TASK: {"original": DOCUMENTS, "effective": DOCUMENTS}},
        "config": {"limit": None},
    }
    samples = [
        {
            "doc_id": number,
            "filter": "none",
            "metrics": ["exact_match"],
            **{f"{kind}_hash": f"{kind} {number}" for kind in ("doc", "prompt", "target")},
            "exact_match": value,
        }
        for number, value in enumerate(values)
    ]
    names: dict[str, Any] = {"results": f"results_{DATE}.json", "samples": {TASK: f"samples_{TASK}_{DATE}.jsonl"}}
    (step.output / names["results"]).write_text(json.dumps(results), encoding="utf-8")
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (step.output / names["samples"][TASK]).write_text(lines, encoding="utf-8")
    noted = {"tasks": [TASK], **names}
    mark_done(
        step.output / step.marker, step.inputs, noted, files=file_records(step.output), made_from=step.made_from()
    )
