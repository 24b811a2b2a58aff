"""Some hundred mutated and damaged files, each accepted or refused in one sentence.

`python tests/fuzz.py`, `tests/fuzz_merge.py` and `tests/fuzz_run.py` for many more.
"""

from pathlib import Path

import fuzz
import fuzz_merge
import fuzz_run
import pytest


def test_mutated_files_are_accepted_or_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "SECONDS", 20)  # of a machine that does something else too
    broken = []
    for title, file, read in fuzz.cases(tmp_path, 300, seed=1):
        if problem := fuzz.breaks(read):
            broken.append(f"{title}: {problem}\n{file.read_bytes()[:300]!r}")
    assert broken == []


@pytest.mark.integration
def test_commands_on_damaged_runs_end_well_or_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = fuzz_run.Run(tmp_path)
    assert [problem for number in range(150) if (problem := run.case(number, seed=1))] == []


@pytest.mark.integration
def test_what_the_check_accepts_merges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = fuzz_merge.Models(tmp_path)
    found = [models.case(number, seed=1) for number in range(80)]
    assert [problem for problem in found if problem] == []
    assert found.count(None) > 20
