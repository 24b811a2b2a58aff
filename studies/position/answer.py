"""Make the table of the position effect by schedule, from the committed results: python studies/position/answer.py.

A slope s of the log loss over the relative position means that the loss of a sample met last is e^s times that of the
same sample met first. Mean and interval are over families: Student's t of their number less one degrees of freedom.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t

from ordermerge.eval.statistics import LEVEL

RESULTS = Path(__file__).parent / "results"


def per_cent(slope: float) -> str:
    """Return by how much the loss changes from the first position to the last."""
    return f"{100 * np.expm1(slope):+.1f} %"


def main() -> None:
    """Read results/position.csv and write results/answers.md."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with open(RESULTS / "position.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["schedule"], row["epoch"], row["of"]].append(float(row["slope"]))
    lines = ["| schedule | epoch | in | last less first | 95 % interval | families |", "|---|---|---|--:|--:|--:|"]
    for (schedule, epoch, of), slopes in found.items():
        count, mean = len(slopes), float(np.mean(slopes))
        half = t(count - 1).ppf((1 + LEVEL) / 2) * np.std(slopes, ddof=1) / np.sqrt(count) if count > 1 else np.nan
        interval = f"{per_cent(mean - half)} to {per_cent(mean + half)}" if count > 1 else ""
        lines.append(f"| {schedule} | {epoch} | {of} | {per_cent(mean)} | {interval} | {count} |")
    (RESULTS / "answers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
