"""Runs a command and measures it: wall time, processor time, peak memory. Linux only."""

import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ordermerge.provenance import record

_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Watched:
    """What one run of a command took. `peak_total` counts mapped files too, `peak_anonymous` does not."""

    seconds: float
    processor_seconds: float
    peak_total_mib: float
    peak_anonymous_mib: float


def run_watched(command: list[str], log: Path) -> Watched:
    """Run a command to its end, its output going to `log`.

    Raises:
        RuntimeError: If the command fails.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("wb") as sink:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
        ended, peaks = threading.Event(), {"RssAnon:": 0, "VmHWM:": 0}
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, peaks))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{Path(command[0]).name} ended with status {process.returncode}:\n{tail}")
    return Watched(seconds, usage.ru_utime + usage.ru_stime, peaks["VmHWM:"] / 1024, peaks["RssAnon:"] / 1024)


def _watch(pid: int, ended: threading.Event, peaks: dict[str, int]) -> None:
    """Follow the peaks in KiB. (The ru_maxrss of a child starts at its parent's size: it cannot be used.)"""
    while not ended.wait(_POLL_SECONDS):
        try:
            fields = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").split()
            for name, peak in peaks.items():
                peaks[name] = max(peak, int(fields[fields.index(name) + 1]))
        except (OSError, ValueError):  # between its end and `ended`
            return


def mergekit_command(recipe: Path, out: Path, *options: str) -> list[str]:
    """Return the command that merges a recipe of ours with the `mergekit-yaml` of this Python."""
    program = shutil.which("mergekit-yaml", path=str(Path(sys.executable).parent)) or "mergekit-yaml"
    return [program, str(recipe), str(out), "--no-copy-tokenizer", "--quiet", *options]


def machine() -> dict[str, Any]:
    """Return what a result depends on besides the code: versions, commit, processors, threads, memory, load."""
    return record(Path(__file__).parent) | {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.release().split("-")[0],
        "load_average_at_start": os.getloadavg()[0],
    }
