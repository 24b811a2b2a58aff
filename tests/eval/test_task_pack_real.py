"""The task files on real data and a real pretrained model, where they are at hand beside the checkout."""

import json
import math
from pathlib import Path

import pytest
import transformers

from ordermerge.config.schema import EvaluationSection
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.scoring.score import score_models
from ordermerge.eval.scoring.tasks import find_tasks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
GSM8K = SHARED / "gsm8k" / "test.jsonl"
GPTEACHER = SHARED / "gpteacher" / "roleplay-simple-deduped-roleplay-instruct.json"
NOVEL = SHARED / "novels" / "Austen_Emma.txt"
MODEL = SHARED / "models" / "tinystories-656k"

pytestmark = [
    pytest.mark.integration,
    *(pytest.mark.skipif(not path.exists(), reason=f"no {path}") for path in (GSM8K, GPTEACHER, NOVEL, MODEL)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tinystories")
    transformers.AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return str(folder)


def ask(task: str, data: Path, **values: object) -> EvaluationSection:
    metadata = {"data_files": str(data), **values.pop("metadata", {})}
    return EvaluationSection(tasks=[task], metadata=metadata, device="cpu", batch_size=8, **values)


def test_gsm8k_reference_answers_are_right_and_each_others_almost_never():
    manager, _ = find_tasks(ask("ordermerge_final_answer", GSM8K))
    task = manager.load(["ordermerge_final_answer"])["tasks"]["ordermerge_final_answer"]
    task.build_all_requests()
    answers = [instance.doc["answer"] for instance in task.instances]
    assert len(answers) == 1319
    for shift, least, most in ((0, 1.0, 1.0), (1, 0.0, 0.05)):
        for instance, answer in zip(task.instances, answers[shift:] + answers[:shift], strict=True):
            instance.resps = [answer]
        task.apply_filters()
        for kind in ("strict-match", "flexible-extract"):
            scores = [task.process_results(i.doc, [i.filtered_resps[kind]])["exact_match"] for i in task.instances]
            assert least <= sum(scores) / len(scores) <= most, (shift, kind)


def test_gsm8k_is_generated_and_scored(tmp_path, model):
    settings = ask("ordermerge_final_answer", GSM8K, limit=4, gen_kwargs={"max_gen_toks": 8})
    rows = score_models({"m": model}, settings, tmp_path)
    assert {(row.filter, row.n, row.limit) for row in rows} == {("strict-match", 4, 4.0), ("flexible-extract", 4, 4.0)}
    assert all(row.value == 0 for row in rows)  # the model tells stories; its vocabulary has no "#"


def test_real_completions_are_likelier_after_their_own_prompts(tmp_path, model):
    records = [r for r in json.loads(GPTEACHER.read_text()) if 0 < len(r["response"]) < 600][:24]
    fields = {"prompt": "{{instruction}}\n{{input}}\n", "completion": "{{response}}"}
    loss = {}
    for name, shift in (("own", 0), ("other", 1)):
        path = tmp_path / f"{name}.json"
        responses = [record["response"] for record in records]
        moved = responses[shift:] + responses[:shift]
        path.write_text(json.dumps([{**r, "response": text} for r, text in zip(records, moved, strict=True)]))
        settings = ask("ordermerge_completion", path, metadata={"fields": fields})
        score_models({"m": model}, settings, tmp_path / name)
        loss[name] = {row.metric: row.value for row in load_rows(tmp_path / name)}
    assert loss["own"]["loglikelihood"] > loss["other"]["loglikelihood"]
    assert 0 < loss["own"]["bits_per_byte"] < loss["other"]["bits_per_byte"] < 8


def test_novel_is_read_as_one_text(tmp_path, model):
    excerpt = tmp_path / "emma.txt"
    excerpt.write_text(NOVEL.read_text()[:4000])
    rows = score_models({"m": model}, ask("ordermerge_text", excerpt), tmp_path / "out")
    assert {row.n for row in rows} == {1}
    by = {row.metric: row.value for row in rows}
    assert 1 < by["bits_per_byte"] < 8  # 8: no better than uniform over bytes
    assert math.log2(by["byte_perplexity"]) == pytest.approx(by["bits_per_byte"])
