import functools
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ordermerge.errors import UserError
from ordermerge.folders import clear_dead, new_directory, scratch_directory
from ordermerge.locks import is_locked, lock

FILES = {"a.txt": "a", "sub/b.txt": "b", "config.json": "c", "ordermerge.json": "marker"}


def make(out: Path, salt: str = "", **how: object) -> None:
    with lock(out), new_directory(out, **how) as partial:
        for name, text in FILES.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text + salt)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process, and return how that ended: its exit status, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(n: int, work: Callable[[], None]) -> Callable[[], None]:
    """Return the work, during which its process is killed before the n-th change of the file system."""
    count = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def instead(*args: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **named)

        return instead

    def run() -> None:
        for name in ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "chmod", "open"):
            setattr(os, name, counted(getattr(os, name)))
        work()

    return run


def test_it_appears_only_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lock(out), new_directory(out) as partial:
        assert partial.name == "out"
        (partial / "file").write_text("1")
        assert not out.exists()
    assert content(tmp_path) == {"out/file": "1"}


def test_a_failure_keeps_the_earlier_one(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("2")
        raise KeyboardInterrupt
    assert content(tmp_path) == {f"out/{name}": text for name, text in FILES.items()}


def test_resumable_work_is_gone_on_with_and_all_else_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial" / "out").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), new_directory(out, resumable="state") as partial:
        assert list(partial.iterdir()) == []
        (partial / "file").write_text("1")
        (partial.parent / "state").mkdir()
        raise KeyboardInterrupt
    with new_directory(out, resumable="state") as partial:
        assert content(partial) == {"file": "1"}
    assert content(tmp_path) == {"out/file": "1"}
    with pytest.raises(KeyboardInterrupt), new_directory(out, resumable="state") as partial:
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_all_files_get_the_permissions_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    def work() -> None:
        os.umask(umask)
        with lock(tmp_path / "out"), new_directory(tmp_path / "out") as partial:
            (partial / "sub").mkdir(0o700)
            os.close(os.open(partial / "sub" / "file", os.O_CREAT, 0o600))

    assert in_child(work) == 0
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    }
    assert found == {"out": 0o777 & ~umask, "sub": 0o777 & ~umask, "file": 0o666 & ~umask}


def test_what_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in ("nothing", "another's"):
        told = pytest.raises(UserError, match="out: another process has made it meanwhile; it is kept")
        with told, new_directory(out) as partial:
            (partial / "a.txt").write_text("mine")
            shutil.rmtree(out, ignore_errors=True)  # as where locks do not hold
            shutil.copytree(Path(__file__).parent / "eval" / "scoring", out)
            (out / "new").touch()  # the copy has the time of what was copied
        assert (out / "test_score.py").exists()


@pytest.mark.parametrize("case", ["new", "again", "beside", "mounted"])
def test_killed_at_any_change_of_the_file_system_a_rerun_gives_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # takes time, and a kill loses nothing of what it does
    if case == "mounted":
        monkeypatch.setattr("ordermerge.files._is_mount_point", lambda path: path.name == "out")
    how = {"beside": {"beside": True}, "mounted": {"own": [*FILES]}}.get(case, {})
    for n in range(1, 200):
        top = tmp_path / str(n)
        out = top / "out"
        out.parent.mkdir()
        if case != "new":
            make(out, salt=" before" if case != "beside" else "", **how)
        if case in ("beside", "mounted"):
            (out / "own.txt").write_text("the user's")
        before = content(out)
        ended = in_child(killed_at(n, functools.partial(make, out, **how)))
        left = content(out)
        if (out / "ordermerge.json").exists() and case in ("again", "mounted"):
            whole = FILES if left["ordermerge.json"] == "marker" else before
            assert {name: left[name] for name in FILES} == {name: whole[name] for name in FILES}
        make(out, **how)
        more = {"own.txt": "the user's"} if case in ("beside", "mounted") else {}
        assert content(out) == FILES | more
        assert [path.name for path in top.iterdir()] == ["out"]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert n > 20


def test_the_earlier_one_comes_back_where_its_successor_was_not_put_in_place(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / ".out.partial-x" / "out").mkdir(parents=True)
    os.rename(tmp_path / "out", tmp_path / ".out.partial-x" / ".before")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "out"):
        raise KeyboardInterrupt
    assert content(tmp_path / "out") == FILES


def test_scratch_folders_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    def killed() -> None:
        with scratch_directory(tmp_path, "step") as folder:
            (folder / "weights").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL
    with scratch_directory(tmp_path, "step") as one, scratch_directory(tmp_path, "step") as other:
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == {one, other}
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
    (tmp_path / ".7.partial-x" / "state").mkdir(parents=True)
    (tmp_path / ".1.partial-x" / "state").mkdir(parents=True)
    with lock(tmp_path / "8"), new_directory(tmp_path / "8"):
        clear_dead(tmp_path, keep=["1"])
        assert {path.name[:3] for path in tmp_path.iterdir() if path.is_dir()} == {".1.", ".8."}


def test_the_lock_file_of_a_finished_thing_goes_if_nobody_holds_it(tmp_path: Path) -> None:
    for name in ("made", "held", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / f".{name}.lock").touch()
    (tmp_path / ".unmade.lock").touch()
    (tmp_path / "..step.scratch-x.lock").touch()
    with lock(tmp_path / "held"):
        clear_dead(tmp_path, keep=["kept"])
        assert {path.name for path in tmp_path.glob(".*")} == {".held.lock", ".kept.lock", ".unmade.lock"}


def test_eight_makers_at_once_one_makes_it_and_the_others_say_who(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work() -> None:
        try:
            with lock(out), new_directory(out) as partial:
                for name, text in FILES.items():
                    (partial / name).parent.mkdir(exist_ok=True)
                    (partial / name).write_text(text)
                    time.sleep(0.01)
        except UserError as error:
            os._exit(3 if "making it" in str(error) else 4)

    for _ in range(5):
        pids = []
        for _ in range(8):
            if (pid := os.fork()) == 0:
                try:
                    work()
                    os._exit(0)
                finally:
                    os._exit(5)
            pids.append(pid)
        ends = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        assert ends[0] == 0
        assert set(ends) <= {0, 3}
        assert content(tmp_path) == {f"out/{name}": text for name, text in FILES.items()}
        assert not is_locked(out)
