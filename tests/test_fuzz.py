"""Some hundred mutated files, each accepted or refused in one sentence (`python tests/fuzz.py` for many more)."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
assert SPEC is not None
assert SPEC.loader is not None
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


def test_mutated_files_are_accepted_or_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "SECONDS", 20)  # of a machine that does something else too
    broken = []
    for title, file, read in fuzz.cases(tmp_path, 300, seed=1):
        if problem := fuzz.breaks(read):
            broken.append(f"{title}: {problem}\n{file.read_bytes()[:300]!r}")
    assert broken == []
