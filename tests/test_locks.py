import errno
import os
import signal
import socket
import threading
import time
from pathlib import Path

import filelock
import pytest

from ordermerge.errors import UserError
from ordermerge.locks import is_locked, lock, waits


def test_the_second_comer_is_told_who_holds_it(tmp_path: Path) -> None:
    with lock(tmp_path / "new" / "x"):
        words = rf"new/x: process {os.getpid()} on {socket.gethostname()} \(since .*\) is making it; .* `--wait`"
        with pytest.raises(UserError, match=words), lock(tmp_path / "new" / "x"):
            pass
        with lock(tmp_path / "new" / "y") as waited:
            assert not waited
    assert list((tmp_path / "new").iterdir()) == []


def test_one_that_waits_gets_it_and_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(tmp_path / "x"):
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.2, done.set).start()
    token = waits.set(True)
    try:
        with lock(tmp_path / "x") as waited:
            assert waited
    finally:
        waits.reset(token)
        thread.join()
    assert f"x: waiting for process {os.getpid()} on " in capsys.readouterr().err


def test_a_killed_holder_holds_nothing_even_while_its_children_live(tmp_path: Path) -> None:
    read, write = os.pipe()
    if (holder := os.fork()) == 0:
        with lock(tmp_path / "x"):
            if (child := os.fork()) == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(child).encode())
            time.sleep(60)
    child = int(os.read(read, 20))
    assert is_locked(tmp_path / "x")
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        os.kill(child, 0)  # it lives
        with lock(tmp_path / "x") as waited:
            assert not waited
    finally:
        os.kill(child, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> bool:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", refuse)
    with lock(tmp_path / "x") as waited:
        assert not waited
        assert is_locked(tmp_path / "x")  # it may be
    assert "this file system has no locks (Function not implemented); see to it" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((UserError, NotADirectoryError)), lock(tmp_path / "file" / "x"):
        pass
