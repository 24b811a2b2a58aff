"""Where the compiled loops come from and what happens where they cannot be had, mostly in processes of their own."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ordermerge import compiled, loops
from ordermerge.counter import random_words, stream_key
from ordermerge.eval import inspect
from ordermerge.unchanged import changed

# Counts by loops what two models changed, and says how often kept code was found.
COUNT = """
import sys
import torch
from ordermerge.eval.inspect.changes import measure
assert "numba" not in sys.modules, "imported before it is needed"
for _ in range(2):
    print(*measure(torch.arange(30.0).view(3, 10) // 11).changed)
if "ordermerge.eval.inspect.compiled" in sys.modules:
    print(sum(sys.modules["ordermerge.eval.inspect.compiled"]._measure.stats.cache_hits.values()))
"""
COUNTED = ["10 9", "10 9"]
PACKAGE = Path(inspect.__file__).parent


def run(code: str, *flags: str, **env: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_first_use_compiles_silently_and_the_next_process_finds_the_code(tmp_path: Path) -> None:
    for hits in ("0", "1"):
        out, err = run(COUNT, "-W", "error", NUMBA_CACHE_DIR=str(tmp_path / "made"))
        assert out == [*COUNTED, hits]
        assert err == ""
    assert list((tmp_path / "made").rglob("*.nbi"))


@pytest.mark.parametrize("cache", ["writable", "/dev/null/unwritable"])
def test_code_is_kept_in_the_users_cache_and_not_beside_the_package(tmp_path: Path, cache: str) -> None:
    """Beside the package it outlives `pip uninstall`, and is then imported in place of an editable install."""
    home = str(tmp_path / cache)
    env = {"HOME": home, "XDG_CACHE_HOME": home, "LOCALAPPDATA": home}
    before = set(PACKAGE.rglob("*.nbi"))
    out, err = run(COUNT, "-W", "error", **env)
    assert out == [*COUNTED, "0"]
    assert err == ""
    assert bool(list(tmp_path.rglob("*.nbi"))) == (cache == "writable")
    assert set(PACKAGE.rglob("*.nbi")) == before


@pytest.mark.parametrize(
    ("numba", "reason"),
    [("raise ImportError('Numba needs NumPy 1')", "Numba needs NumPy 1"), ("", "numba.core"), ("import gone", "gone")],
)
def test_unusable_numba_is_told_once(tmp_path: Path, numba: str, reason: str) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(numba)
    out, err = run(COUNT, PYTHONPATH=str(tmp_path))
    assert out == COUNTED
    assert err.count("Numba cannot be used, and torch does its work, several times slower") == 1
    assert reason in err
    assert "pip install --force-reinstall numba" in err


def test_a_failure_in_the_midst_of_work_ends_the_use_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_failures", [])

    def fail() -> str:
        raise OSError("no space left on device")

    with pytest.warns(RuntimeWarning, match="OSError.*no space left on device"):
        assert compiled.with_numba(fail, otherwise=lambda: "torch") == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled.with_numba(lambda: "loops", otherwise=lambda: "torch") == "torch"


@pytest.mark.parametrize("length", [0, 1, 3, 8, 9, 100])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_work_is_shared_out_without_gaps(monkeypatch: pytest.MonkeyPatch, length: int, threads: int) -> None:
    monkeypatch.setattr(compiled, "SPAN", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    done: list[range] = []
    compiled.share_out(lambda start, stop: done.append(range(start, stop)), length)
    assert sorted(i for part in done for i in part) == list(range(length))


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "SPAN", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both = threading.Barrier(2)

    def work(start: int, stop: int) -> None:
        both.wait(10)
        if threading.current_thread() is not threading.main_thread():
            raise ValueError("in a helper")

    with pytest.raises(ValueError, match="in a helper"):
        compiled.share_out(work, 16)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_changed_is_the_same_compiled_and_in_torch(dtype: type) -> None:
    limits = np.iinfo(dtype)
    values = np.array([0, 1, -1, limits.max, limits.min, limits.min + 1, 1 << (limits.bits - 2)], dtype)
    for value in values:
        base = np.full_like(values, value)
        assert loops.has_zero(base) == (value in (0, limits.min))
        found = [loops.changed(values, base, i, loops.has_zero(base)) for i in range(len(values))]
        assert found == changed(torch.from_numpy(values), torch.from_numpy(base)).tolist()


@pytest.mark.parametrize("first", [0, 4, 1 << 20, 1 << 40])
def test_words_are_those_of_the_counter(first: int) -> None:
    key = stream_key("words")
    words = np.empty(9, np.uint64)
    loops.write_draws(words, np.uint64(key), first)
    assert words.view(np.int64).tolist() == random_words(key, first // 4, 9).tolist()
