"""How fast the merge methods are, beside mergekit's own, measured in one run with interleaved repetitions.

    python benchmarks/merge_throughput.py                        # everything, 270 M parameters x 5 models, bfloat16
    python benchmarks/merge_throughput.py --only kernel          # methods alone, on tensors in memory
    python benchmarks/merge_throughput.py --only command         # the whole mergekit-yaml process
    python benchmarks/merge_throughput.py --only merge           # the same merges in one process that has started up
    python benchmarks/merge_throughput.py --only scaling         # sizes, numbers of models, dtypes
    python benchmarks/merge_throughput.py --only report          # table and plot again, from the JSON
    python benchmarks/merge_throughput.py --parameters 20M --repetitions 2 --out /tmp/trial     # a quick look

Results go to OUT/merge_throughput.json (every repetition), .md, .png and .svg. A part that is measured again replaces
that part of the JSON. The machine must be idle: the methods keep all cores busy in step, and wait for the slowest.
A part takes up to 5 minutes on 2 cores, `scaling` more. Where the system takes the page cache back early, or the disk
is slow, TMPDIR=/dev/shm keeps the files of `command` and `merge` in memory; the results say which it was.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import earlier
import numpy as np
import torch
import yaml
from cases import CASES, EARLIER, FLOORS, SCALING, Case
from mergekit.common import parse_kmb
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import merge_tensors, register
from mergekit.merge_methods.base import BasePolicy, InputContract, TensorGroup
from mergekit.merge_methods.easy_define import merge_method
from mergekit.options import MergeOptions
from synthetic import MATRICES, MATRIX, TINY, LlamaShape, change, make_tensors, shape_near, write_checkpoints
from throughput_report import write_report
from watched import machine, mergekit_command, run_watched

import ordermerge.merge_methods  # noqa: F401  (registers the methods also where torch loads no entry points)
from ordermerge.compiled import share_out
from ordermerge.loops import lanes_at, loop, part
from ordermerge.unchanged import to_lanes

PARTS = ("kernel", "command", "merge", "scaling")
DTYPES = ("bfloat16", "float16", "float32")
_FLOOR_PIECE = 256
_FLOOR = str(Path(__file__).parent / "floor.py")

Model = list[torch.Tensor]


def in_turn(tasks: dict[str, Callable[[], Any]], repetitions: dict[str, int]) -> dict[str, list[Any]]:
    """Do every task once per repetition, in an order that changes, and return the results by task."""
    results: dict[str, list[Any]] = defaultdict(list)
    for repetition in range(max(repetitions.values())):
        names = [name for name in tasks if repetition < repetitions[name]]
        random.Random(repetition).shuffle(names)
        for name in names:
            click.echo(f"repetition {repetition + 1}: {name}", err=True)
            results[name].append(tasks[name]())
    return {name: results[name] for name in tasks}


def time_kernel(case: Case, base: Model, models: list[Model]) -> float:
    """Return the seconds that a method takes for all tensors."""
    parameters = case.parameters_for(len(models))
    start = time.perf_counter()
    for index, tensors in enumerate(zip(*models, strict=True)):
        if case in FLOORS:
            read_once([base[index], *tensors] if case.base else list(tensors))
            continue
        if case in EARLIER:
            earlier.merge(base[index] if case.base else None, list(tensors), parameters, f"tensor {index}")
            continue
        inputs = [base[index], *tensors] if case.base else list(tensors)
        base_index = 0 if case.base else None
        merge_tensors(inputs, case.method, parameters=parameters, base_index=base_index, name=f"tensor {index}")
    return time.perf_counter() - start


def read_once(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the exclusive or of all tensors: each is read once, and the result written once."""
    out = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    inputs = [to_lanes(tensor) for tensor in tensors]
    lanes, addresses = to_lanes(out).numpy(), np.array([tensor.data_ptr() for tensor in inputs])
    share_out(lambda start, stop: combine(lanes, addresses, start, stop), out.numel())
    return out


@loop
def combine(out: np.ndarray, models: np.ndarray, start: int, stop: int) -> None:
    for first in range(start, stop, _FLOOR_PIECE):
        last = min(first + _FLOOR_PIECE, stop)
        piece = out[first:last]
        for k in range(len(models)):
            read_piece(piece, lanes_at(models[k], out, first, last), k > 0)


@part
def read_piece(out: np.ndarray, lanes: np.ndarray, further: bool) -> None:
    for i in range(len(out)):
        out[i] = (out[i] if further else 0) ^ lanes[i]


@merge_method(
    name="benchmark_floor",
    pretty_name="Floor",
    reference_url="",
    contract=InputContract(base=BasePolicy.OPTIONAL, min_non_base=1),
)
def benchmark_floor(group: TensorGroup, weight: float = 1.0) -> torch.Tensor:
    """What mergekit needs around any method: each input is read once, the output written once."""
    return read_once([entry.tensor for entry in group.entries])


register(benchmark_floor)


def measure_kernel(cases: list[Case], parameters: int, count: int, dtype: str, times: dict[str, int]) -> dict[str, Any]:
    shapes = shape_near(parameters).tensors().values()  # those of the models that `command` merges
    base, models = tensors_in_memory(shapes, count, dtype)
    for case in cases:
        time_kernel(case, base[:1], [model[:1] for model in models])  # what is done only once is not counted
    seconds = in_turn({case.name: lambda case=case: time_kernel(case, base, models) for case in cases}, times)
    unchanged = [float((tensor == other).float().mean()) for tensor, other in zip(base[:1], models[0][:1], strict=True)]
    return {
        "parameters": sum(tensor.numel() for tensor in base),
        "bytes_per_value": base[0].element_size(),
        "unchanged_share": unchanged[0],
        "seconds": seconds,
    }


def matrices(shape: tuple[int, int], parameters: int) -> list[tuple[int, ...]]:
    """Return the shapes of as many matrices as hold about that many parameters."""
    return [shape] * max(1, round(parameters / (shape[0] * shape[1])))


def tensors_in_memory(shapes: Iterable[tuple[int, ...]], count: int, dtype: str) -> tuple[Model, list[Model]]:
    """Return a base model and `count` sub-models."""
    base = make_tensors(shapes, getattr(torch, dtype))
    return base, [list(change(base, seed + 1)) for seed in range(count)]


def measure_scaling(parameters: int, count: int, dtype: str, repetitions: int) -> dict[str, Any]:
    """Time some methods for 3 sizes, K = 2 to 16, all dtypes and 3 shapes of matrices, everything in turn."""
    base, models = tensors_in_memory(matrices(MATRIX, parameters), count, dtype)
    quarter, sixteenth = max(1, len(base) // 4), max(1, len(base) // 16)
    many = [model[:quarter] for model in models]
    many += [list(change(base[:quarter], seed + 1)) for seed in range(count, 16)]
    settings: dict[str, tuple[Model, list[Model]]] = {
        f"size {size}": (base[:size], [model[:size] for model in models]) for size in (sixteenth, quarter, len(base))
    }
    settings |= {f"models {number}": (base[:quarter], many[:number]) for number in (2, 4, 8, 16)}
    for other in DTYPES:
        kind = getattr(torch, other)
        cast = [[tensor.to(kind) for tensor in model[:quarter]] for model in [base, *models]]
        settings[f"dtype {other}"] = (cast[0], cast[1:])
    for shape in MATRICES:
        settings[f"matrix {shape[0]}x{shape[1]}"] = tensors_in_memory(matrices(shape, parameters // 5), count, dtype)
    tasks = {
        f"{case.name}, {setting}": lambda case=case, data=data: time_kernel(case, *data)
        for setting, data in settings.items()
        for case in SCALING
    }
    for task in tasks.values():
        task()
    seconds = in_turn(tasks, dict.fromkeys(tasks, repetitions))
    return {
        "settings": {
            name: {
                "parameters": sum(tensor.numel() for tensor in base_),
                "models": len(models_),
                "bytes_per_value": base_[0].element_size(),
            }
            for name, (base_, models_) in settings.items()
        },
        "seconds": seconds,
    }


def measure_command(
    cases: list[Case], parameters: int, count: int, dtype: str, times: dict[str, int], work: Path
) -> dict[str, Any]:
    """Measure whole processes on models of the wanted size, and on tiny ones for what each costs to start."""
    shape = shape_that_fits(parameters, count, dtype, work)
    tasks: dict[str, Callable[[], Any]] = {}
    for kind, size in (("whole", shape), ("start", TINY)):
        folder = write_models(size, count, dtype, work / kind)
        tasks |= {
            f"{case.name}, {kind}": lambda case=case, folder=folder: run_command(case, folder, count, dtype)
            for case in cases
        }
    tasks[f"{FLOORS[-1].name}, whole"]()  # brings the files into the page cache
    runs = in_turn(tasks, {name: times[name.split(",")[0]] for name in tasks})
    return {
        **about_files(shape, work),
        "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
    }


def measure_merge(
    cases: list[Case], parameters: int, count: int, dtype: str, times: dict[str, int], work: Path
) -> dict[str, Any]:
    """Measure mergekit's merges from files to files in this process, after one of each that does not count."""
    shape = shape_that_fits(parameters, count, dtype, work)
    folder = write_models(shape, count, dtype, work / "whole")
    tasks = {case.name: lambda case=case: time_merge(case, folder, count, dtype) for case in cases}
    for task in tasks.values():
        task()
    return {**about_files(shape, work), "seconds": in_turn(tasks, times)}


def time_merge(case: Case, folder: Path, count: int, dtype: str) -> float:
    """Return the seconds that mergekit takes from a recipe to the written model, which is removed."""
    config = MergeConfiguration.model_validate(recipe(case, folder, count, dtype))
    out = folder / "merged"
    start = time.perf_counter()
    run_merge(config, str(out), MergeOptions(quiet=True, copy_tokenizer=False))
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def shape_that_fits(parameters: int, count: int, dtype: str, work: Path) -> LlamaShape:
    """Return the shape of the models, if there is room for them."""
    shape = shape_near(parameters)
    need = shape.parameters() * getattr(torch, dtype).itemsize * (count + 3)
    free = shutil.disk_usage(work).free
    if free < need:
        raise click.ClickException(
            f"{need / 1e9:.1f} GB are needed for the models in --work-dir; {free / 1e9:.1f} free"
        )
    return shape


def write_models(shape: LlamaShape, count: int, dtype: str, where: Path) -> Path:
    """Write a base model and `count` sub-models, or find them from before, and return their folder."""
    folder = where.with_name(f"{where.name}_{shape.parameters()}_{dtype}")
    write_checkpoints(folder, shape, count, getattr(torch, dtype))
    return folder


def about_files(shape: LlamaShape, work: Path) -> dict[str, Any]:
    file_system = subprocess.check_output(["stat", "-f", "-c", "%T", work], text=True).strip()
    return {"parameters": shape.parameters(), "shape": asdict(shape), "file_system": file_system}


def recipe(case: Case, folder: Path, count: int, dtype: str) -> dict[str, Any]:
    """Return a method's recipe for the models of a folder."""
    base = {"base_model": str(folder / "base")} if case.base else {}
    models = [{"model": str(folder / f"model_{index}")} for index in range(count)]
    return {
        "merge_method": case.method,
        **base,
        "models": models,
        "parameters": case.parameters_for(count),
        "dtype": dtype,
    }


def run_command(case: Case, folder: Path, count: int, dtype: str) -> Any:
    """Merge the first models of a folder by a process of its own; the output is removed."""
    out, log = folder / "merged", folder / "log.txt"
    shutil.rmtree(out, ignore_errors=True)
    if case in FLOORS:
        out.mkdir()
        models = [*(["base"] if case.base else []), *(f"model_{index}" for index in range(count))]
        files = [str(folder / name / "model.safetensors") for name in models]
        return run_watched([sys.executable, "-IS", _FLOOR, *files, str(out / "model.safetensors")], log)
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe(case, folder, count, dtype)), encoding="utf-8")
    try:
        return run_watched(mergekit_command(path, out), log)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def choose_cases(methods: str | None) -> list[Case]:
    """Return the cases of those names, the floors and `linear` always among them."""
    measurable = [*CASES, *(EARLIER if earlier.load() else [])]
    known = [case.name for case in measurable]
    wanted = methods.split(",") if methods else known
    if unknown := set(wanted) - set(known):
        raise click.BadParameter(f"unknown {', '.join(sorted(unknown))}; available: {', '.join(known)}")
    return [*FLOORS, *(case for case in measurable if case.name in {*wanted, "linear"})]


def save(results: dict[str, Any], store: Path) -> None:
    """Write what was measured."""
    store.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--parameters", default="270M", help="Parameters of a model, such as 270M or 1B.")
@click.option("--models", "count", default=5, help="Number of sub-models.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16")
@click.option("--repetitions", default=3)
@click.option("--slow-repetitions", default=2, help="For dare_ties and ties, which take about a minute each.")
@click.option("--methods", help="Names to measure, by commas; `linear` always is.")
@click.option("--only", type=click.Choice((*PARTS, "report")), help="One part.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where checkpoints go, and stay; else temporary.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(
    parameters: str,
    count: int,
    dtype: str,
    repetitions: int,
    slow_repetitions: int,
    methods: str | None,
    only: str | None,
    work_dir: Path | None,
    out: Path,
) -> None:
    size = parse_kmb(parameters)
    cases = choose_cases(methods)
    times = {case.name: min(repetitions, slow_repetitions) if case.slow else repetitions for case in cases}
    in_command = [case for case in cases if case.command]
    out.mkdir(parents=True, exist_ok=True)
    store = out / "merge_throughput.json"
    results: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as temporary:
        work = work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "kernel": lambda: measure_kernel(cases, size, count, dtype, times),
            "command": lambda: measure_command(in_command, size, count, dtype, times, work.resolve()),
            "merge": lambda: measure_merge(in_command, size, count, dtype, times, work.resolve()),
            "scaling": lambda: measure_scaling(size, count, dtype, repetitions),
        }
        for name in PARTS if only is None else [only]:
            if name in parts:
                inputs = {case.name: count + case.base for case in cases}
                about = {"models": count, "dtype": dtype, "inputs_read": inputs, "machine": machine()}
                results[name] = about | parts[name]()
                save(results, store)  # before the report, which a part of an earlier form would end
            results["report"] = write_report(results, out)
            save(results, store)
    click.echo(results["report"])


if __name__ == "__main__":
    main()
