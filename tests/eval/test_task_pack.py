"""The task files for users' own data: what they read, what they score, and how a user's own file builds on them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.checks import check_evaluation
from ordermerge.eval.scoring.harness import load_tasks
from ordermerge.eval.scoring.saved import load_rows, load_scores
from ordermerge.eval.scoring.score import score_models
from ordermerge.eval.scoring.task_files import local_identity
from ordermerge.eval.scoring.tasks import find_tasks
from ordermerge.eval.task_data import PACK, completion_scores, load

RECORDS = [
    {"question": f"{a}+{b}=", "answer": f"{a}, {b}\n#### {a + b}", "prompt": "abc", "completion": "d" * (a + 1)}
    for a in range(3)
    for b in range(3)
]


def write(path: Path, records: list[dict] = RECORDS) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def ask(task: str, **values: object) -> EvaluationSection:
    return EvaluationSection(tasks=[task], device="cpu", batch_size=4, **values)


def task_of(settings: EvaluationSection):
    ((name, loaded),) = load_tasks(*find_tasks(settings), unsafe_code=False).items()
    return loaded.items[name]


def test_pack_is_installed_whole():
    assert {path.name for path in PACK.iterdir()} == {
        "README.md",
        "completion.yaml",
        "final_answer.yaml",
        "text.yaml",
    }


def test_final_answer_is_lm_evals_gsm8k_but_for_the_data():
    import lm_eval.tasks

    own = yaml.load((PACK / "final_answer.yaml").read_text().replace("!function ", ""), yaml.SafeLoader)
    theirs = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml").read_text())
    data = {"task", "tag", "dataset_path", "dataset_name", "training_split", "fewshot_split", "num_fewshot", "metadata"}
    same = [key for key in theirs if key not in {*data, "repeats"}]
    assert {key: own[key] for key in same} == {key: theirs[key] for key in same}
    assert set(own) - set(theirs) == {"custom_dataset"}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("So 2 + 2.\n#### 1,234", 1, 1),
        ("#### $1234", 0, 1),
        ("It is 1234.", 0, 1),
        ("#### 1234.", 1, 1),
        ("#### 1235", 0, 0),
        ("#### -1234", 0, 0),
        ("nothing", 0, 0),
    ],
)
def test_final_answer_normalises_numbers_as_gsm8k_does(tmp_path, text, strict, flexible):
    data = write(tmp_path / "d.jsonl", [{"question": "?", "answer": "Well.\n#### 1,234"}])
    task = task_of(ask("ordermerge_final_answer", metadata={"data_files": data}))
    task.build_all_requests()
    (instance,) = task.instances
    assert instance.args[0] == "Question: ?\nAnswer:"
    instance.resps = [text]
    task.apply_filters()
    scores = {
        name: task.process_results(instance.doc, [answer])["exact_match"]
        for name, answer in instance.filtered_resps.items()
    }
    assert scores == {"strict-match": strict, "flexible-extract": flexible}


@pytest.mark.integration
def test_completion_scores_equal_the_models_own_log_probabilities(tmp_path, family):
    import torch
    import transformers

    data = write(tmp_path / "d.jsonl")
    settings = ask("ordermerge_completion", metadata={"data_files": data})
    rows = {row.metric: row for row in score_models({"m": str(family[1])}, settings, tmp_path / "out")}
    model = transformers.AutoModelForCausalLM.from_pretrained(family[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(family[1])
    own = []
    for record in RECORDS:
        tokens = tokenizer(record["prompt"] + record["completion"], return_tensors="pt").input_ids
        with torch.no_grad():
            chances = model(tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])
        own.append(float(chances[len(record["prompt"]) - 1 :].sum()))
    size = sum(len(record["completion"]) for record in RECORDS)
    assert rows["loglikelihood"].value == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert rows["loglikelihood"].higher_is_better is True
    assert rows["bits_per_byte"].value == pytest.approx(-sum(own) / size / math.log(2), rel=1e-5)
    assert rows["byte_perplexity"].value == pytest.approx(math.exp(-sum(own) / size), rel=1e-5)
    lines = load_scores(tmp_path / "out" / "m").samples["ordermerge_completion"].read_text().splitlines()
    assert [json.loads(line)["loglikelihood"] for line in lines] == pytest.approx(own, rel=1e-5)


def test_completion_scores_count_bytes():
    assert completion_scores({"completion": "né"}, [(-1.5, False)]) == {
        "loglikelihood": -1.5,
        "bits_per_byte": (-1.5, 3),
        "byte_perplexity": (-1.5, 3),
    }


@pytest.mark.integration
def test_text_task_reads_whole_text_files(tmp_path, family):
    (tmp_path / "a.txt").write_text("abc def\nabc")
    (tmp_path / "b.txt").write_text("cab")
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    rows = score_models({"m": str(family[0])}, ask("ordermerge_text", metadata={"data_files": files}), tmp_path / "out")
    assert {row.metric: row.n for row in rows} == {"word_perplexity": 2, "byte_perplexity": 2, "bits_per_byte": 2}
    by = {row.metric: row.value for row in rows}
    assert math.log2(by["byte_perplexity"]) == pytest.approx(by["bits_per_byte"])
    assert by["word_perplexity"] == pytest.approx(by["byte_perplexity"] ** (14 / 4))  # 14 bytes, 4 words


@pytest.mark.parametrize("form", ["include", "copy"])
def test_own_task_file_includes_or_copies_ours(tmp_path, monkeypatch, form):
    folder = tmp_path / "tasks"
    folder.mkdir()
    write(folder / "own.jsonl", [{"frage": "1+1", "result": 2}])
    own = {
        "task": "my_sums",
        "dataset_kwargs": {"data_files": "own.jsonl", "fields": {"answer": "#### {{result}}"}},
        "doc_to_text": "{{frage}}\n",
    }
    if form == "include":
        (folder / "my_sums.yaml").write_text(yaml.safe_dump({"include": str(PACK / "final_answer.yaml"), **own}))
    else:
        lines = (PACK / "final_answer.yaml").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(("task:", "doc_to_text:"))]
        (folder / "my_sums.yaml").write_text("".join(kept) + yaml.safe_dump(own))
    monkeypatch.chdir(tmp_path)  # the data are found beside the task file
    settings = ask("my_sums", include_path="tasks")
    task = task_of(settings)
    doc = task.eval_docs[0]
    assert (task.doc_to_text(doc), task.doc_to_target(doc)) == ("1+1\n", "#### 2")
    assert check_evaluation(settings) == []
    assert "own.jsonl" in local_identity(settings)["my_sums"]["my_sums"]


def test_few_examples_never_show_the_document_itself(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"question": name, "answer": f"#### {name}"} for name in "ab"])
    task = task_of(ask("ordermerge_final_answer", metadata={"data_files": data}))
    task.set_fewshot_seed(seed=1)
    for doc, other in zip(task.eval_docs, "ba", strict=True):
        prompt = task.fewshot_context(doc, 1)
        assert prompt == f"Question: {other}\nAnswer: #### {other}\n\nQuestion: {doc['question']}\nAnswer:"


def test_completion_follows_its_prompt_at_once_in_examples_too(tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": f"{name}:", "completion": name} for name in "ab"])
    task = task_of(ask("ordermerge_completion", metadata={"data_files": data}))
    task.set_fewshot_seed(seed=1)
    assert task.fewshot_context(task.eval_docs[0], 1) == "b:b\n\na:"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_load_keeps_texts_as_they_are_in_every_format(tmp_path, suffix):
    records = [{"a": "007", "b": "2020-01-01"}, {"a": "NA", "b": "2020-01-02"}]
    path = tmp_path / f"d{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(records))
    elif suffix == ".jsonl":
        write(path, records)
    elif suffix == ".csv":
        path.write_text("a,b\n007,2020-01-01\nNA,2020-01-02\n")
    else:
        Dataset.from_list(records).to_parquet(path)
    assert load(data_files={"test": str(path), "train": [str(path)] * 2})["train"].to_list() == records * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl: line 2 is not valid JSON"),
        ("d.jsonl", "[1]\n", "record 0 must be an object with named fields"),
        ("d.json", "[{]", r"not valid JSON: line 1 column 3: Expecting property name"),
        ("d.json", '"text"', "must be a list of records; got str"),
        ("d.json", "[]", "holds no records"),
        ("d.parquet", "x", "not a valid parquet file"),
        ("d.csv", "a,b\n1,2\n1,2,3\n", r"line 3 \(record 1\) has 3 values where the header has 2"),
        ("d.xml", "", r"must be a \.json, \.jsonl, \.csv, \.parquet, \.txt file"),
    ],
)
def test_load_refuses_bad_files_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load(data_files=str(tmp_path / name))


def test_load_keeps_each_records_own_fields_and_types(tmp_path):
    records = [{"a": 1, "tools": {"x": 1}}, {"a": 2.5, "tools": {"y": None}}, {"b": ["u"], "a": "007"}]
    loaded = load(data_files=write(tmp_path / "d.JSONL", records))["test"].to_list()
    assert [{key: value for key, value in row.items() if value is not None} for row in loaded] == records
    assert [type(row["a"]) for row in loaded] == [int, float, str]


def test_load_without_a_file_or_field_says_what_is_there(tmp_path):
    with pytest.raises(UserError, match="no data: give `data_files`"):
        load()
    with pytest.raises(UserError, match=rf"none\.jsonl: no such file \(looked in {tmp_path}\)"):
        load(data_files=str(tmp_path / "none.jsonl"))
    data = write(tmp_path / "d.jsonl", [{"a": 1, "b": 2}])
    with pytest.raises(UserError, match=r"`fields`: 'c' is undefined; its records have the fields a, b"):
        load(data_files=data, fields={"x": "{{c}}"})


def test_check_evaluation_missing_data_are_found_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (problem,) = check_evaluation(ask("ordermerge_text"))
    assert problem.startswith("task 'ordermerge_text' needs `data_files`")
    (problem,) = check_evaluation(ask("ordermerge_text", metadata={"data_files": {"test": ["x.txt"]}}))
    assert problem == f"task 'ordermerge_text': no such data file: x.txt (looked in {PACK}, {tmp_path})"


def test_local_identity_follows_the_data_not_their_place(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before, moved, changed = (
        local_identity(ask("ordermerge_text", metadata={"data_files": write(tmp_path / name, records)}))
        for name, records in (("a/d.jsonl", [{"text": "a"}]), ("b/d.jsonl", [{"text": "a"}]), ("a/d.jsonl", RECORDS))
    )
    assert before == moved != changed


@pytest.mark.integration
def test_stock_lm_eval_uses_the_pack(tmp_path, family):
    write(tmp_path / "d.jsonl")
    shown = subprocess.run([sys.executable, "-m", "ordermerge", "tasks"], capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip()) == PACK
    command = [
        *(Path(sys.executable).with_name("lm_eval"), "run", "--include_path", shown.stdout.strip()),
        *("--tasks", "ordermerge_completion", "--metadata", '{"data_files": "d.jsonl"}', "--device", "cpu"),
        *("--model_args", f"pretrained={family[0]}", "--output_path", "out"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(results.read_text())["results"]["ordermerge_completion"]
    settings = ask("ordermerge_completion", metadata={"data_files": str(tmp_path / "d.jsonl")})
    score_models({"m": str(family[0])}, settings, tmp_path / "own")
    for row in load_rows(tmp_path / "own"):
        assert theirs[f"{row.metric},none"] == pytest.approx(row.value, rel=1e-5)
