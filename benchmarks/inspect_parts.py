"""Where `ordermerge inspect` spends its time: its one pass over a base model and 5 sub-models, part by part.

    python benchmarks/inspect_parts.py
    python benchmarks/inspect_parts.py --parameters 20M --repetitions 2 --out /tmp/trial     # a quick look

Made-up models in the page cache, one thread, processor time: the machine need not be idle. Each part of the compiled
loop is called alone on pieces that stay in the processor's cache. Repetitions are interleaved; the least of each is
given, as all else only adds to it. Results go to OUT/inspect_parts.json and OUT/inspect_parts.md.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numba
import numpy as np
import torch
from merge_throughput import in_turn, shape_that_fits, write_models
from mergekit.common import parse_kmb
from watched import machine

from ordermerge.eval.inspect import compiled
from ordermerge.eval.inspect.changes import measure
from ordermerge.eval.inspect.compiled import _PIECE as PIECE
from ordermerge.eval.inspect.family import open_family
from ordermerge.eval.inspect.stream import PIECE_VALUES, inspect_family
from ordermerge.loops import has_zero

DTYPE, COUNT, IN_CACHE = "bfloat16", 5, 1 << 24
PARTS = ("task vectors", "compare, count changes", "counts by number", "dot products, norms")
Loop = Callable[[np.ndarray, np.ndarray], None]


@numba.njit(nogil=True)
def subtract(lanes: np.ndarray, tasks: np.ndarray) -> None:
    count, base = np.empty(PIECE, lanes.dtype), lanes[-1]
    compiled._start(count, count, tasks[-1], base)
    for k in range(len(lanes) - 1):
        compiled._subtract(tasks[k], lanes[k], base)


@numba.njit(nogil=True)
def compare(lanes: np.ndarray, tasks: np.ndarray) -> None:
    count, votes, base = np.zeros(PIECE, lanes.dtype), np.zeros(PIECE, lanes.dtype), lanes[-1]
    zeros = has_zero(base)
    for k in range(len(lanes) - 1):
        compiled._compare(count, votes, tasks[k], lanes[k], base, zeros)


@numba.njit(nogil=True)
def count(lanes: np.ndarray, tasks: np.ndarray) -> None:
    compiled._count_equal(np.zeros(len(lanes), np.int64), lanes[0])


@numba.njit(nogil=True)
def multiply(lanes: np.ndarray, tasks: np.ndarray) -> None:
    models = len(lanes)
    compiled._multiply(np.empty((models, models)), np.empty(models), np.empty(PIECE, tasks.dtype), tasks, PIECE)


@numba.njit(nogil=True)
def many_times(loop: Loop, lanes: np.ndarray, tasks: np.ndarray, times: int) -> None:
    for _ in range(times):
        loop(lanes, tasks)


def plain_read(files: list[Path], size: int) -> None:
    """Read each file once, `size` bytes at a time."""
    buffer = bytearray(size)
    for file in files:
        with open(file, "rb", 0) as source:
            while source.readinto(buffer):
                pass


def side_by_side(files: list[Path], size: int) -> None:
    """Read a piece of every file in turn, each to memory of its own, as the pass does."""
    buffers = [bytearray(size) for _ in files]
    opened = [open(file, "rb", 0) for file in files]  # noqa: SIM115 (closed below)
    while any([source.readinto(buffer) for source, buffer in zip(opened, buffers, strict=True)]):
        pass
    for source in opened:
        source.close()


def nanoseconds(task: Callable[[], object], values: int) -> float:
    """Return the processor time of a task by value of one model."""
    start = time.process_time()
    task()
    return (time.process_time() - start) / values * 1e9


def measure_parts(folder: Path, values: int, repetitions: int) -> dict[str, list[float]]:
    names = ["base", *(f"model_{index}" for index in range(COUNT))]
    files = [folder / name / "model.safetensors" for name in names]
    family = open_family(str(folder / "base"), [str(folder / name) for name in names[1:]])
    per_model = PIECE_VALUES // len(names)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(names), per_model, generator=generator).bfloat16()
    lanes = rows[:, :PIECE].contiguous().view(torch.int16).numpy()
    tasks = rows[:, :PIECE].float().numpy()
    whole: dict[str, Callable[[], object]] = {
        "plain read": lambda: plain_read(files, 1 << 20),
        "read, side by side": lambda: side_by_side(files, 2 * per_model),
        "whole pass": lambda: [None for _ in inspect_family(family)],
    }
    pieces = IN_CACHE // per_model
    todo: dict[str, Callable[[], float]] = {
        **{name: partial(nanoseconds, task, values) for name, task in whole.items()},
        "computing": lambda: nanoseconds(lambda: [measure(rows) for _ in range(pieces)], pieces * per_model),
    }
    for name, loop in zip(PARTS, (subtract, compare, count, multiply), strict=True):
        run = partial(many_times, loop, lanes, tasks, IN_CACHE // PIECE)
        todo[name] = partial(nanoseconds, run, IN_CACHE)
    for task in todo.values():
        task()  # compiles
    return in_turn(todo, dict.fromkeys(todo, repetitions))


def table(result: dict[str, Any]) -> str:
    least = {name: min(found) for name, found in result["nanoseconds"].items()}
    rest = least["computing"] - sum(least[name] for name in PARTS)
    more = least["whole pass"] - least["computing"] - least["read, side by side"]
    rows = {
        "plain read of the same files": least["plain read"],
        "**whole pass of `inspect`**": least["whole pass"],
        "read, side by side": least["read, side by side"],
        **{f"computing: {name}": least[name] for name in PARTS},
        "computing: the rest (pieces from the second cache, sums)": rest,
        "beside these: pieces that leave the cache between reading and computing; threads": more,
    }
    lines = [
        "# Where `inspect` spends its time",
        "",
        f"{result['parameters'] / 1e6:.0f} M parameters, a base model and {COUNT} sub-models, {DTYPE}, in the page "
        "cache; one thread, processor time, the least of the repetitions, in ns per parameter (of one model).",
        "",
        "| | ns per parameter | / plain read |",
        "|---|---|---|",
        *(f"| {name} | {cost:.2f} | {cost / least['plain read']:.2f} |" for name, cost in rows.items()),
        "",
        f"Each parameter takes {2 * (COUNT + 1)} bytes read, {COUNT} comparisons, "
        f"{(COUNT + 1) * (COUNT + 2) // 2} products in float32 and {COUNT + 1} norms. The pass runs in as many threads "
        "as there are cores, a plain read in one: its time over that of a plain read is the last column over the "
        "number of cores, where memory keeps up. Reading to mapped memory instead was tried: 10 % less for the whole.",
    ]
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--parameters", default="70M", help="Of a model.")
@click.option("--repetitions", default=5)
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where checkpoints go, and stay; else temporary.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(parameters: str, repetitions: int, work_dir: Path | None, out: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as temporary:
        work = (work_dir or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        shape = shape_that_fits(parse_kmb(parameters), COUNT, DTYPE, work)
        folder = write_models(shape, COUNT, DTYPE, work / "whole")
        found = measure_parts(folder, shape.parameters(), repetitions)
    result = {"parameters": shape.parameters(), "models": COUNT, "machine": machine(), "nanoseconds": found}
    out.mkdir(parents=True, exist_ok=True)
    (out / "inspect_parts.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "inspect_parts.md").write_text(table(result), encoding="utf-8")
    click.echo(table(result))


if __name__ == "__main__":
    main()
