"""How fast `ordermerge inspect` is, beside reading the same bytes once, in one run with interleaved repetitions.

    python benchmarks/inspect_speed.py                      # 70 M and 270 M parameters x 5 models and a base, bfloat16
    python benchmarks/inspect_speed.py --parameters 20M --repetitions 2 --out /tmp/trial     # a quick look

Each repetition runs the whole command and a plain program that reads the same files, both as processes of their own,
after the files were put out of the page cache (`cold`) and with them in it (`cached`). What the command takes on tiny
models is taken off. Writes OUT/inspect_speed.json: every repetition, and whether the time is within 1.1 times a cold
and 1.6 times a cached read of the same files, and the peak of anonymous memory beyond start-up within 128 MiB, whatever
the models' size.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from merge_throughput import in_turn
from mergekit.common import parse_kmb
from synthetic import TINY, shape_near, write_checkpoints
from throughput_report import Ratio, paired
from watched import machine, run_watched

TIME_LIMITS = {"cold": 1.1, "cached": 1.6}
MEMORY_LIMIT_MIB = 128
_READ_BYTES = 1 << 20
_READ_PROGRAM = f"""
import sys
buffer = bytearray({_READ_BYTES})
for name in sys.argv[1:]:
    with open(name, "rb", 0) as source:
        while source.readinto(buffer):
            pass
"""


Run = dict[str, Any]


def read_bytes(files: list[Path], log: Path, *, cold: bool) -> Run:
    """Read the files once, in a process of its own; what Python takes to start is in it (about 0.02 s)."""
    prepare(files, cold=cold)
    return asdict(run_watched([sys.executable, "-ISc", _READ_PROGRAM, *map(str, files)], log))


def inspect(files: list[Path], log: Path, *, cold: bool) -> Run:
    prepare(files, cold=cold)
    program = shutil.which("ordermerge", path=str(Path(sys.executable).parent)) or "ordermerge"
    base, *models = (str(file.parent) for file in files)
    return asdict(run_watched([program, "inspect", "--base", base, *models], log))


def prepare(files: list[Path], *, cold: bool) -> None:
    """Put the files' pages out of the page cache, or leave them there."""
    for file in files if cold else []:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def checkpoints(work: Path, shape: Any, count: int, dtype: str) -> list[Path]:
    """Return the weight files of the base model and of `count` sub-models, written if they are not there."""
    folder = work / f"{shape.parameters()}_{dtype}"
    write_checkpoints(folder, shape, count, getattr(torch, dtype))
    return [folder / name / "model.safetensors" for name in ["base", *(f"model_{k}" for k in range(count))]]


def measure(work: Path, sizes: list[int], count: int, dtype: str, repetitions: int) -> list[dict[str, Any]]:
    """Return what reading and inspecting models of each size took, everything in turn."""
    shapes = [shape_near(size) for size in sizes]
    need = sum(shape.parameters() for shape in shapes) * getattr(torch, dtype).itemsize * (count + 1)
    if (free := shutil.disk_usage(work).free) < need:
        raise click.ClickException(
            f"{need / 1e9:.1f} GB are needed for the models in --work-dir; {free / 1e9:.1f} free"
        )
    log = work / "log.txt"
    sets = {f"{shape.parameters()}": checkpoints(work, shape, count, dtype) for shape in (TINY, *shapes)}
    tasks: dict[str, Callable[[], Run]] = {}
    for name, files in sets.items():
        for state in ("cold", "cached"):
            settings: dict[str, Any] = {"files": files, "log": log, "cold": state == "cold"}
            tasks[f"{name}, inspect, {state}"] = lambda settings=settings: inspect(**settings)
            tasks[f"{name}, read, {state}"] = lambda settings=settings: read_bytes(**settings)
    for name, task in tasks.items():
        if name.endswith("read, cached"):
            task()
    # A cached run finds what the run before it left, cold or not: both read everything.
    runs = in_turn(tasks, dict.fromkeys(tasks, repetitions))
    return [_result(runs, sets, str(TINY.parameters()), str(shape.parameters())) for shape in shapes]


def _result(runs: dict[str, list[Run]], sets: dict[str, list[Path]], tiny: str, name: str) -> dict[str, Any]:
    result: dict[str, Any] = {"parameters": int(name), "bytes": sum(file.stat().st_size for file in sets[name])}
    start_memory = median(run["peak_anonymous_mib"] for run in runs[f"{tiny}, inspect, cached"])
    for state in ("cold", "cached"):
        own, bare = runs[f"{name}, inspect, {state}"], runs[f"{name}, read, {state}"]
        start = median(run["seconds"] for run in runs[f"{tiny}, inspect, {state}"])
        net = [run["seconds"] - start for run in own]
        ratio = paired(net, [run["seconds"] for run in bare])
        beyond = max(run["peak_anonymous_mib"] for run in own) - start_memory
        result[state] = {
            "net_seconds": net,
            "read_seconds": [run["seconds"] for run in bare],
            "ratio": asdict(ratio),
            "within_time": ratio.middle <= TIME_LIMITS[state],
            "peak_anonymous_beyond_start_mib": beyond,
            "within_memory": beyond <= MEMORY_LIMIT_MIB,
            "start_seconds": start,
            "runs": own,
        }
    return result


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| parameters | files | read s | GB/s | inspect s, net | / read | within limit | memory beyond start MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for state in ("cold", "cached"):
            part = result[state]
            read, ratio = median(part["read_seconds"]), Ratio(**part["ratio"])
            lines.append(
                f"| {result['parameters'] / 1e6:.0f} M | {state} | {read:.2f} | {result['bytes'] / read / 1e9:.1f} "
                f"| {median(part['net_seconds']):.2f} | {ratio} "
                f"| {'yes' if part['within_time'] else '**no**'} | {part['peak_anonymous_beyond_start_mib']:.0f} |"
            )
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--parameters", "sizes", multiple=True, default=("70M", "270M"), help="Of a model; may be repeated.")
@click.option("--models", "count", default=5, help="Number of sub-models.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16")
@click.option("--repetitions", default=5)
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where checkpoints go, and stay; else temporary.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(sizes: tuple[str, ...], count: int, dtype: str, repetitions: int, work_dir: Path | None, out: Path) -> None:
    about = {"models": count, "dtype": dtype, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as temporary:
        work = work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        results = measure(work.resolve(), [parse_kmb(size) for size in sizes], count, dtype, repetitions)
    report = table(results)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | {"results": results, "report": report}, indent=1) + "\n"
    (out / "inspect_speed.json").write_text(text, encoding="utf-8")
    click.echo(report)


if __name__ == "__main__":
    main()
