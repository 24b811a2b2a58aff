"""What large experiments cost beside training and scoring: many samples, many orders, many merges.

    python benchmarks/scale.py                       # all parts
    python benchmarks/scale.py --only orders         # 1,000,000 samples x 3 epochs x 16 orders, by strategy
    python benchmarks/scale.py --only experiments    # 25, 50 and 100 merges of 64 orders: plan, nothing to do, report
    python benchmarks/scale.py --only losses         # tokens of 1,000,000 samples, as `losses` holds them
    python benchmarks/scale.py --only imbalance      # losses of 1,000,000 samples under 4 orders and a merge
    python benchmarks/scale.py --samples 20000 --orders 4 --merges 5 --merges 10 --out /tmp/trial   # a quick look

Everything is made up, and each measurement is a process of its own. Times are processor time, less what the imports
take: the machine need not be idle. Peaks are of the whole process. Results go to OUT/scale.json and OUT/scale.md.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from watched import machine

PARTS = ("orders", "experiments", "losses", "imbalance")
EPOCHS, BATCH, TOKENS = 3, 16, 100
EXPERIMENT_ORDERS, IMBALANCE_ORDERS = 64, 4


def peak_mib() -> float:
    """Return the peak of this process's memory."""
    fields = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return int(fields[fields.index("VmHWM:") + 1]) / 1024


@contextlib.contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    found[name] = time.process_time() - start


def measure_orders(strategy: str, samples: int, count: int, folder: Path) -> dict[str, float]:
    """Lay orders, check and describe them, write their records and read them again, as training and analysis do."""
    import torch
    from safetensors.torch import save_file

    from ordermerge.run_directory import PERMUTATIONS, order_folder, read_positions
    from ordermerge.train.balance import balance, correlations, mean_positions, positions
    from ordermerge.train.orders import STRATEGIES, check_distinct, epoch_fingerprints

    found: dict[str, float] = {"start_mib": peak_mib()}
    with timed(found, "lay"):
        orders = STRATEGIES[strategy](samples, EPOCHS, count, 0, BATCH)
    with timed(found, "check"):
        check_distinct(orders, strategy, BATCH)
    ids = torch.arange(samples)
    with timed(found, "write"):
        for order, permutations in enumerate(orders):
            epoch_fingerprints(permutations)
            place = order_folder(folder, order) / PERMUTATIONS
            place.parent.mkdir(parents=True)
            save_file({"permutations": permutations, "sample_ids": ids}, place)
    found["write_mib"] = peak_mib()
    with timed(found, "describe"):
        places = positions(orders[:, 0])
        correlations(places), mean_positions(places, 8), balance(places)
    found["describe_mib"] = peak_mib()
    del orders, permutations, places
    with timed(found, "read"):
        read, _ = read_positions(folder, count)
        assert len(read) == count
    return found


def measure_experiment(merges: int, count: int, folder: Path) -> dict[str, float]:
    """Plan an experiment of which everything is done, go through it, show it, and write its report."""
    from synthetic_run import write_run

    from ordermerge.commands.finished import show_if_finished
    from ordermerge.commands.report import write_report
    from ordermerge.commands.run import run_experiment

    found: dict[str, float] = {}
    file, small = write_run(folder / "made_up", count, merges), write_run(folder / "small", 2, 1)
    runs = file.parent / "runs"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_experiment(small, small.parent / "runs")  # loads what is loaded once
        with timed(found, "plan"):
            plan = run_experiment(file, runs, dry_run=True)
        assert plan is not None
        assert not any(stage["todo"] for stage in plan["stages"].values())
        with timed(found, "nothing to do"):
            run_experiment(file, runs)
        with timed(found, "report"):
            write_report(runs / "made_up")
        with timed(found, "finished"):
            assert show_if_finished(file, runs, ())
    return found


def measure_losses(samples: int, folder: Path) -> dict[str, float]:
    """Take the tokens of prepared data as `losses` does, their fingerprint, and the plan of batches; run no model."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    from ordermerge.commands.losses import data_fingerprint
    from ordermerge.commands.measure import splits_of
    from ordermerge.eval.imbalance.losses import count_learnt, plan_batches
    from ordermerge.train.tokenized import Tokenised

    random = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(random.integers(20, 2 * TOKENS - 20, samples))]).astype(np.int32)
    tokens = pa.ListArray.from_arrays(starts, random.integers(50_000, size=starts[-1]))
    data = Dataset(pa.table({"sample_id": np.arange(samples), "input_ids": tokens, "labels": tokens}))
    del tokens
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    found: dict[str, float] = {"tokens": float(starts[-1]), "start_mib": peak_mib()}
    with timed(found, "take"):
        (split,) = splits_of(Tokenised(data, None, ""))
    with timed(found, "fingerprint"):
        data_fingerprint([split])
    with timed(found, "plan"):
        plan_batches([len(row) for row in split.input_ids], 4096)
        count_learnt(split.labels)
    return found


def measure_imbalance(samples: int, count: int, folder: Path) -> dict[str, float]:
    """Read losses and positions of all samples, and analyse them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file
    from synthetic_run import write_run

    from ordermerge.eval.imbalance.analysis import analyse
    from ordermerge.eval.imbalance.loss_table import NOTE, read_table
    from ordermerge.run_directory import PERMUTATIONS, losses_file, model_marker, model_paths, open_run, order_folder
    from ordermerge.train.orders import random_orders

    run = write_run(folder / "made_up", count, 1).parent / "runs" / "made_up"
    experiment, random = open_run(run), np.random.default_rng(0)
    difficulty = random.lognormal(size=samples)
    for order, permutations in enumerate(random_orders(samples, EPOCHS, count, 0)):
        place = order_folder(run, order) / PERMUTATIONS
        save_file({"permutations": permutations, "sample_ids": torch.arange(samples)}, place)
    for name, path in model_paths(experiment, run).items():
        columns = {"sample_id": range(samples), "split": ["train"] * samples, "tokens": [9] * samples}
        table = pa.table({**columns, "loss": difficulty * random.lognormal(0, 0.1, samples)})
        losses_file(run, name).parent.mkdir(parents=True, exist_ok=True)
        note = {NOTE: json.dumps({"inputs": {"marker": model_marker(path)}})}
        pq.write_table(table.replace_schema_metadata(note), losses_file(run, name))
    found: dict[str, float] = {"start_mib": peak_mib()}
    with timed(found, "read"):
        read_table(run, experiment)
    found["read_mib"] = peak_mib()
    with timed(found, "whole"), contextlib.redirect_stdout(io.StringIO()):
        analyse(run)
    found["whole_mib"] = peak_mib()
    return found


def measure(part: str, *arguments: object) -> dict[str, float]:
    """Take one measurement in a process of its own."""
    command = [sys.executable, __file__, "--measure", part, *(f"--argument={one}" for one in arguments)]
    click.echo(f"{part} {' '.join(map(str, arguments))}", err=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def orders_table(part: dict[str, Any]) -> str:
    copy = part["samples"] * EPOCHS * part["orders"] * 8 / 2**20
    lines = [
        f"{part['samples']:,} samples, {EPOCHS} epochs, {part['orders']} orders; the orders themselves are {copy:,.0f} "
        "MiB.",
        "",
        "| strategy | lay s | check s | write s | describe s | read s | all s | peak MiB beyond start | in copies |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for strategy, found in part["measured"].items():
        seconds = [found[name] for name in ("lay", "check", "write", "describe", "read")]
        beyond = found["peak_mib"] - found["start_mib"]
        cells = [*(f"{one:.1f}" for one in (*seconds, sum(seconds))), f"{beyond:,.0f}", f"{beyond / copy:.1f}"]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def experiments_table(part: dict[str, Any]) -> str:
    lines = [
        f"{part['orders']} orders of a tiny model, {EXPERIMENT_TEXT}",
        "",
        "| merges | plan s | nothing to do s | report s | finished, shown s | nothing to do, ms a merge |",
        "|---|---|---|---|---|---|",
    ]
    for merges, found in part["measured"].items():
        seconds = [found[name] for name in ("plan", "nothing to do", "report", "finished")]
        cells = [*(f"{one:.2f}" for one in seconds), f"{found['nothing to do'] / int(merges) * 1000:.0f}"]
        lines.append(f"| {merges} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losses_table(part: dict[str, Any]) -> str:
    found = part["measured"]
    beyond = found["peak_mib"] - found["start_mib"]
    lines = [
        f"{part['samples']:,} samples, {found['tokens'] / 1e6:.0f} million tokens; `losses` without its model.",
        "",
        "| take s | fingerprint s | plan batches s | peak MiB beyond the prepared data | bytes a token |",
        "|---|---|---|---|---|",
        f"| {found['take']:.1f} | {found['fingerprint']:.1f} | {found['plan']:.1f} | {beyond:,.0f} "
        f"| {beyond * 2**20 / found['tokens']:.0f} |",
    ]
    return "\n".join(lines)


def imbalance_table(part: dict[str, Any]) -> str:
    lines = [
        f"{part['orders']} orders and one merge; `ordermerge imbalance`, less its imports.",
        "",
        "| samples | read s | whole s | peak MiB beyond start |",
        "|---|---|---|---|",
    ]
    for samples, found in part["measured"].items():
        beyond = found["whole_mib"] - found["start_mib"]
        lines.append(f"| {int(samples):,} | {found['read']:.1f} | {found['whole']:.1f} | {beyond:,.0f} |")
    return "\n".join(lines)


EXPERIMENT_TEXT = "scored on one task of 200 documents. Plan: `run --dry-run`; nothing to do: `run` without its record."
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "orders": orders_table,
    "experiments": experiments_table,
    "losses": losses_table,
    "imbalance": imbalance_table,
}
TITLES = {
    "orders": "Orders and their records",
    "experiments": "Experiments",
    "losses": "Losses",
    "imbalance": "Imbalance",
}


def write_results(results: dict[str, Any], out: Path) -> str:
    sections = [f"## {TITLES[part]}\n\n{TABLES[part](results[part])}" for part in PARTS if part in results]
    ends = "Processor seconds, one thread, less what the imports take."
    report = "\n\n".join(["# Scale", ends, *sections]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.md").write_text(report, encoding="utf-8")
    (out / "scale.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return report


def measured_here(part: str, arguments: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as temporary:
        folder = Path(temporary).resolve()
        if part == "orders":
            return measure_orders(arguments[0], *map(int, arguments[1:]), folder)
        measures: dict[str, Callable[..., dict[str, float]]] = {
            "experiments": measure_experiment,
            "losses": measure_losses,
            "imbalance": measure_imbalance,
        }
        return measures[part](*map(int, arguments), folder)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--only", "parts", multiple=True, type=click.Choice(PARTS), help="These parts; the others are kept.")
@click.option("--samples", default=1_000_000, help="Of the parts `orders` and `imbalance`.")
@click.option("--orders", default=16, help="Of the part `orders`.")
@click.option("--merges", multiple=True, type=int, default=(25, 50, 100), help="Of the part `experiments`; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
@click.option("--measure", "one", hidden=True)
@click.option("--argument", "arguments", multiple=True, hidden=True)
def main(
    parts: tuple[str, ...],
    samples: int,
    orders: int,
    merges: tuple[int, ...],
    out: Path,
    one: str | None,
    arguments: tuple[str, ...],
) -> None:
    if one:
        found = measured_here(one, list(arguments))
        print(json.dumps({**found, "peak_mib": peak_mib()}))
        return
    file = out / "scale.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    chosen = parts or PARTS
    if "orders" in chosen:
        found = {strategy: measure("orders", strategy, samples, orders) for strategy in ("random", "batch", "rotate")}
        results["orders"] = {"samples": samples, "orders": orders, "measured": found, "machine": machine()}
    if "experiments" in chosen:
        found = {str(number): measure("experiments", number, EXPERIMENT_ORDERS) for number in merges}
        results["experiments"] = {"orders": EXPERIMENT_ORDERS, "measured": found, "machine": machine()}
    if "losses" in chosen:
        found = measure("losses", samples)
        results["losses"] = {"samples": samples, "measured": found, "machine": machine()}
    if "imbalance" in chosen:
        sizes = (samples // 10, samples)
        found = {str(size): measure("imbalance", size, IMBALANCE_ORDERS) for size in sizes}
        results["imbalance"] = {"orders": IMBALANCE_ORDERS, "measured": found, "machine": machine()}
    click.echo(write_results(results, out))


if __name__ == "__main__":
    main()
