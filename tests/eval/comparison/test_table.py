import io

import pytest

from ordermerge.eval.comparison.record import Comparison, ComparisonReport, LeftOut, Spread
from ordermerge.eval.comparison.table import comparison_notes, markdown_comparison, print_comparison


def comparison(model: str, reference: str, models: list[str], **values: object) -> Comparison:
    known = {
        **{"task": "t", "metric": "acc", "filter": "none", "higher_is_better": True, "documents": 1319},
        **{"score": 0.954, "reference_score": 0.775, "difference": 0.179, "low": 0.151, "high": 0.2075},
        **{"p_value": 2e-9, "p_value_holm": 4e-9, "p_value_exact": True, "detectable": 0.0402},
    }
    return Comparison(model=model, reference=reference, reference_models=models, **{**known, **values})


def report(**values: object) -> ComparisonReport:
    long = "parameter_selection_resample"
    known = {
        "comparisons": [
            comparison("average", "single_mean", ["order_0", "order_1"]),
            comparison("average", "single_best", ["order_1"], reference_score=0.804),
            comparison(long, "single_mean", ["order_0", "order_1"]),
            comparison(
                *(long, "weighted_average", ["average"]),
                **{"difference": -0.0012, "low": -0.01, "high": 0.0, "p_value": 0.0401, "p_value_holm": 1.0},
                **{"reference_score": 0.954, "detectable": None},
            ),
        ],
        "spreads": [Spread("t", "acc", "none", "orders", ["order_0", "order_1"], 0.775, 0.0412)],
        "left_out": [LeftOut("w", "perplexity", "strict", "its value is not a mean over documents")],
        "best_single_by": "test_score",
        "limit": None,
        **{"confidence": 0.95, "power": 0.8, "resamples": 9_999, "seed": 0},
        **{"methods": {}, "files": {}, "subtasks": {}, "versions": {}},
    }
    return ComparisonReport(**{**known, **values})


def test_markdown_comparison_exact_text():
    tables = markdown_comparison(report()).split("Differences: ")[0]
    assert tables == (
        "### t acc ↑, 1,319 documents\n\n"
        "Against the mean of the single models (0.775):\n\n"
        "| model | difference | 95 % interval | p | p (Holm) | detectable |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| average | +0.179 | +0.151 to +0.207 | <0.001 | <0.001 | 0.040 |\n"
        "| parameter_selection_resample | +0.179 | +0.151 to +0.207 | <0.001 | <0.001 | 0.040 |\n\n"
        "Against the best single model, order_1 (0.804):\n\n"
        "| model | difference | 95 % interval | p | p (Holm) | detectable |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| average | +0.179 | +0.151 to +0.207 | <0.001 | <0.001 | 0.040 |\n\n"
        "Against the weighted average, average (0.954):\n\n"
        "| model | difference | 95 % interval | p | p (Holm) | detectable |\n"
        "| --- | ---: | ---: | ---: | ---: | --- |\n"
        "| parameter_selection_resample | \u22120.001 | \u22120.010 to 0.000 | 0.040 | 1.000 |  |\n\n"
    )


def test_comparison_notes_say_methods_choice_spread_and_what_is_left_out():
    first, second, *others = comparison_notes(report())
    assert "bootstrap over documents (9,999 resamples, seed 0)" in first
    assert "Holm: corrected for all 4 comparisons" in first
    assert second == "They tell what other documents would change, not what other training orders would."
    assert others == [
        "Detectable: the smallest difference that so many documents show with a chance of 80 %, at 5 % and before "
        "correction; here 0.040 to 0.040.",
        "The best single model was chosen by its score on these same documents, which favours it.",
        "t acc over 2 orders (order_0, order_1): mean 0.775, standard deviation 0.041.",
        "w perplexity strict is not compared: its value is not a mean over documents.",
    ]
    assert "The best single model was chosen by its validation loss." in comparison_notes(
        report(best_single_by="validation_loss")
    )
    assert comparison_notes(report(comparisons=[], spreads=[], left_out=[])) == []


def test_limit_is_marked_in_every_heading_and_beneath():
    text = markdown_comparison(report(limit=5))
    assert "### t acc ↑, 1,319 documents, limit=5: NOT COMPARABLE SCORES\n" in text
    assert "limit=5: NOT COMPARABLE SCORES, only a part of each task was scored." in text


@pytest.mark.parametrize("terminal", [True, False])
def test_print_comparison_has_a_line_for_each_model_at_80_columns(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    print_comparison(report(), file)
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert "Against the best single model, order_1 (0.804):" in lines
    assert lines.count("t acc ↑, 1,319 documents") == 1
    assert "parameter_selection_resample -0.001 -0.010 to 0.000 1.000" in lines
    assert lines.count("average +0.179 +0.151 to +0.207 <0.001") == 2
