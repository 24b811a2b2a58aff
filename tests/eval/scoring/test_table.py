import io

import numpy as np
import pytest

from ordermerge.eval.scoring.table import Row, markdown_table, notes, print_table, result_rows

RESULTS = {
    "results": {
        "gsm8k": {
            "name": "gsm8k",
            "alias": "gsm8k",
            "sample_len": 400,
            "exact_match,strict-match": np.float64(0.8525),
            "exact_match_stderr,strict-match": np.float64(0.0107),
            "exact_match,flexible": 0.9,
            "exact_match_stderr,flexible": 0.02,
        },
        "wiki": {"alias": "wiki", "sample_len": 62, "perplexity,none": 12345.6, "perplexity_stderr,none": "N/A"},
        "group": {"alias": " group", "sample_len": 462, "acc,none": 0.5, "sample_count": {"acc,none": 300}},
        "group_without_score": {"alias": "x", "name": "x"},
    },
    "higher_is_better": {
        "gsm8k": {"exact_match": True},
        "wiki": {"perplexity": False},
        "group": {"acc": None},
    },
    "config": {"limit": None},
}


def test_result_rows_every_kind_of_score():
    assert result_rows(RESULTS, "m") == [
        Row("m", "gsm8k", "exact_match", "strict-match", 0.8525, 0.0107, True, 400),
        Row("m", "gsm8k", "exact_match", "flexible", 0.9, 0.02, True, 400),
        Row("m", "wiki", "perplexity", "none", 12345.6, None, False, 62),
        Row("m", "group", "acc", "none", 0.5, None, None, 300),
    ]


def test_result_rows_numpy_scalars_become_floats():
    assert {type(row.value) for row in result_rows(RESULTS, "m")} == {float}


def test_markdown_table_exact_text():
    other = Row("other|model", "gsm8k", "exact_match", "strict-match", 0.0004, 0.0, True, 400)
    assert markdown_table([*result_rows(RESULTS, "base"), other]) == (
        "| model | gsm8k exact_match strict-match ↑ | gsm8k exact_match flexible ↑ | wiki perplexity ↓ | group acc |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| base | **0.853 ± 0.011** | 0.900 ± 0.020 | 1.23e+04 | 0.500 |\n"
        "| other\\|model | 0.0004 ± 0.000 |  |  |  |\n"
        "\n"
        "± is lm-eval's standard error.\n"
        "\n"
        "Bold: the best score of its column, which by itself does not say that others are worse.\n"
    )


def test_markdown_table_without_rows_is_a_table():
    assert markdown_table([]).startswith("| model |\n| --- |\n")


@pytest.mark.parametrize("limit", [5, 5.0, np.int64(5)])
def test_notes_limit_is_loud_and_names_the_models(limit):
    limited = result_rows({**RESULTS, "config": {"limit": limit}}, "m")
    whole = result_rows(RESULTS, "whole")
    expected = "limit=5: NOT COMPARABLE SCORES, only a part of each task was scored (m)."
    assert expected in notes([*limited, *whole])
    assert expected in markdown_table([*limited, *whole])


def test_print_table_into_a_pipe_cuts_nothing():
    name = "a_model_name_of_" + "many_words_" * 12
    rows = [Row(name, f"task_{i}", "acc", "none", 0.5, 0.1, True, 10, limit=3) for i in range(8)]
    file = io.StringIO()
    print_table(rows, file)
    text = file.getvalue()
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    assert line.count("0.500 ± 0.100") == 8
    assert all(f"task_{i} acc ↑" in text for i in range(8))
    assert "limit=3: NOT COMPARABLE SCORES" in text
    assert "\x1b" not in text


def test_print_table_in_a_narrow_terminal_moves_whole_columns_into_further_tables(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    rows = [
        Row(model, f"worded_arithmetic_{i}", "exact_match", "strict-match", 0.5, 0.1, True, 10)
        for model in ("base", "parameter_selection_resample")
        for i in range(3)
    ]
    file = io.StringIO()
    print_table(rows, file)
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert [line for line in lines if line.startswith("parameter")] == [
        "parameter_selection_resample 0.500 ± 0.100 0.500 ± 0.100",
        "parameter_selection_resample 0.500 ± 0.100",
    ]
    assert "worded_arithmetic_2" in lines
    assert "model strict-match ↑" in lines
    assert max(map(len, file.getvalue().splitlines())) <= 80


def test_print_table_takes_brackets_as_text():
    file = io.StringIO()
    print_table([Row("[red]m[/red]", "t", "acc", "none", 0.5, None, None, 1)], file)
    assert "[red]m[/red]" in file.getvalue()
