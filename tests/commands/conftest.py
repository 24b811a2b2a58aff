"""Sums to train and score on, and results in lm-eval's form, of values that a test plants."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny

DATE = "2026-01-02T03-04-05.000006"


@pytest.fixture
def write_sums(tmp_path: Path) -> Callable[[int, int], None]:
    """A function that writes `data.jsonl`, a + b of all a and b below its arguments, and a task, `tasks/sums.yaml`."""
    return partial(tiny.write_sums, tmp_path)


@pytest.fixture
def save() -> Callable[..., Path]:
    """A function that writes results of one model."""
    return write_results


def write_results(folder: Path, values: Sequence[float], *, task: str = "t", date: str = DATE, **other: Any) -> Path:
    """Write what `lm_eval --log_samples --output_path FOLDER` writes of one model and task."""
    place = folder / "org__model"
    place.mkdir(parents=True, exist_ok=True)
    results = {
        "results": {task: {"alias": task, "sample_len": len(values), "acc,none": sum(values) / len(values)}},
        "higher_is_better": {task: {"acc": other.get("higher", True)}},
        "group_subtasks": {},
        "versions": {task: other.get("version", 1)},
        "n-shot": {task: other.get("shots", 0)},
        "config": {"limit": None},
    }
    (place / f"results_{date}.json").write_text(json.dumps(results))
    numbers = other.get("numbers", range(len(values)))
    samples = [
        {
            "doc_id": number,
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": f"doc {number}",
            "prompt_hash": f"prompt {number} {other.get('prompt', '')}",
            "target_hash": f"target {number} {other.get('target', '')}",
            "acc": value,
        }
        for number, value in zip(numbers, values, strict=True)
    ]
    if other.get("samples", True):
        (place / f"samples_{task}_{date}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder
