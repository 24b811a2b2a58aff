"""Run a study: each of its experiments with several independent families of orders; collect the documents' scores.

    python studies/families.py studies/price --families 5 [--runs-dir runs/studies] [--only annealed]

A family is one value of `orders.seed`. What is finished is kept, so an interrupted study goes on; `--families 0` runs
nothing. Afterwards, of all experiments and families in the runs directory whose report is written,
`results/scores.csv` has each model's score and price (`best_single`: the sub-model of the lowest validation loss), and
`results/documents.npz` each model's score of each document (0 or 1, eight to a byte), from which `studies/answers.py`
makes tables and figures. Weights stay in the runs directory.
"""

import argparse
import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ordermerge.commands.prices import run_prices
from ordermerge.eval.comparison.documents import common_scores, pair
from ordermerge.eval.comparison.folders import find_scores, read_models
from ordermerge.run_directory import REPORT, last_validation_loss, open_run, order_folder, order_name

COLUMNS = ("experiment", "family", "model", "price", "documents", "score")
MOST_FAMILIES = 100


def experiments(study: Path, only: Sequence[str] | None = None) -> list[Path]:
    """Return a study's experiment files, or those of some names; the questions asked of them are none."""
    found = sorted(path for path in study.glob("*.yml") if path.name != "questions.yml")
    return [path for path in found if path.stem in (only or [path.stem])]


def run_name(experiment: Path, family: int) -> str:
    """Return the name of one experiment's run with the orders of one family."""
    return f"{experiment.parent.name}_{experiment.stem}_{family}"


def run_family(experiment: Path, family: int, runs_dir: Path) -> None:
    """Run one experiment with the orders of one family."""
    name = run_name(experiment, family)
    changes = ["--set", f"name={name}", "--set", f"orders.seed={family}"]
    command = [sys.executable, "-m", "ordermerge", "run", str(experiment), "--runs-dir", str(runs_dir), *changes]
    subprocess.run(command, check=True)


def finished(experiment: Path, runs_dir: Path) -> list[tuple[int, Path]]:
    """Return the families of an experiment whose report is written, each with its run directory."""
    runs = [(family, runs_dir / run_name(experiment, family)) for family in range(MOST_FAMILIES)]
    return [(family, run) for family, run in runs if (run / REPORT).exists()]


def document_scores(run: Path) -> dict[str, np.ndarray]:
    """Return, for each model of a run, its score of each document, 0 or 1: uint8 of shape [documents]."""
    models = read_models(find_scores(str(run)))
    key, *others = common_scores(models)
    if others:
        raise SystemExit(f"{run}: a study has one task with one metric; this has {len(others) + 1}")
    values = pair(models, [model.rows[key] for model in models]).values
    if not np.isin(values, (0, 1)).all():
        raise SystemExit(f"{run}: {key[1]} is not 0 or 1 for each document")
    names = [model.name.removeprefix(f"{run}/") for model in models]
    return dict(zip(names, values.T.astype(np.uint8), strict=True))


def best_single(run: Path, count: int) -> str:
    """Return the sub-model of the lowest validation loss, the choice that costs all orders' trainings."""
    losses = {order: last_validation_loss(order_folder(run, order)) for order in range(count)}
    return order_name(min(losses, key=lambda order: (losses[order] is None, losses[order])))


def main() -> None:
    """Read the command line, run what is not done, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a folder of experiment files")
    parser.add_argument("--families", type=int, default=5)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/studies"))
    parser.add_argument("--only", action="append", help="an experiment's name, without .yml; all, if not given")
    arguments = parser.parse_args()
    for family in range(arguments.families):
        for experiment in experiments(arguments.study, arguments.only):
            run_family(experiment, family, arguments.runs_dir)
    rows: list[tuple[object, ...]] = []
    documents: dict[str, np.ndarray] = {}
    for experiment in experiments(arguments.study):
        for family, run in finished(experiment, arguments.runs_dir):
            opened = open_run(run)
            prices = {name: price.runs for name, price in run_prices(opened, run).items()}
            found = document_scores(run)
            found["best_single"] = found[best_single(run, opened.orders.count)]
            prices["best_single"] = max(prices[merge] for merge in opened.merges)
            for model, scores in found.items():
                rows.append(
                    (experiment.stem, family, model, f"{prices[model]:.4g}", len(scores), f"{scores.mean():.6f}")
                )
                documents[f"{experiment.stem}/{family}/{model}"] = np.packbits(scores)
    results = arguments.study / "results"
    results.mkdir(exist_ok=True)
    with open(results / "scores.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    np.savez_compressed(results / "documents.npz", **documents)


if __name__ == "__main__":
    main()
