"""Draw what more trainings buy, one longer run or merged orders, on two tasks: python studies/decision.py.

Reads the committed results of `price` and `banking77`; writes `decision.png`, `.svg` and `.csv` beside this file.
Scores are means over families of orders, with Student's t intervals over the families.
"""

from pathlib import Path

from answers import price_rows, read_documents
from matplotlib.figure import Figure

from ordermerge.eval.figures import COLOURS, save_figure

HERE = Path(__file__).parent
ONE = [f"annealed/order_{order}" for order in range(4)]
TWO, FOUR, LONGER = "annealed/two_orders", "annealed/weighted_average", "annealed/longer"
PANELS = {  # title, and the models of each curve
    "price": (
        "One run has learned the task\n(0.8 M parameters, 2 epochs)",
        {"merge more orders": [TWO, FOUR], "train longer": [LONGER]},
    ),
    "banking77": (
        "One run has not\n(SmolLM2-135M, 1 epoch of 500 samples)",
        {"merge more orders": [FOUR], "train longer": [LONGER]},
    ),
}
LOOKS = {"merge more orders": (COLOURS[0], "o", -0.03), "train longer": (COLOURS[1], "D", 0.03)}


def points(study: str, models: list[str]) -> list[tuple]:
    """Return label, price, mean score, half-width of its interval and families: of one run, then of each model."""
    results = HERE / study / "results"
    names = {"one run": ONE} | {model: [model] for model in models}
    return price_rows(results, read_documents(results), names)


def main() -> None:
    """Read the results, and draw."""
    curves = {
        (study, name): points(study, models) for study, (_, found) in PANELS.items() for name, models in found.items()
    }

    def paint(figure: Figure) -> None:
        for axes, (study, (title, found)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for name in found:
                (colour, marker, aside), rows = LOOKS[name], curves[study, name]
                prices, scores, halves = ([row[column] for row in rows] for column in (1, 2, 3))
                places = [price + aside for price in prices]
                axes.errorbar(places, scores, yerr=halves, color=colour, marker=marker, capsize=3, label=name)
            axes.set_title(title, loc="left")
            axes.set_xticks([1, 2, 3, 4])
            axes.set_xlabel("price (trainings of one order)")
        figure.axes[0].set_ylabel("score")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)

    columns = ("study", "curve", "model", "price", "score", "half_interval", "families")
    rows = [(*key, *row) for key, found in curves.items() for row in found]
    save_figure(HERE / "decision", (8, 4), paint, columns, rows)


if __name__ == "__main__":
    main()
