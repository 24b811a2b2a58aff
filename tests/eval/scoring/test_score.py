"""Real runs of lm-eval on a tiny model; no network."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.checks import check_evaluation
from ordermerge.eval.scoring.saved import load_rows, load_scores
from ordermerge.eval.scoring.score import ScoringFailed, evaluation_steps, score_models
from ordermerge.eval.scoring.table import Row, markdown_table

pytestmark = pytest.mark.integration


def samples(out: Path, name: str, task: str) -> list[dict]:
    return [json.loads(line) for line in load_scores(out / name).samples[task].read_text().splitlines()]


def row(out: Path, name: str, task: str) -> Row:
    (found,) = [row for row in load_rows(out, [name]) if row.task == task]
    return found


def change(settings: EvaluationSection, **values: object) -> EvaluationSection:
    return settings.model_copy(update=values)


def test_score_models_files_have_the_names_lm_eval_gives(scored, models):
    for name in models:
        names = sorted(re.sub(r"_\d{4}-\d\d-\d\dT.*\.", "_DATE.", path.name) for path in (scored / name).iterdir())
        assert names == [
            "ordermerge_choice.json",
            "ordermerge_echo.json",
            "ordermerge_surprise.json",
            "results_DATE.json",
            "samples_choice_DATE.jsonl",
            "samples_echo_DATE.jsonl",
            "samples_surprise_DATE.jsonl",
        ]


def test_score_models_exact_match_equals_own_count(scored):
    own = [float(s["filtered_resps"][0] == s["doc"]["answer"]) for s in samples(scored, "base", "echo")]
    assert len(own) == 12
    assert row(scored, "base", "echo").value == pytest.approx(sum(own) / len(own))
    assert row(scored, "base", "echo").filter == "first-letter"


def test_score_models_accuracy_and_stderr_equal_own_count(scored):
    own = []
    for sample in samples(scored, "sub0", "choice"):
        scores = [float(response[0]) for response in sample["filtered_resps"]]
        own.append(float(scores.index(max(scores)) == sample["doc"]["label"]))
    mean = sum(own) / len(own)
    found = row(scored, "sub0", "choice")
    assert (found.value, found.n, found.higher_is_better) == (pytest.approx(mean), 12, True)
    assert found.stderr == pytest.approx(math.sqrt(mean * (1 - mean) / (len(own) - 1)))


def test_score_models_perplexity_equals_own_sum(scored):
    own = [float(sample["filtered_resps"][0]) for sample in samples(scored, "sub1", "surprise")]
    found = row(scored, "sub1", "surprise")
    assert found.value == pytest.approx(math.exp(-sum(own) / len(own)))  # each document is one word
    assert found.higher_is_better is False


def test_load_rows_order_of_models_is_the_callers(scored, models):
    assert list(dict.fromkeys(row.model for row in load_rows(scored))) == ["base", "sub0", "sub1"]
    assert [row.model for row in load_rows(scored, ["sub1", "missing", "base"])] == ["sub1"] * 3 + ["base"] * 3


def test_score_models_again_scores_nothing_and_gives_the_same_table(scored, models, settings, capsys):
    before = {path: path.stat().st_mtime_ns for path in scored.rglob("*")}
    rows = score_models(models, settings, scored)
    assert markdown_table(rows) == markdown_table(load_rows(scored, models, settings.tasks))
    assert {path: path.stat().st_mtime_ns for path in scored.rglob("*")} == before
    assert capsys.readouterr().err == (
        "[1/3] base: already scored\n[2/3] sub0: already scored\n[3/3] sub1: already scored\n"
    )


def test_score_models_done_and_given_inputs_needs_no_model(tmp_path, family, short):
    model = shutil.copytree(family[0], tmp_path / "model")
    models, out = {"m": str(model)}, tmp_path / "out"

    def score(weights: str) -> list[Row]:
        steps = evaluation_steps({"m": {"weights": weights}}, short, out)
        return score_models(models, short, out, steps=steps)

    first = score("1234")
    shutil.rmtree(model)
    assert score("1234") == first
    with pytest.raises(UserError, match="the model: 1234, now 5678"):
        score("5678")


def test_score_models_changed_setting_is_refused_by_name(scored, models, settings):
    with pytest.raises(
        UserError, match=r"scored0: evaluation\.num_fewshot: not set, now 2: the scores of base, sub0, sub1 were made"
    ):
        score_models(models, change(settings, num_fewshot=2), scored)


def test_score_models_batch_size_and_device_are_no_inputs(scored, models, settings):
    score_models(models, change(settings, batch_size="1", device=None), scored)


def test_score_models_added_task_is_scored_alone_and_a_removed_one_is_not_shown(tmp_path, models, settings, capsys):
    one, out = {"base": models["base"]}, tmp_path / "out"
    score_models(one, change(settings, tasks=["choice"]), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    capsys.readouterr()
    rows = score_models({**one, "sub0": models["sub0"]}, change(settings, tasks=["echo", "choice"]), out)
    assert [(row.model, row.task) for row in rows] == [
        *[("base", "echo"), ("base", "choice")],
        *[("sub0", "echo"), ("sub0", "choice")],
    ]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"[1/2] base: scoring {models['base']} on echo"
    assert said[2] == f"[2/2] sub0: scoring {models['sub0']}"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((out / "base").glob("samples_choice_*"))) == 1
    rows = score_models(one, change(settings, tasks=["echo"]), out)
    assert [row.task for row in rows] == ["echo"]


def test_score_models_tasks_are_loaded_once_for_all_models(tmp_path, models, settings, monkeypatch):
    from lm_eval.tasks import TaskManager

    loaded = []
    original = TaskManager._load_spec
    monkeypatch.setattr(TaskManager, "_load_spec", lambda self, spec: loaded.append(spec) or original(self, spec))
    score_models(models, settings, tmp_path)
    assert loaded == settings.tasks
    for name in models:  # a task that has scored another model before gives the same samples
        for task in settings.tasks:
            alone = tmp_path / "alone" / name / task
            score_models({name: models[name]}, change(settings, tasks=[task]), alone)
            values = [{key: s[key] for key in ("doc_id", "resps", *s["metrics"])} for s in samples(alone, name, task)]
            together = samples(tmp_path, name, task)
            assert values == [{key: s[key] for key in ("doc_id", "resps", *s["metrics"])} for s in together]


def test_score_models_interrupted_after_scoring_is_scored_again(tmp_path, models, short):
    one = {"base": models["base"]}
    score_models(one, short, tmp_path)
    (tmp_path / "base" / "ordermerge_choice.json").unlink()
    assert len(score_models(one, short, tmp_path)) == 1
    assert len(list((tmp_path / "base").glob("results_*"))) == 2


def test_score_models_changed_data_is_refused_by_name(tmp_path, models, own_tasks, short):
    settings = change(short, include_path=str(own_tasks))
    one = {"base": models["base"]}
    score_models(one, settings, tmp_path / "out")
    data = own_tasks / "data.jsonl"
    data.write_text(data.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"evaluation\.tasks\.choice\.data\.jsonl: its content has changed"):
        score_models(one, settings, tmp_path / "out")


def test_score_models_limit_is_marked(tmp_path, models, short):
    rows = score_models({"base": models["base"]}, change(short, limit=5), tmp_path)
    assert [(row.n, row.limit) for row in rows] == [(5, 5)]
    assert "limit=5: NOT COMPARABLE SCORES" in markdown_table(load_rows(tmp_path))


def test_score_models_group_has_a_row_of_its_own(tmp_path, models, settings):
    rows = score_models({"base": models["base"]}, change(settings, tasks=["both"]), tmp_path)
    assert [(row.task, row.metric) for row in rows] == [("echo", "exact_match"), ("choice", "acc"), ("both", "acc")]


def test_score_models_one_fails_the_others_are_saved(tmp_path, models, short):
    broken = shutil.copytree(models["sub0"], tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 65}))
    with pytest.raises(ScoringFailed, match=r"^broken \(.*broken\) could not be scored: ") as failure:
        score_models({"base": models["base"], "broken": str(broken), "sub1": models["sub1"]}, short, tmp_path / "out")
    assert [row.model for row in failure.value.rows] == ["base", "sub1"]
    assert "Traceback" in (tmp_path / "out" / "broken" / "error.txt").read_text()

    shutil.copy(Path(models["sub0"]) / "config.json", broken)
    rows = score_models({"base": models["base"], "broken": str(broken)}, short, tmp_path / "out")
    assert [row.model for row in rows] == ["base", "broken"]
    assert not (tmp_path / "out" / "broken" / "error.txt").exists()


def test_score_models_missing_model_stops_before_anything_is_scored(tmp_path, models, short):
    missing = tmp_path / "nothing"
    with pytest.raises(UserError, match=rf"{missing}: no such model folder"):
        score_models({"base": models["base"], "nothing": str(missing)}, short, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_score_models_out_is_not_the_models_own_folder(family, short):
    with pytest.raises(UserError, match=r"base is the model's own folder; choose another folder for the results"):
        score_models({"base": str(family[0])}, short, family[0].parent)


def test_score_models_task_that_cannot_be_loaded_stops_before_a_model_is(tmp_path, models, own_tasks, short, capsys):
    (own_tasks / "data.jsonl").unlink()
    with pytest.raises(UserError, match=r"task 'choice' cannot be loaded: FileNotFoundError: .*data\.jsonl"):
        score_models(models, change(short, include_path=str(own_tasks)), tmp_path / "out")
    assert "scoring" not in capsys.readouterr().err


def test_load_scores_damaged_file_names_the_folder(tmp_path, scored):
    folder = shutil.copytree(scored / "base", tmp_path / "base")
    next(folder.glob("results_*.json")).write_text("{")
    with pytest.raises(UserError, match=rf"{folder}/results_.*\.json: damaged \(not valid JSON: .*; delete "):
        load_scores(folder)


def test_check_evaluation_good_settings_have_no_problems(settings, models):
    assert check_evaluation(settings, models) == []


def test_check_evaluation_all_problems_at_once(settings, tmp_path):
    wrong = change(settings, model="hff", limit=0, model_args={"pretrained": "x"}, include_path=str(tmp_path / "no"))
    assert check_evaluation(wrong, {"m": str(tmp_path)}) == [
        "model_args: `pretrained` comes from the list of models; remove it from model_args",
        "model: unknown backend 'hff' (did you mean 'hf'?)",
        "limit: must be above 0; got 0; leave it out to score every document",
        f"include_path: no such folder: {tmp_path / 'no'} (looked in {tmp_path})",
    ]
