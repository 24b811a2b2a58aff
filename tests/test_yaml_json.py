"""What the readers of YAML and JSON refuse, in one short sentence and at once."""

import json
import time
from pathlib import Path

import pytest
from typing_extensions import TypedDict

from ordermerge.errors import UserError
from ordermerge.yaml_json import read_json, read_yaml

LISTS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
LONG = f"a: &a {'x' * 400_000}\nb: [{', '.join(['*a'] * 20)}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!int abc", r"line 1, column 4: 'abc' is no int$"),
        ("a: " + "9" * 5000, r"line 1, column 4: '9{50,100}\.\.\.9{50,110} is no int$|is no int$"),
        ("a: 0x" + "F" * 5000, r"is no number that a setting can have$"),
        ("a: .inf", r"'\.inf' is no number that a setting can have$"),
        ("a: .NaN", r"'\.NaN' is no number that a setting can have$"),
        ("a: 1.0e+999", r"is no number that a setting can have$"),
        ("a: &x [*x]", r"line 1, column 8: an alias stands within what it stands for$"),
        ("a: " + "[" * 100_000, r"more than 50 levels deep$"),
        (LISTS, r"line \d, column \d+: more than 100,000 values, or 4,000,000 characters$"),
        (MERGED, r"more than 100,000 values, or 4,000,000 characters$"),
        (LONG, r"more than 100,000 values, or 4,000,000 characters$"),
        ("1: a", r"line 1, column 1: a key must be text, and '1' is read as int; quote it$"),
        ("yes: a", r"a key must be text, and 'yes' is read as bool; quote it$"),
        ("? [a]\n: 1", r"a key must be text, and this is read as seq; quote it$"),
        ("a: 1\nb: 2\na: 3", r"line 3, column 1: key 'a' stands twice, first in line 1; remove one$"),
        ('a: "\\ud800"', r"line 1, column 4: '\\ud800' holds what is no character$"),
        ('a: "\\0"', r"holds what is no character$"),
        ('a: "\\U00110000"', r"not valid YAML"),
        ("a: !!binary aGVsbG8=", r"the tag !!binary is not taken here; leave it out$"),
        ("a: !!python/object:os.system x", r"the tag !!python/object:os\.system is not taken here"),
        ("a: 1\n---\nb: 2", r"a second document begins in line 2, column 1; give each a file of its own"),
        ("a: [1", r"not valid YAML: while parsing a flow sequence, .*, in line 1, column 6$"),
        ("\x1b[31m: 1", r"not valid YAML: unacceptable character #x001b"),
        (b"\x7fELF\x00\xff", r"not UTF-8 text \(invalid start byte at byte 5\); give a YAML file$"),
        ("a: 1\n" * 200_000, r"1,000,000 bytes are more than any recipe or experiment has$"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_yaml_that_is_no_recipe_ends_in_one_sentence(text: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    started = time.perf_counter()
    with pytest.raises(UserError, match=message) as refused:
        read_yaml(file)
    assert time.perf_counter() - started < 2
    assert str(refused.value).startswith(f"{file}: ")
    assert len(str(refused.value)) < 2000


def test_yaml_keeps_dates_as_text_and_takes_anchors(tmp_path: Path) -> None:
    file = tmp_path / "f.yml"
    file.write_text("\ufeffd: 2024-01-01\ne: 2024-13-01\nbase: &b {x: 1, y: 2}\nm: {<<: *b, x: 3}\n", encoding="utf-8")
    assert read_yaml(file) == {
        "d": "2024-01-01",
        "e": "2024-13-01",
        "base": {"x": 1, "y": 2},
        "m": {"x": 3, "y": 2},
    }


def test_yaml_reads_no_folder_and_no_pipe(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(UserError, match=r"pipe: is no plain file; give a YAML file$"):
        read_yaml(tmp_path / "pipe")
    with pytest.raises(UserError, match=r": is a folder; give a YAML file$"):
        read_yaml(tmp_path)


class Note(TypedDict):
    words: list[str]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"damaged \(.*EOF.*\); make it anew$"),
        (b'{"words": ["a"', r"damaged \(.*EOF.*\); make it anew$"),
        (b"[" * 100_000, r"damaged \(.*recursion limit.*\); make it anew$"),
        (b"\xff\xfe", r"damaged \(.*\); make it anew$"),
        (b"[]", r"damaged \(must be a mapping of keys; got \[\]\); make it anew$"),
        (
            b'{"words": [1]}',
            r"damaged \(`words\[0\]` must be text; got 1; write it in quotes: `'1'`\); make it anew$",
        ),
        (b"{}", r"damaged \(key `words` is missing\); make it anew$"),
        (None, r"no such file; make it anew$"),
    ],
)
def test_json_of_another_form_names_file_and_remedy(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_json(file, Note, remedy="make it anew")
    assert str(refused.value).startswith(f"{file}: ")


def test_json_takes_a_loss_that_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([float("nan")]))
    (value,) = read_json(tmp_path / "f.json", list[float], remedy="")
    assert value != value
