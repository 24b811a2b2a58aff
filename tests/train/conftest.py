"""A tiny base model, forty samples whose first four letters are unique, and experiments over them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment

SFT = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 2,
    "bf16": False,
}


@pytest.fixture(scope="session")
def base(make_family: Callable[..., list[Path]]) -> Path:
    return make_family("llama", count=0, dtype=torch.float32)[0]


@pytest.fixture(scope="session")
def dropping(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with dropout."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("dropout") / "dropping")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    return folder


@pytest.fixture(scope="session")
def records() -> list[dict[str, str]]:
    draw = random.Random(0)
    names = draw.sample([a + b + c + d for a in "abcd" for b in "efgh" for c in "ijkl" for d in "mnop"], 40)
    return [
        {"question": f"{name}?", "answer": "".join(draw.choices("0123456789", k=1 + i % 4))}
        for i, name in enumerate(names)
    ]


@pytest.fixture
def write_experiment(tmp_path: Path, base: Path, records: list[dict[str, str]]) -> Callable[..., Experiment]:
    """Return a function that writes an experiment file and loads it; the arguments replace keys of its sections."""

    def write(*, lines: list[dict[str, Any]] | None = None, **sections: dict[str, Any]) -> Experiment:
        text = "".join(json.dumps(record) + "\n" for record in (records if lines is None else lines))
        (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
        content: dict[str, Any] = {
            "model": {"path": str(base)},
            "data": {"train": "train.jsonl", "prompt": "{question}", "completion": "{answer}"},
            "orders": {"count": 2},
            "sft": SFT,
        }
        for name, changes in sections.items():
            merged = {**content.get(name, {}), **changes}
            content[name] = {key: value for key, value in merged.items() if value is not None}
        path = tmp_path / "experiment.yml"
        path.write_text(yaml.safe_dump({"name": "tiny", **content}), encoding="utf-8")
        return load_experiment(path)

    return write
