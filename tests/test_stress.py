"""Some rounds of processes that make the same thing at once (`python tests/stress.py` for many more)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.integration
def test_processes_at_once_and_killed_do_no_harm() -> None:
    # In a process of its own: forking one that has used OpenMP's threads may hang.
    command = [sys.executable, str(Path(__file__).with_name("stress.py")), "--rounds", "2", "--seed", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.endswith("2 rounds with seed 1: 0 problems\n")
