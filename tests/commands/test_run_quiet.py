"""What a whole run says on standard error: our lines, and nothing of the libraries'."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.integration

DEPENDS_ON_MACHINE = r"warning: (other work keeps this machine|this CPU has no)|.*: \d+/\d+.* left"
LINES = [
    "quiet: /.*/runs/quiet",
    "  train order_0, order_1",
    "  merge average",
    "  eval  base, order_0, order_1, average",
    "training 2 sub-models, takes up to .* GB of disk",
    *(
        line
        for order in range(2)
        for line in (
            f"order_{order}: training on 16 samples, 1 epoch",
            f"order_{order}: trained in .* s, mean loss .* -> /.*/orders/{order}",
        )
    ),
    "merging average",
    *(
        line
        for place, name in enumerate(("base", "order_0", "order_1", "average"), start=1)
        for line in (f"\\[{place}/4\\] {name}: scoring /.*", f"\\[{place}/4\\] {name}: scored after .* s")
    ),
]


def test_a_run_with_adapters_says_just_this(
    make_family: Callable[..., list[Path]], write_sums: Callable[[int, int], None], tmp_path: Path
) -> None:
    write_sums(4, 4)
    content = {
        "name": "quiet",
        "model": {"path": str(make_family(count=0)[0]), "dtype": "bfloat16"},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "bf16": False, "learning_rate": 0.001},
        "lora": {"r": 2},
        "merges": {"average": {"merge_method": "linear", "parameters": {"weight": 1}}},
        "evaluation": {"tasks": ["sums"], "include_path": "tasks", "batch_size": 16, "device": "cpu"},
    }
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    command = [sys.executable, "-m", "ordermerge", "run", "experiment.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not re.match(DEPENDS_ON_MACHINE, line)]
    for line, pattern in zip(said, LINES, strict=False):
        assert re.fullmatch(pattern, line), (line, pattern)
    assert len(said) == len(LINES), said[len(LINES) :]
