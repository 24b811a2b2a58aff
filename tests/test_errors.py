"""What a message may be: short, and harmless to a terminal."""

import re
from pathlib import Path

import pytest

from ordermerge.errors import MESSAGE, QUOTED, UserError, percent, printable, quoted, shortened


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, list(range(10**6)), {"a": ["b" * 999] * 999}, 10**9000, [[[[[[1]]]]]]],
    ids=["text", "list", "nested", "number", "deep"],
)
def test_a_value_is_quoted_in_few_characters(value: object) -> None:
    assert len(quoted(value)) <= QUOTED


def test_short_values_are_quoted_whole() -> None:
    assert quoted({"r": [16, "a"], "x": None}) == "{'r': [16, 'a'], 'x': None}"


def test_what_drives_a_terminal_is_written_out() -> None:
    assert printable("a\x1b]0;title\x07\u202eb\ud800\nc") == "a\\x1b]0;title\\x07\\u202eb\\ud800\nc"
    assert str(UserError("got \x1b[31m", where="\x9b.yml")) == "\\x9b.yml: got \\x1b[31m"


def test_a_message_keeps_beginning_and_end() -> None:
    error = UserError("what is wrong " + "x" * 10_000 + "; what to do")
    assert len(str(error)) <= MESSAGE
    assert str(error).startswith("what is wrong xxx")
    assert str(error).endswith("xxx; what to do")
    assert shortened("abc", 3) == "abc"


def test_many_problems_are_counted_and_some_are_shown() -> None:
    error = UserError((f"problem {i} {'x' * 300}" for i in range(100)), where="e.yml")
    lines = str(error).split("\n")
    assert len(str(error)) < 2000
    assert lines[0] == "e.yml: 100 problems:"
    assert lines[-1] == f"  - ... and {100 - (len(lines) - 2)} more; mend these first"
    assert len(error.problems) == 100


ROOT = Path(__file__).resolve().parents[1]
TIGHT = re.compile(r":\.\d%\}|(?<![{\d.])\d[\d.]*%(?=[\s,.;:)|]|$)", re.MULTILINE)  # "95%", and formats that write it
OTHERS = {"reference.md", "html.py"}  # in the words of TRL and PEFT; lengths of a style sheet


@pytest.mark.parametrize("folder", ["src", "merge_methods", "train", "eval", "docs", "recipes", "."])
def test_per_cent_is_written_one_way(folder: str) -> None:
    files = (ROOT / folder).glob("*.md" if folder == "." else "**/*")
    texts = {file: file.read_text("utf-8") for file in files if file.suffix in (".py", ".md")}
    found = {str(file): TIGHT.findall(text) for file, text in texts.items() if file.name not in OTHERS}
    assert {file: some for file, some in found.items() if some} == {}
    assert percent(0.95) == "95 %"
    assert percent(0.0042, 1) == "0.4 %"
