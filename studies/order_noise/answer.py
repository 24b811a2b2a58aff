"""Say how order noise grows with the learning rate, from the committed results: python studies/order_noise/answer.py.

The variance of the end point over orders is the sum over all parameters of each one's variance; an exponent is the
slope of its logarithm over that of the rate, by least squares. Its interval is the jackknife's: each order left out
once at all rates, Student's t of the number of orders less one degrees of freedom.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import linregress, t

from ordermerge.eval.figures import COLOURS, save_figure, scale_by_powers
from ordermerge.eval.statistics import LEVEL

RESULTS = Path(__file__).parent / "results"


def exponent(values: Mapping[float, np.ndarray]) -> float:
    """Return the slope of log mean value over log rate, of values by rate, each of shape [orders]."""
    return float(linregress(np.log(list(values)), np.log([one.mean() for one in values.values()])).slope)


def with_interval(values: Mapping[float, np.ndarray]) -> tuple[float, float]:
    """Return the exponent and the half-width of its interval over orders."""
    orders = len(next(iter(values.values())))
    left_out = [exponent({rate: np.delete(one, order) for rate, one in values.items()}) for order in range(orders)]
    error = np.sqrt((orders - 1) * np.var(left_out))
    return exponent(values), float(t(orders - 1).ppf((1 + LEVEL) / 2) * error)


def main() -> None:
    """Read results/spread.csv; write results/answers.md and the figure."""
    variances: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    losses: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with open(RESULTS / "spread.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            variances[row["optimizer"]][float(row["rate"])].append(float(row["squared_distance"]))
            losses[row["optimizer"]][float(row["rate"])].append(float(row["validation_loss"]))
    lines = ["| optimizer | rate | variance of the end point | validation loss | its standard deviation | orders |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    ends: dict[str, dict[float, np.ndarray]] = {}
    for optimizer, by_rate in variances.items():
        # a distance from the mean of n points is (n - 1) / n of the variance on average
        ends[optimizer] = {rate: np.array(one) * len(one) / (len(one) - 1) for rate, one in by_rate.items()}
        for rate, one in ends[optimizer].items():
            of_loss = np.array(losses[optimizer][rate])
            numbers = f"{one.mean():.4g} | {of_loss.mean():.4f} | {of_loss.std(ddof=1):.4f} | {len(one)}"
            lines.append(f"| {optimizer} | {rate:g} | {numbers} |")
    lines += ["", "| optimizer | exponent of the variance | 95 % interval |", "|---|--:|--:|"]
    for optimizer, values in ends.items():
        slope, half = with_interval(values)
        lines.append(f"| {optimizer} | {slope:.2f} | {slope - half:.2f} to {slope + half:.2f} |")
    (RESULTS / "answers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def paint(figure: Figure) -> None:
        for axes, (optimizer, values) in zip(figure.subplots(1, len(ends)), ends.items(), strict=True):
            axes.loglog(list(values), [one.mean() for one in values.values()], marker="o", color=COLOURS[0])
            scale_by_powers(axes.xaxis)
            scale_by_powers(axes.yaxis)
            axes.set_title(f"{optimizer}: rate to the {exponent(values):.2f}", loc="left")
            axes.set_xlabel("learning rate")
        figure.axes[0].set_ylabel("variance of the end point over orders")

    rows = [(name, rate, one.mean()) for name, values in ends.items() for rate, one in values.items()]
    save_figure(RESULTS / "order_noise", (8, 3.6), paint, ("optimizer", "rate", "variance"), rows)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
