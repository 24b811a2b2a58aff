"""Data of the `worded_arithmetic` task."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def load(**_metadata: Any) -> dict[str, Dataset]:
    """Read test.jsonl of the folder above; `data_files` in the YAML would be relative to the working directory.

    Args:
        _metadata: The task's `metadata`, which lm-eval passes to every data loader.

    Returns:
        The test split.
    """
    lines = (
        (Path(__file__).parents[3] / "recipes" / "quickstart" / "test_large.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
