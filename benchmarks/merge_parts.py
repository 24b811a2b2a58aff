"""Where a merge from files to files spends its time: its parts one by one, and the whole of it.

    python benchmarks/merge_parts.py
    python benchmarks/merge_parts.py --parameters 20M --repetitions 2 --out /tmp/trial     # a quick look

Made-up models in the page cache, one thread, processor time: the machine need not be idle, but must have room to keep
the files in memory. The parts are what a merge does to each byte: its pages are mapped, looked at for NaN, merged,
written and put on the disk (mergekit's own does not wait for that), and the result is read again for its digest. Wholes
are mergekit's own `run_merge` and `ordermerge merge` in a process that has started up, and both commands, start-up
included. Repetitions are interleaved; the least of each is given, as all else only adds to it. Results go to
OUT/merge_parts.json and OUT/merge_parts.md.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from cases import FULL, LINEAR, SELECTION, Case
from floor import read_and_write
from merge_throughput import in_turn, recipe, shape_that_fits, write_models
from mergekit.common import parse_kmb
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import merge_tensors
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file
from synthetic import TINY
from watched import machine, mergekit_command, run_watched

import ordermerge.merge_methods  # noqa: F401  (registers the methods also where torch loads no entry points)
from ordermerge.commands.merging import is_finite, merge
from ordermerge.files import sync

DTYPE, COUNT, PAGE_VALUES = "bfloat16", 5, 2048
ORDER = ("map", "look for NaN", "kernel", "write, on the disk", "digest")
Tensors = dict[str, torch.Tensor]


def mapped(file: Path) -> Tensors:
    """Return a file's tensors as mergekit reads them: mapped, not read."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def touch(files: list[Path]) -> None:
    """Map files and look at a value of each page."""
    for file in files:
        for tensor in mapped(file).values():
            tensor.view(torch.int16).view(-1)[::PAGE_VALUES].sum()


def kernel(case: Case, models: list[Tensors]) -> None:
    parameters = case.parameters_for(COUNT)
    for name in models[0]:
        inputs = [model[name] for model in models]
        merge_tensors(inputs, case.method, parameters=parameters, base_index=0 if case.base else None, name=name)


def parts(case: Case, folder: Path) -> dict[str, Callable[[], object]]:
    files = [folder / name / "model.safetensors" for name in names(case)]
    in_memory = [{name: tensor.clone() for name, tensor in mapped(file).items()} for file in files]
    written, floor = folder / "written.safetensors", folder / "floor.safetensors"
    save_file(in_memory[-1], written)
    looked_at = [tensor for model in in_memory for tensor in model.values()]
    return {
        "floor": lambda: read_and_write([str(file) for file in files], str(floor)),
        "map": lambda: touch(files),
        "look for NaN": lambda: [is_finite(tensor) for tensor in looked_at],
        "kernel": lambda: kernel(case, in_memory),
        "write": lambda: save_file(in_memory[-1], written),
        "write, on the disk": lambda: (save_file(in_memory[-1], written), sync(written)),
        "digest": lambda: digest(written),
    }


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def names(case: Case) -> list[str]:
    return [*(["base"] if case.base else []), *(f"model_{index}" for index in range(COUNT))]


def write_recipe(case: Case, folder: Path) -> Path:
    path = folder / f"{case.name}.yml"
    path.write_text(yaml.safe_dump(recipe(case, folder, COUNT, DTYPE)), encoding="utf-8")
    return path


def by_mergekit(case: Case, folder: Path) -> None:
    config = MergeConfiguration.model_validate(recipe(case, folder, COUNT, DTYPE))
    run_merge(config, str(folder / "merged"), MergeOptions(quiet=True, copy_tokenizer=False))


def processor_seconds(task: Callable[[], object], made: Path) -> float:
    """Return the processor time of a task in this process; what it has made is removed."""
    shutil.rmtree(made, ignore_errors=True)
    start = time.process_time()
    task()
    return time.process_time() - start


def measure(folder: Path, narrow: Path, repetitions: int) -> dict[str, list[float]]:
    made, log = folder / "merged", folder / "log.txt"
    tasks: dict[str, Callable[[], Any]] = {}
    for case in (SELECTION, FULL):
        tasks |= {
            f"{case.name}, {part}": lambda task=task: processor_seconds(task, made)
            for part, task in parts(case, folder).items()
        }
    options = MergeOptions(quiet=True)
    for case in (LINEAR, SELECTION, FULL):
        for size, place in (("whole", folder), ("narrow", narrow)):
            made_there, path = place / "merged", write_recipe(case, place)
            runs = {
                "run_merge": lambda case=case, place=place: by_mergekit(case, place),
                "ordermerge merge": lambda path=path, made_there=made_there: merge(path, made_there, options),
            }
            tasks |= {
                f"{case.name}, {name}, {size}": lambda task=task, made_there=made_there: processor_seconds(
                    task, made_there
                )
                for name, task in runs.items()
                if case is not LINEAR or name == "run_merge"
            }
    ours = str(Path(sys.executable).with_name("ordermerge"))
    commands = {
        "linear, mergekit-yaml": mergekit_command(write_recipe(LINEAR, folder), made),
        "selection, mergekit-yaml": mergekit_command(write_recipe(SELECTION, folder), made),
        "selection, command": [ours, "merge", str(write_recipe(SELECTION, folder)), str(made)],
        "full, command": [ours, "merge", str(write_recipe(FULL, folder)), str(made)],
    }

    def run(command: list[str]) -> float:
        shutil.rmtree(made, ignore_errors=True)
        return run_watched(command, log).processor_seconds

    tasks |= {name: lambda command=command: run(command) for name, command in commands.items()}
    for name in ("selection, ordermerge merge, narrow", "full, ordermerge merge, narrow"):
        tasks[name]()  # compiles, and imports
    return in_turn(tasks, dict.fromkeys(tasks, repetitions))


def table(result: dict[str, Any]) -> str:
    least = {name: min(seconds) for name, seconds in result["seconds"].items()}
    per = {name: seconds / result["parameters"] * 1e9 for name, seconds in least.items()}

    lines = [
        "# Where a merge spends its time",
        "",
        f"{result['parameters'] / 1e6:.0f} M parameters x {COUNT}, {DTYPE}, files in the page cache, one thread; "
        "processor time, the least of the repetitions, in ns per parameter. Checks and planning: the same merge of a "
        "narrow model with as many tensors. Wholes are of a process that has started up. The floor reads all inputs "
        "and writes the output once.",
        "",
        "| | selection | full |",
        "|---|---|---|",
    ]
    columns = ("selection", "full")
    rows = {name: [per[f"{case}, {name}"] for case in columns] for name in ("floor", *ORDER)}
    rows["(write, and not wait for the disk)"] = [per[f"{case}, write"] for case in columns]
    rows["checks and planning"] = [per[f"{case}, ordermerge merge, narrow"] for case in columns]
    rows["`ordermerge merge`, whole"] = [per[f"{case}, ordermerge merge, whole"] for case in columns]
    known = [sum(rows[name][place] for name in (*ORDER, "checks and planning")) for place in (0, 1)]
    rows["beside the parts"] = [
        whole - parts for whole, parts in zip(rows["`ordermerge merge`, whole"], known, strict=True)
    ]
    rows["mergekit's `run_merge`, whole"] = [per[f"{case}, run_merge, whole"] for case in columns]
    linear = per["linear, run_merge, whole"]
    rows["the same with `linear`"] = [linear] * 2
    lines += [f"| {name} | {one:.2f} | {two:.2f} |" for name, (one, two) in rows.items()]
    targets = [
        (f"mergekit's `run_merge`: {case} / linear", per[f"{case}, run_merge, whole"] / linear, limit)
        for case, limit in zip(columns, (0.65, 0.75), strict=True)
    ]
    targets += [
        (
            f"`ordermerge merge`, less digests: {case} / floor",
            (rows["`ordermerge merge`, whole"][place] - rows["digest"][place]) / rows["floor"][place],
            1.3,
        )
        for place, case in enumerate(columns)
    ]
    command = least["linear, mergekit-yaml"]
    targets += [
        (
            f"whole command: `ordermerge merge` {case} / `mergekit-yaml` linear",
            least[f"{case}, command"] / command,
            0.75,
        )
        for case in ("selection", "full")
    ]
    lines += ["", "| target | measured | met |", "|---|---|---|"]
    lines += [
        f"| {name} <= {limit} | {found:.2f} | {'yes' if found <= limit else '**no**'} |"
        for name, found, limit in targets
    ]
    load = result["machine"]["load_average_at_start"]
    commands = [f"{name} {least[name]:.2f} s" for name in least if "command" in name or "yaml" in name]
    lines += ["", f"Whole processes, start-up included: {'; '.join(commands)}.", ""]
    lines.append(
        f"{result['machine']['cpus']} CPUs, load {load:.1f} at the start: others' work takes caches and memory."
    )
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--parameters", default="270M", help="Of a model.")
@click.option("--repetitions", default=3)
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where checkpoints go, and stay; else temporary.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(parameters: str, repetitions: int, work_dir: Path | None, out: Path) -> None:
    torch.set_num_threads(1)
    about = machine()  # its load, before ours
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as temporary:
        work = (work_dir or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        shape = shape_that_fits(parse_kmb(parameters), COUNT, DTYPE, work)
        folder = write_models(shape, COUNT, DTYPE, work / "whole")
        narrow = replace(TINY, num_hidden_layers=shape.num_hidden_layers)
        seconds = measure(folder, write_models(narrow, COUNT, DTYPE, work / "narrow"), repetitions)
    result = {"parameters": shape.parameters(), "models": COUNT, "machine": about, "seconds": seconds}
    out.mkdir(parents=True, exist_ok=True)
    (out / "merge_parts.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "merge_parts.md").write_text(table(result), encoding="utf-8")
    click.echo(table(result))


if __name__ == "__main__":
    main()
