"""The table of prices and the headline: what is marked best of equal price, and what the numbers support."""

import pytest

from ordermerge.commands.price_table import PricedModel, best_of_price, headline, price_panel, price_table
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.run_figures import PricePanel
from ordermerge.eval.scoring.table import Row

SCORES = {"base": 0.2, "order_0": 0.70, "order_1": 0.80, "longer": 0.85, "average": 0.90, "selected": 0.88}
MODELS = [
    PricedModel("base", "base model", 0, 0, ["base"]),
    PricedModel("order_0", "single runs", 1, 100, ["order_0"]),
    PricedModel("order_1", "single runs", 1, 100, ["order_1"]),
    PricedModel("mean of single runs", "means of runs", 1, 100, ["order_0", "order_1"]),
    PricedModel("longer", "controls", 2, 200, ["longer"]),
    PricedModel("average", "merges", 2, 200, ["average"]),
    PricedModel("selected", "merges", 2, 200, ["selected"]),
]


def rows() -> list[Row]:
    return [Row(name, "sums", "acc", "none", score, 0.02, True, 500) for name, score in SCORES.items()]


def held(model: str, reference: str, against: list[str], difference: float, p_value: float) -> Comparison:
    return Comparison(
        *("sums", "acc", "none", True, 500, model, reference, against),
        *(SCORES[model], SCORES[model] - difference, difference, difference - 0.02, difference + 0.02),
        *(p_value, p_value, False, 0.04),
    )


def report(*more: Comparison) -> ComparisonReport:
    singles = [held("average", "single_mean", ["order_0", "order_1"], 0.15, 0.001)]
    return ComparisonReport([*singles, *more], [], [], "test_score", None, 0.95, 0.8, 9999, 0, {}, {}, {}, {})


def panel() -> PricePanel:
    return price_panel(rows(), MODELS)


def test_intervals_are_over_documents_or_runs() -> None:
    found = {one.model: one for one in panel().scores}
    assert found["average"].interval == pytest.approx((0.90 - 1.96 * 0.02, 0.90 + 1.96 * 0.02), abs=1e-4)
    # Student's t of 1 degree of freedom: 12.706 x the standard error .05.
    assert found["mean of single runs"].interval == pytest.approx(
        (0.75 - 12.706 * 0.05, 0.75 + 12.706 * 0.05), abs=1e-3
    )


def test_best_of_equal_price_is_marked_and_told_apart_only_by_a_comparison() -> None:
    assert best_of_price(panel(), report()) == {"order_1": "best, not told apart", "average": "best, not told apart"}
    apart = report(held("selected", "weighted_average", ["average"], -0.02, 0.01))
    assert best_of_price(panel(), apart)["average"] == "best, told apart from selected"


def test_table_has_price_samples_and_the_mark() -> None:
    table = price_table([panel()], MODELS, report())
    assert "| average | 200 | 2 | **0.900 (0.861 to 0.939)** | best, not told apart |" in table
    assert "| longer | 200 | 2 | 0.850 (0.811 to 0.889) |  |" in table


@pytest.mark.parametrize(
    ("difference", "p_value", "against", "words"),
    [
        (0.05, 0.001, ["longer", "longer_1"], "worth its price here, against `longer`, the mean of 2 runs"),
        (-0.05, 0.001, ["longer", "longer_1"], "Supported: `longer`, the mean of 2 runs in place of the merge"),
        (0.01, 0.5, ["longer", "longer_1"], "no choice between the merge and `longer`"),
        (0.05, 0.001, ["longer"], "documents alone do not tell one run from others"),
    ],
)
def test_headline_says_what_the_numbers_support(
    difference: float, p_value: float, against: list[str], words: str
) -> None:
    text = "\n".join(headline([panel()], MODELS, report(held("average", "control", against, difference, p_value))))
    assert "average +0.150 (+0.130 to +0.170) over the mean single run (0.750, price 1)" in text
    assert words in text


def test_headline_without_a_control_says_what_was_not_measured() -> None:
    assert "was not trained" in "\n".join(headline([panel()], MODELS, report()))
