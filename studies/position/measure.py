"""Measure the position effect in the runs of the price study, by schedule and family.

    python studies/position/measure.py [--runs-dir runs/studies]

Needs the sub-models of `python studies/families.py studies/price --only constant --only annealed`. What is measured is
kept. `results/position.csv` has the slope of a sample's log loss over its relative position in the first and in the
last epoch: in sub-models (a sample against itself in the other orders), and what is left of it in merges; `answer.py`
makes the table of it.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from ordermerge.run_directory import imbalance_folder

HERE = Path(__file__).parent
SCHEDULES = ("constant", "annealed")
MERGES = ("weighted_average", "parameter_selection")
ORDERS = 4
COLUMNS = ("schedule", "family", "epoch", "of", "slope", "low", "high")


def measure(run: Path) -> dict:
    """Take the losses of a run's sub-models and merges, and return the numbers of `ordermerge imbalance`."""
    models = [f"order_{order}" for order in range(ORDERS)] + list(MERGES)
    chosen = [word for model in models for word in ("--model", model)]
    for command in (["losses", str(run), *chosen], ["imbalance", str(run)]):
        subprocess.run([sys.executable, "-m", "ordermerge", *command], check=True)
    found: dict = json.loads((imbalance_folder(run) / "imbalance.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Measure what is not measured, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/studies"))
    runs_dir: Path = parser.parse_args().runs_dir
    rows: list[tuple[object, ...]] = [COLUMNS]
    for schedule in SCHEDULES:
        for run in sorted(runs_dir.glob(f"price_{schedule}_[0-9]*")):
            for epoch, found in measure(run)["epochs"].items():
                effects = {"sub-models": found["log"]} | {name: found["traces"][name] for name in MERGES}
                for name, effect in effects.items():
                    numbers = (f"{effect[key]:.5f}" for key in ("slope", "low", "high"))
                    rows.append((schedule, run.name.rsplit("_", 1)[1], epoch, name, *numbers))
    (HERE / "results").mkdir(exist_ok=True)
    with open(HERE / "results" / "position.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
