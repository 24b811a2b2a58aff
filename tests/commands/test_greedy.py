"""Greedy choice on small tables of scores: the published loop, exhaustively, and its laws."""

import itertools
import math

import pytest

from ordermerge.commands.greedy import Trial, greedy, single_score
from ordermerge.errors import UserError
from ordermerge.eval.scoring.table import Row

NAMES = ("a", "b", "c")
SUBSETS = [frozenset(subset) for size in (1, 2, 3) for subset in itertools.combinations(NAMES, size)]


def as_published(table: dict[frozenset[str], float]) -> frozenset[str]:
    """Recipe 1 of Wortsman et al., with > for its >=."""
    soup: frozenset[str] = frozenset()
    for name in sorted(NAMES, key=lambda name: table[frozenset(name)], reverse=True):
        if not soup or table[soup | {name}] > table[soup]:
            soup |= {name}
    return soup


def test_greedy_every_table_of_three_models_and_three_scores():
    for values in itertools.product((0, 1, 2), repeat=len(SUBSETS)):
        table = dict(zip(SUBSETS, values, strict=True))
        calls = []

        def score(ingredients, table=table, calls=calls):
            calls.append(ingredients)
            return table[frozenset(ingredients)]

        trials = greedy(NAMES, score)
        kept = [trial for trial in trials if trial.kept]
        assert frozenset(kept[-1].ingredients) == as_published(table)
        assert kept[-1].score >= max(table[frozenset(name)] for name in NAMES)
        assert all(after.score > before.score for before, after in itertools.pairwise(kept))
        assert all(after.ingredients[:-1] == before.ingredients for before, after in itertools.pairwise(kept))
        assert calls[:3] == [(name,) for name in NAMES]
        assert len(calls) == len(set(calls)) == len(trials) == 5
        assert {trial.ingredients: trial.score for trial in trials} == {c: table[frozenset(c)] for c in calls}


def test_greedy_ties_keep_the_smaller_soup_and_the_first_listed():
    assert greedy(["a", "b"], lambda _: 1.0) == [
        Trial(("a",), 1.0, True),
        Trial(("b",), 1.0, False),
        Trial(("a", "b"), 1.0, False),
    ]


def test_greedy_nan_is_worst_and_never_kept():
    scores = {("a",): math.nan, ("b",): 1.0, ("c",): 2.0, ("c", "b"): math.nan, ("c", "a"): 3.0}
    trials = greedy(NAMES, lambda ingredients: scores[ingredients])
    assert [trial.ingredients for trial in trials] == [("c",), ("b",), ("a",), ("c", "b"), ("c", "a")]
    assert [trial.ingredients for trial in trials if trial.kept] == [("c",), ("c", "a")]


def test_greedy_one_model_is_its_own_soup():
    assert greedy(["a"], lambda _: math.nan)[-1].kept


def row(task: str, metric: str, value: float, higher: bool | None = True, filter_name: str = "none") -> Row:
    return Row("m", task, metric, filter_name, value, None, higher, 10)


def test_single_score_is_the_mean_over_the_tasks_asked_for():
    rows = [row("t", "acc", 0.2), row("u", "acc", 0.6), row("member", "acc", 0.9)]
    assert single_score(rows, ["t", "u"], None) == (pytest.approx(0.4), True)
    assert single_score([row("member", "bpb", 2.0, False)], ["group"], "bpb") == (2.0, False)
    two = [row("t", "em", 0.1, filter_name="strict"), row("t", "em", 0.3, filter_name="flexible")]
    assert single_score(two, ["t"], "em,flexible") == (0.3, True)


@pytest.mark.parametrize(
    ("rows", "metric", "message"),
    [
        ([row("t", "acc", 0.2), row("t", "f1", 0.2)], None, "every task has: acc,none or f1,none; none was named"),
        ([row("t", "acc", 0.2), row("t", "f1", 0.2)], "acx", "every task has: acc,none or f1,none; got 'acx'"),
        ([row("t", "em", 0.2, filter_name=name) for name in "ab"], "em", "every task has: em,a or em,b; got 'em'"),
        ([row("t", "acc", 0.2), row("u", "f1", 0.2)], "acc", "one score that every task has"),
        ([row("t", "acc", 0.2, None)], None, "acc,none: the tasks do not say, or not alike, whether higher is better"),
        ([row("t", "acc", 0.2), row("u", "acc", 0.2, False)], None, "or not alike"),
    ],
)
def test_single_score_that_is_not_single_is_refused(rows, metric, message):
    with pytest.raises(UserError, match=message):
        single_score(rows, ["t", "u"], metric)
