"""Train the quickstart's model in four orders at several rates, with two optimizers; write how far apart the runs end.

    python studies/order_noise/measure.py [--runs-dir runs/studies]

What is trained is kept, so an interrupted study goes on. `results/spread.csv` has each sub-model's validation loss and
squared distance from the mean of the four, over all parameters; `answer.py` makes the table and the figure of it.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ordermerge.run_directory import last_validation_loss, order_folder

HERE = Path(__file__).parent
RATES = {"adamw": (2.5e-4, 5e-4, 1e-3), "sgd": (0.05, 0.1, 0.2)}
ORDERS = 4


def train(optimizer: str, rate: float, runs_dir: Path) -> Path:
    """Train the orders of one optimizer and rate, and return the run directory."""
    name = f"order_noise_{optimizer}_{rate:g}"
    changes = ["--set", f"name={name}", "--set", f"sft.learning_rate={rate}", "--set", f"orders.count={ORDERS}"]
    experiment = str(HERE / f"{optimizer}.yml")
    command = [sys.executable, "-m", "ordermerge", "train", experiment, "--runs-dir", str(runs_dir), *changes]
    subprocess.run(command, check=True)
    return runs_dir / name


def end_points(run: Path) -> torch.Tensor:
    """Return the sub-models' parameters: float64 of shape [orders, parameters]."""
    found = []
    for order in range(ORDERS):
        tensors = load_file(order_folder(run, order) / "model.safetensors")
        found.append(torch.cat([tensors[name].flatten().double() for name in sorted(tensors)]))
    return torch.stack(found)


def main() -> None:
    """Train what is not trained, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/studies"))
    runs_dir: Path = parser.parse_args().runs_dir
    rows: list[tuple[object, ...]] = [("optimizer", "rate", "order", "validation_loss", "squared_distance")]
    for optimizer, rates in RATES.items():
        for rate in rates:
            run = train(optimizer, rate, runs_dir)
            points = end_points(run)
            distances = ((points - points.mean(0)) ** 2).sum(1)
            for order, distance in enumerate(distances.tolist()):
                loss = last_validation_loss(order_folder(run, order))
                rows.append((optimizer, f"{rate:g}", order, f"{loss:.6f}", f"{distance:.6g}"))
    (HERE / "results").mkdir(exist_ok=True)
    with open(HERE / "results" / "spread.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
