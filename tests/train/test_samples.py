"""Data: what is written in the file is what is learnt, and every sample knows its row."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.samples import check_data, load_samples

Write = Callable[..., Experiment]
ROWS = [{"q": "a b", "a": "007"}, {"q": 'say "hi", you', "a": "NA"}, {"q": "one\u2028line", "a": "2020-01-01"}]


def _write_file(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _read(write_experiment: Write, name: str, **data: Any):
    return load_samples(write_experiment(data={"train": name, "prompt": "{q}=", "completion": "{a}", **data}))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_kind_of_file_gives_the_same_samples(suffix: str, tmp_path: Path, write_experiment: Write):
    _write_file(tmp_path / f"d{suffix}", ROWS)
    samples = _read(write_experiment, f"d{suffix}")
    assert samples.train.to_list() == [
        {"prompt": row["q"] + "=", "completion": row["a"], "sample_id": i} for i, row in enumerate(ROWS)
    ]
    assert samples.validation is None
    assert samples.empty == 0


def test_json_lines_may_be_named_json(tmp_path: Path, write_experiment: Write):
    (tmp_path / "d.json").write_text('{"q": "x", "a": 1}\n\n{"q": "y", "a": 2.5}\n', encoding="utf-8")
    assert _read(write_experiment, "d.json").train["completion"][:] == ["1", "2.5"]


def test_one_record_may_be_a_file(tmp_path: Path, write_experiment: Write):
    (tmp_path / "d.json").write_text('{"q": "x", "a": "y", "more": {"z": [1]}}', encoding="utf-8")
    assert _read(write_experiment, "d.json").train["completion"][:] == ["y"]


def test_a_field_may_be_long(tmp_path: Path, write_experiment: Write):
    limit = csv.field_size_limit()
    (tmp_path / "d.CSV").write_text('q,a\nx,"' + "mat " * 40_000 + '"\n', encoding="utf-8")
    assert _read(write_experiment, "d.CSV").train["completion"][:] == ["mat " * 40_000]
    assert csv.field_size_limit() == limit


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path, write_experiment: Write):
    (tmp_path / "d.csv").write_text("q,a\r\nx,1\r\n", encoding="utf-8-sig")
    assert _read(write_experiment, "d.csv").train["prompt"][:] == ["x="]


def test_templates_write_braces_and_numbers(write_experiment: Write):
    data = {"prompt": "{{{n}}} {n} {my field}:", "completion": "{f}"}
    samples = load_samples(write_experiment(lines=[{"n": 3, "my field": "m", "f": 0.5}], data=data))
    assert samples.train.to_list() == [{"prompt": "{3} 3 m:", "completion": "0.5", "sample_id": 0}]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question.__class__}", r"`data.prompt`: .* may name plain fields only.*got \{question.__class__\}"),
        ("{question[0]}", r"got \{question\[0\]\}"),
        ("{question!r}", r"got \{question!r\}"),
        ("{question:>9}", r"got \{question:>9\}"),
        ("{}", r"may name plain fields only"),
        ("{question", r"`data.prompt`: template '\{question' has unmatched braces"),
    ],
)
def test_a_template_takes_plain_fields_only(template: str, message: str, write_experiment: Write):
    experiment = write_experiment(data={"prompt": template})
    assert len(check_data(experiment)) == 1
    with pytest.raises(UserError, match=message):
        load_samples(experiment)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"q": "x"},
            r"train.jsonl: record 1 has no field `question`, which `data.prompt: '\{question\}'` names \(known",
        ),
        ({"questoin": "x"}, r"\(did you mean 'questoin'\?\)"),
        ({"question": None}, r"field `question`, which .* names, must be text or a number; got NoneType None"),
        ({"question": ["x"]}, r"must be text or a number; got list \['x'\]"),
        ({"question": True}, r"must be text or a number; got bool True"),
        ({"question": float("nan")}, r"record 1: field `question`, which .* names, is nan: a missing value"),
        (["x"], r"record 1 must be an object with named fields; got list \['x'\]"),
    ],
)
def test_a_record_that_does_not_fit_is_named(record: Any, message: str, write_experiment: Write):
    experiment = write_experiment(lines=[{"question": "x", "answer": "y"}, record])
    with pytest.raises(UserError, match=message):
        load_samples(experiment)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b'{"q": "x"}\n{"q": \n', r"d.jsonl: line 2 is not valid JSON \(.* at column 7\): \{\"q\":"),
        ("d.json", b'[{"q": "x"},\n{"q": ]', r"d.json: not valid JSON: line 2 column 7"),
        ("d.json", b'{"data": [{"q": "x"}]}', r"must be a list of records; got one object with key data"),
        ("d.json", b"3", r"must be a list of records; got int"),
        ("d.json", b"[]", r"holds no records"),
        ("d.jsonl", b"", r"holds no records"),
        ("d.csv", b"q,a\n", r"holds no records"),
        ("d.csv", b"q,a\nx,y,z\n", r"line 2 \(record 0\) has 3 values where the header has 2"),
        ("d.csv", b"q,a\nx\n", r"line 2 \(record 0\) has 1 value where the header has 2; quote values"),
        ("d.csv", b'q,a\n"x\ny",1\nz\n', r"line 4 \(record 1\) has 1 value"),
        ("d.csv", b"q,a,q\n1,2,3\n", r"column 'q' stands twice in the header"),
        ("d.jsonl", b'{"q": "\\ud83d"}', r"line 1 is not valid JSON \(half a character"),
        ("d.jsonl", b"[" * 10**5, r"nested without end"),
        ("d.csv", b'q,a\n"x,1\n', r"not valid CSV near line \d: unexpected end"),
        ("d.jsonl", b'{"q": "\xe9"}', r"not UTF-8 text .*at byte 7"),
        ("d.parquet", b"PAR", r"not a valid parquet file"),
        ("d.txt", b"x", r"`data.train`: unknown kind of data file .*d.txt; use one of .json"),
    ],
)
def test_an_unusable_file_is_named_with_its_fault(
    name: str, content: bytes, message: str, tmp_path: Path, write_experiment: Write
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        _read(write_experiment, name)


def test_missing_files_and_folders_are_all_reported_together(tmp_path: Path, write_experiment: Write):
    (tmp_path / "folder").mkdir()
    experiment = write_experiment(data={"train": "gone.jsonl", "validation": "folder", "prompt": "{"})
    problems = check_data(experiment)
    assert len(problems) == 3
    assert f"no file gone.jsonl in {tmp_path}" in problems[1]
    assert "is a folder; name a .json" in problems[2]
    with pytest.raises(UserError, match="3 problems"):
        load_samples(experiment)


def test_a_held_out_fraction_keeps_the_rows_and_depends_on_the_seed_alone(write_experiment: Write):
    def split(seed: int) -> tuple[list[int], list[int]]:
        samples = load_samples(write_experiment(data={"validation": 0.25}, orders={"seed": seed}))
        assert samples.validation is not None
        return list(samples.train["sample_id"]), list(samples.validation["sample_id"])

    train, validation = split(0)
    assert (len(train), len(validation)) == (30, 10)
    assert sorted(train + validation) == list(range(40))
    assert train == sorted(train)
    assert split(0) == (train, validation)
    assert split(1) != (train, validation)


def test_held_out_samples_are_the_rows_their_ids_name(write_experiment: Write, records: list[dict[str, str]]):
    samples = load_samples(write_experiment(data={"validation": 0.1}))
    for dataset in (samples.train, samples.validation):
        assert dataset is not None
        assert all(row["prompt"] == records[row["sample_id"]]["question"] for row in dataset)


def test_one_record_cannot_be_split(write_experiment: Write):
    with pytest.raises(UserError, match=r"cannot hold out 0.5 of 1 record"):
        load_samples(write_experiment(lines=[{"question": "x", "answer": "y"}], data={"validation": 0.5}))


def test_a_validation_file_has_its_own_rows(tmp_path: Path, write_experiment: Write):
    _write_file(tmp_path / "v.json", [{"question": "v", "answer": "w"}])
    samples = load_samples(write_experiment(data={"validation": "v.json"}))
    assert samples.validation is not None
    assert samples.validation.to_list() == [{"prompt": "v", "completion": "w", "sample_id": 0}]
    assert len(samples.train) == 40


def test_empty_completions_are_kept_and_counted(write_experiment: Write):
    lines = [{"question": "x", "answer": answer} for answer in ("y", "", "  ")]
    samples = load_samples(write_experiment(lines=lines))
    assert samples.empty == 2
    assert len(samples.train) == 3


def test_chat_messages_are_kept_as_they_are(write_experiment: Write):
    chats = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}],
        [{"role": "user", "content": "hi"}],
    ]
    data = {"prompt": None, "completion": None, "messages": "chat"}
    samples = load_samples(write_experiment(lines=[{"chat": chat} for chat in chats], data=data))
    assert samples.train["messages"][:] == chats
    assert samples.train["sample_id"][:] == [0, 1, 2]
    assert samples.empty == 2


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("hi", r"record 0: field `chat` must be a list of chat messages; got str 'hi'"),
        ([], r"must be a list of chat messages; got list \[\]"),
        ([{"from": "observation", "value": "hi"}], r"message 0 of `chat`: of ShareGPT's form, .* write `role` and"),
        ([{"content": "hi"}], r"message 0 of `chat` must be an object with `role` and `content`; got \{'content'"),
    ],
)
def test_a_malformed_chat_is_named(chat: Any, message: str, write_experiment: Write):
    data = {"prompt": None, "completion": None, "messages": "chat"}
    with pytest.raises(UserError, match=message):
        load_samples(write_experiment(lines=[{"chat": chat}], data=data))


def test_a_chat_field_that_is_missing_is_named(write_experiment: Write):
    data = {"prompt": None, "completion": None, "messages": "chat"}
    with pytest.raises(
        UserError, match=r"has no field `chat`, which `data.messages` names \(known: question, answer\)"
    ):
        load_samples(write_experiment(data=data))


def test_the_fingerprint_follows_content_and_order(write_experiment: Write, records: list[dict[str, str]]):
    prints = {
        load_samples(write_experiment(lines=lines)).fingerprint
        for lines in (records, records[::-1], records[:-1], [*records[:-1], {"question": "z", "answer": "1"}])
    }
    assert len(prints) == 4
    assert load_samples(write_experiment()).fingerprint in prints


def test_a_hub_dataset_is_loaded_by_name_configuration_and_split(
    write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def load_dataset(*args: Any, **named: Any) -> datasets.Dataset:
        calls.append((args, named))
        return datasets.Dataset.from_list([{"question": "x", "answer": "y"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = {"train": "org/set", "config": "main", "split": "train[:5]", "revision": "v2"}
    samples = load_samples(write_experiment(data=hub))
    assert calls == [(("org/set", "main"), {"split": "train[:5]", "revision": "v2"})]
    assert samples.train.to_list() == [{"prompt": "x", "completion": "y", "sample_id": 0}]
    assert samples.validation is None
    for validation, expected in (
        ({"validation_split": "test"}, (("org/set", "main"), {"split": "test", "revision": "v2"})),
        ({"validation": "org/other"}, (("org/other", "main"), {"split": "validation", "revision": None})),
        (
            {"validation": "org/set", "validation_split": "dev"},
            (("org/set", "main"), {"split": "dev", "revision": "v2"}),
        ),
    ):
        samples = load_samples(write_experiment(data={**hub, **validation}))
        assert calls[-1] == expected
        assert samples.validation is not None


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        ({"split": "train[:5]"}, [r"`data.split` is for datasets on the hub, and .*train.jsonl is a file; remove it"]),
        ({"config": "main", "revision": "v2"}, [r"`data.config` is for datasets", r"`data.revision` is for datasets"]),
        ({"validation_split": "test"}, [r"`data.validation_split` is for datasets on the hub, and .*train.jsonl is"]),
        ({"validation": 0.1, "validation_split": "test"}, [r"names a split, and `data.validation` a fraction; remove"]),
        ({"validation": "org/set", "validation_split": "test", "config": "main"}, []),
    ],
)
def test_hub_keys_that_would_do_nothing_are_refused(data: dict[str, Any], messages: list[str], write_experiment: Write):
    problems = check_data(write_experiment(data=data))
    assert len(problems) == len(messages)
    assert all(re.search(message, problem) for message, problem in zip(messages, problems, strict=True))


def test_a_completion_without_a_field_is_refused(write_experiment: Write):
    (problem,) = check_data(write_experiment(data={"completion": "answer"}))
    assert problem.startswith(
        "`data.completion`: template 'answer' names no field, so all samples would teach the same"
    )


def test_records_that_do_not_fit_are_counted(write_experiment: Write):
    lines = [{"question": "x", "answer": "y"}, {"question": "x"}, {"answer": "y"}, {"question": "x", "answer": None}]
    with pytest.raises(UserError, match=r"record 1 has no field `answer`.* \(and 2 more like it\)$"):
        load_samples(write_experiment(lines=lines))


def test_exact_copies_are_kept_and_counted(write_experiment: Write):
    lines = [{"question": q, "answer": a, "source": i} for i, (q, a) in enumerate(["xy", "xy", "xz", "zy", "xy"])]
    samples = load_samples(write_experiment(lines=lines))
    assert samples.duplicates == 2
    assert len(samples.train) == 5


@pytest.mark.parametrize(("offline", "reason"), [(False, "no way through"), (True, "it is out of reach")])
def test_a_hub_dataset_that_cannot_be_loaded_is_named(
    offline: bool, reason: str, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    def load_dataset(*args: Any, **named: Any) -> None:
        raise ConnectionError("no way\nthrough")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("ordermerge.train.samples.is_offline", lambda: offline)
    with pytest.raises(UserError, match=rf"'org/set' is no file here and .* the hub: {reason}"):
        load_samples(write_experiment(data={"train": "org/set"}))
