"""Merged models against single ones, from files in lm-eval's form, and from lm-eval's own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ordermerge.errors import UserError
from ordermerge.eval.comparison.compare import Roles, compare_models
from ordermerge.eval.comparison.record import Comparison, ComparisonReport, load_comparison, write_comparison
from ordermerge.eval.scoring.score import score_models

RNG = np.random.default_rng(5)
ROLES = Roles(["order_0", "order_1"], ["average", "selected"], "average")
N = 40
SHARES = {"order_0": 0.4, "order_1": 0.6, "average": 0.7, "selected": 0.85}
SCORES = {name: (RNG.random(N) < share).astype(int).tolist() for name, share in SHARES.items()}
assert len({sum(values) for values in SCORES.values()}) == 4  # no ties
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def save(
    out: Path,
    model: str,
    tasks: Scores,
    *,
    groups: Mapping[str, tuple[list[str], float]] | None = None,
    higher: bool | None = True,
    limit: int | None = None,
    salt: str = "",
    reverse: bool = False,
) -> None:
    """Write a model's files: values by task and metric; groups as (sub-tasks, score)."""
    folder = out / model
    folder.mkdir(parents=True)
    groups = groups or {}
    results: dict = {"results": {}, "config": {"limit": limit}, "higher_is_better": {}, "group_subtasks": {}}
    for task, metrics in tasks.items():
        count = len(next(iter(metrics.values())))
        means = {f"{metric},none": sum(values) / len(values) for metric, values in metrics.items()}
        results["results"][task] = {"alias": task, "sample_len": count, **means}
        results["higher_is_better"][task] = dict.fromkeys(metrics, higher)
        lines = [
            {
                "doc_id": document,
                "doc_hash": f"{document}{salt}",
                "filter": "none",
                "metrics": list(metrics),
                **{metric: values[document] for metric, values in metrics.items()},
            }
            for document in range(count)
        ]
        text = "".join(json.dumps(line) + "\n" for line in (reversed(lines) if reverse else lines))
        (folder / f"samples_{task}.jsonl").write_text(text)
    for group, (leaves, score) in groups.items():
        results["results"][group] = {"alias": group, "acc,none": score}
        results["group_subtasks"][group] = leaves
        results["higher_is_better"][group] = {"acc": higher}
    (folder / "results.json").write_text(json.dumps(results))
    marker = {
        "tasks": [*tasks, *groups],
        "results": "results.json",
        "samples": {task: f"samples_{task}.jsonl" for task in tasks},
    }
    (folder / "ordermerge_all.json").write_text(json.dumps(marker))


def save_all(out: Path, **options) -> Path:
    for name, values in SCORES.items():
        save(out, name, {"t": {"acc": values}}, **options)
    return out


def find(report: ComparisonReport, model: str, reference: str, task: str = "t") -> Comparison:
    (found,) = [c for c in report.comparisons if (c.model, c.reference, c.task) == (model, reference, task)]
    return found


def test_every_merged_model_is_compared_with_every_reference(tmp_path):
    report = compare_models(save_all(tmp_path), ROLES)
    best = max(ROLES.single, key=lambda name: sum(SCORES[name]))
    assert [(c.model, c.reference, c.reference_models) for c in report.comparisons] == [
        ("average", "single_mean", ["order_0", "order_1"]),
        ("average", "single_best", [best]),
        ("selected", "single_mean", ["order_0", "order_1"]),
        ("selected", "single_best", [best]),
        ("selected", "weighted_average", ["average"]),
    ]
    assert (report.best_single_by, report.left_out, report.limit) == ("test_score", [], None)


def test_differences_p_values_and_their_correction_are_right(tmp_path):
    report = compare_models(save_all(tmp_path), ROLES)
    selected, average, first, second = (
        np.array(SCORES[name]) for name in ("selected", "average", "order_0", "order_1")
    )
    against_mean = find(report, "selected", "single_mean")
    assert against_mean.difference == pytest.approx((selected - (first + second) / 2).mean())
    assert against_mean.difference == pytest.approx(against_mean.score - against_mean.reference_score)
    against_average = find(report, "selected", "weighted_average")
    gains, losses = int(np.sum(selected > average)), int(np.sum(selected < average))
    assert against_average.p_value == pytest.approx(stats.binomtest(gains, gains + losses).pvalue)
    assert (against_average.documents, against_average.p_value_exact) == (N, True)
    expected = stats.bootstrap((selected - average,), np.mean, method="percentile", random_state=0).confidence_interval
    assert (against_average.low, against_average.high) == pytest.approx(tuple(expected), abs=1.01 / N)
    smallest = min(report.comparisons, key=lambda c: c.p_value)
    assert smallest.p_value_holm == pytest.approx(min(1, 5 * smallest.p_value))
    assert all(c.low <= c.difference <= c.high and c.p_value <= c.p_value_holm for c in report.comparisons)


def test_best_single_follows_the_direction_and_the_validation_loss(tmp_path):
    save_all(tmp_path / "lower", higher=False)
    worst = min(ROLES.single, key=lambda name: sum(SCORES[name]))
    assert find(compare_models(tmp_path / "lower", ROLES), "selected", "single_best").reference_models == [worst]
    chosen = Roles(ROLES.single, ROLES.merged, "average", validation_loss={"order_0": 0.2, "order_1": 0.1})
    report = compare_models(tmp_path / "lower", chosen)
    assert find(report, "selected", "single_best").reference_models == ["order_1"]
    assert report.best_single_by == "validation_loss"
    save_all(tmp_path / "unknown", higher=None)
    unknown = compare_models(tmp_path / "unknown", ROLES)
    assert {c.reference for c in unknown.comparisons} == {"single_mean", "weighted_average"}
    assert [left.reason for left in unknown.left_out] == [
        "lm-eval does not say whether more is better: no best single model"
    ]


def test_the_order_of_lm_evals_lines_does_not_matter(tmp_path):
    expected = compare_models(save_all(tmp_path / "a"), ROLES)
    for name, values in SCORES.items():
        save(tmp_path / "b", name, {"t": {"acc": values}}, reverse=name in ("order_1", "selected"))
    assert compare_models(tmp_path / "b", ROLES).comparisons == expected.comparisons


def test_other_documents_are_not_paired(tmp_path):
    for name, values in SCORES.items():
        save(tmp_path / "hash", name, {"t": {"acc": values}}, salt="x" if name == "selected" else "")
        save(tmp_path / "count", name, {"t": {"acc": values[: 39 if name == "selected" else 40]}})
    for folder, counts in (("hash", ""), ("count", " (40 and 39)")):
        report = compare_models(tmp_path / folder, ROLES)
        assert report.comparisons == []
        assert [left.reason for left in report.left_out] == [
            f"order_0 and selected were scored on different documents of t{counts}"
        ]


def test_a_task_that_a_model_lacks_is_left_out_and_the_others_are_compared(tmp_path):
    for name, values in SCORES.items():
        save(tmp_path, name, {"t": {"acc": values}, **({} if name == "order_1" else {"u": {"acc": values}})})
    report = compare_models(tmp_path, ROLES)
    assert {c.task for c in report.comparisons} == {"t"}
    assert [(left.task, left.reason) for left in report.left_out] == [("u", "order_1 has no such score")]


@pytest.mark.parametrize("shares", [(0.2, 0.8), (0.5, 0.5)], ids=["by size", "alike"])
def test_groups_weigh_their_tasks_as_lm_eval_did(tmp_path, shares):
    parts = {name: (values[:8], values[8:]) for name, values in SCORES.items()}
    for name, (a, b) in parts.items():
        score = shares[0] * np.mean(a) + shares[1] * np.mean(b)
        save(
            tmp_path,
            name,
            {"a": {"acc": a}, "b": {"acc": b}},
            groups={"g": (["inner"], score), "inner": (["a", "b"], score)},
        )
    report = compare_models(tmp_path, ROLES)
    found = find(report, "selected", "weighted_average", "g")
    means = [np.mean(x) - np.mean(y) for x, y in zip(parts["selected"], parts["average"], strict=True)]
    assert found.difference == pytest.approx(np.dot(shares, means))
    assert found.documents == N
    assert found.p_value_exact  # a document weighs a whole number of 1/40 or, in equal tasks, of 1/64
    assert report.subtasks == {"g": ["a", "b"], "inner": ["a", "b"]}
    assert len(report.comparisons) == 5 * 4


def test_a_score_that_is_no_mean_over_documents_is_not_compared(tmp_path):
    for name, values in SCORES.items():
        save(tmp_path, name, {"t": {"acc": values, "f1": values}})
        path = tmp_path / name / "results.json"
        results = json.loads(path.read_text())
        results["results"]["t"]["f1,none"] += 0.01
        path.write_text(json.dumps(results))
    report = compare_models(tmp_path, ROLES)
    assert {c.metric for c in report.comparisons} == {"acc"}
    assert [(left.metric, left.reason) for left in report.left_out] == [
        ("f1", "its value is not a mean over documents")
    ]
    assert {spread.metric for spread in report.spreads} == {"acc", "f1"}


def test_spread_over_orders_and_over_the_seeds_of_a_merge(tmp_path):
    report = compare_models(save_all(tmp_path), Roles(ROLES.single, ROLES.merged, draws=[["average", "selected"]]))
    for spread, models in zip(report.spreads, (ROLES.single, ROLES.merged), strict=True):
        means = [np.mean(SCORES[name]) for name in models]
        assert (spread.models, spread.mean) == (models, pytest.approx(np.mean(means)))
        assert spread.standard_deviation == pytest.approx(abs(means[0] - means[1]) / np.sqrt(2))
    assert [spread.over for spread in report.spreads] == ["orders", "seeds"]


def test_comparison_json_is_read_back_and_names_its_files(tmp_path):
    report = compare_models(save_all(tmp_path, limit=40), ROLES)
    write_comparison(report, tmp_path / "comparison.json")
    assert load_comparison(tmp_path / "comparison.json") == report
    for files in report.files.values():
        for by_task in files.values():
            assert [(tmp_path / name).is_file() for name in by_task.values()] == [True]
    assert (report.limit, report.seed, report.resamples, report.confidence) == (40, 0, 9_999, 0.95)
    assert {"python", "lm_eval", "numpy", "scipy"} <= report.versions.keys()


def test_load_comparison_says_what_is_wrong(tmp_path):
    path = tmp_path / "comparison.json"
    with pytest.raises(UserError, match=r"comparison\.json: no such file; `ordermerge run` writes it"):
        load_comparison(path)
    path.write_text('{"comparisons": 1}')
    with pytest.raises(
        UserError, match=r"damaged \(`comparisons` must be a list; got .*`ordermerge run` writes it anew"
    ):
        load_comparison(path)


def test_damaged_samples_are_named(tmp_path):
    save_all(tmp_path)
    (tmp_path / "order_1" / "samples_t.jsonl").write_text('{"doc_id": 0\n')
    with pytest.raises(UserError, match=r"order_1/samples_t\.jsonl: cannot be read as samples"):
        compare_models(tmp_path, ROLES)


@pytest.mark.integration
def test_lm_evals_own_files(scored, settings, models, tmp_path):
    report = compare_models(scored, Roles(["base", "sub0"], ["sub1"]), settings.tasks)
    assert [(c.task, c.metric, c.filter, c.reference) for c in report.comparisons] == [
        ("echo", "exact_match", "first-letter", "single_mean"),
        ("echo", "exact_match", "first-letter", "single_best"),
        ("choice", "acc", "none", "single_mean"),
        ("choice", "acc", "none", "single_best"),
    ]
    assert [(left.task, left.metric) for left in report.left_out] == [("surprise", "word_perplexity")]
    assert all(c.difference == pytest.approx(c.score - c.reference_score) for c in report.comparisons)
    group = settings.model_copy(update={"tasks": ["both"]})
    score_models(models, group, tmp_path)
    report = compare_models(tmp_path, Roles(["base", "sub0"], ["sub1"]), ["both"])
    assert {(c.task, c.documents) for c in report.comparisons if c.metric == "acc"} == {("choice", 12), ("both", 12)}
