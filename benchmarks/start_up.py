"""What commands take before they do anything: processor time of each, beside mergekit's own command.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --repetitions 1 --out /tmp/trial     # a quick look

Each command runs as a process of its own on tiny models; repetitions are interleaved in changing order, and the least
of each is given, as all else only adds to it: the machine need not be idle. `run` has nothing to do. Also measured:
what importing the libraries takes that `orders` needs, one after the other in one process, with Python's garbage
collector off as in our commands. Results go to OUT/start_up.json and OUT/start_up.md.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from merge_throughput import in_turn
from synthetic_run import write_run
from watched import machine, run_watched

from ordermerge.commands.tiny_model import write_tiny_model

LIMIT_SECONDS, OF_MERGEKIT = 2.0, 0.95
HELP = "mergekit-yaml --help"
QUICK = ("report", "inspect", "orders", "run")
IMPORTS = (
    "torch",
    "datasets",
    "transformers",
    "transformers.modeling_utils",
    "transformers.trainer",
    "peft",
    "trl.trainer.sft_trainer",
    "ordermerge.commands.orders",
)
_IMPORT_PROGRAM = """
import gc, importlib, json, sys, time
gc.disable()
found, last = {"python": time.process_time()}, time.process_time()
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name], last = time.process_time() - last, time.process_time()
print(json.dumps(found))
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """Make what the commands need, and return them by what they are called in the results."""
    experiment = write_run(folder / "made_up", 4, 2)
    models = [folder / f"model_{seed}" for seed in range(3)]
    for seed, model in enumerate(models):
        write_tiny_model(model, seed=seed, moved=0.1 * seed)
    recipe = folder / "recipe.yml"
    content = {"merge_method": "parameter_selection", "models": [{"model": str(model)} for model in models[1:]]}
    recipe.write_text(yaml.safe_dump({**content, "dtype": "bfloat16"}), encoding="utf-8")
    runs = experiment.parent / "runs"
    given: dict[str, list[object]] = {
        "run": [experiment, "--runs-dir", runs],
        "report": [runs / "made_up"],
        "inspect": ["--base", *models],
        "orders": [experiment],
        "check": [recipe],
        "merge": [recipe, folder / "merged"],
    }
    programs = {name: str(Path(sys.executable).with_name(name)) for name in ("ordermerge", "mergekit-yaml")}
    found = {f"ordermerge {name}": [programs["ordermerge"], name, *map(str, given[name])] for name in given}
    merged = [programs["mergekit-yaml"], str(recipe), str(folder / "stock"), "--quiet"]
    return {**found, HELP: [programs["mergekit-yaml"], "--help"], "mergekit-yaml, the same recipe": merged}


def imports() -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_PROGRAM, *IMPORTS], stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(folder: Path, repetitions: int) -> dict[str, Any]:
    log = folder / "log.txt"
    tasks: dict[str, Callable[[], Any]] = {
        name: lambda command=command: run_watched(command, log).processor_seconds
        for name, command in commands(folder).items()
    }
    for name in ("ordermerge run", "ordermerge inspect", "ordermerge merge"):
        tasks[name]()  # notes that it is finished; compiles
    tasks["imports"] = imports
    found = in_turn(tasks, dict.fromkeys(tasks, repetitions))
    steps = found.pop("imports")
    return {"seconds": found, "imports": {name: [step[name] for step in steps] for name in ("python", *IMPORTS)}}


def table(result: dict[str, Any]) -> str:
    least = {name: min(seconds) for name, seconds in result["seconds"].items()}
    helped = least[HELP]
    lines = [
        "# Start-up",
        "",
        "Processor seconds of whole processes on tiny models, the least of the repetitions.",
        "",
        "| command | seconds | / mergekit-yaml --help | target | met |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in least.items():
        quick = name.removeprefix("ordermerge ") in QUICK
        target = f"{LIMIT_SECONDS:.0f} s" if quick else f"{OF_MERGEKIT} of it" if name.startswith("ordermerge") else ""
        met = seconds <= LIMIT_SECONDS if quick else seconds <= OF_MERGEKIT * helped
        verdict = ("yes" if met else "**no**") if target else ""
        lines.append(f"| `{name}` | {seconds:.2f} | {seconds / helped:.2f} | {target} | {verdict} |")
    lines += [
        "",
        "`orders` prepares the data with TRL's SFTTrainer, as training does: which samples are left, and so the "
        "orders, is its decision. What importing that takes, each after those before it:",
        "",
        "| import | seconds | together |",
        "|---|---|---|",
    ]
    together = 0.0
    for name, seconds in result["imports"].items():
        together += min(seconds)
        lines.append(f"| {name} | {min(seconds):.2f} | {together:.2f} |")
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--repetitions", default=3)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(repetitions: int, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as temporary:
        result = {"machine": machine(), **measure(Path(temporary).resolve(), repetitions)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "start_up.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "start_up.md").write_text(table(result), encoding="utf-8")
    click.echo(table(result))


if __name__ == "__main__":
    main()
