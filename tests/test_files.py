import errno
import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors import SafetensorError

from ordermerge.cli import main
from ordermerge.errors import UserError
from ordermerge.files import (
    fingerprint,
    fingerprint_path,
    is_write_problem,
    user_path,
    write_json,
    write_problem,
    write_text,
)
from ordermerge.locks import lock
from ordermerge.run_directory import failure_noted


def test_write_text_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_text(target, "one")
    write_text(target, "två")
    assert target.read_text(encoding="utf-8") == "två"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_write_json_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, None, "é"], "p": Path("q")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None, "é"], "p": "q"}


def test_what_is_equal_is_not_written_again(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "one")
    before = (tmp_path / "x").stat()
    write_text(tmp_path / "x", "one")
    assert ((tmp_path / "x").stat().st_ino, (tmp_path / "x").stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_a_killed_writer_left_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = socket.gethostname()
    (tmp_path / f".x.writing-{host}-{dead.pid}-00").touch()
    (tmp_path / f".x.writing-{host}-{os.getpid()}-00").touch()
    (tmp_path / ".x.writing-elsewhere-1-00").touch()
    write_text(tmp_path / "x", "one")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"x", f".x.writing-{host}-{os.getpid()}-00", ".x.writing-elsewhere-1-00"}


def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_text("another's")
    for name in ("x", "last_failure.log"):
        (tmp_path / name).symlink_to(other)
    write_text(tmp_path / "x", "one")
    with pytest.raises(KeyError), failure_noted(tmp_path):
        raise KeyError
    assert (tmp_path / "x").read_text() == "one"
    assert "KeyError" in (tmp_path / "last_failure.log").read_text()
    monkeypatch.setattr("ordermerge.files.unique", lambda: "guessed")
    (tmp_path / ".y.writing-guessed").symlink_to(other)
    (tmp_path / ".y.lock").symlink_to(other)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "y", "one")
    with (
        pytest.raises(UserError, match=r"\.y\.lock: cannot be written: Too many levels of symbolic links; "),
        lock(tmp_path / "y"),
    ):
        pass
    assert other.read_text() == "another's"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "P/x: cannot be written: No space left on device; free some",
        ),
        (OSError(errno.EROFS, "Read-only file system", "P/y"), "P/y: cannot be written: Read-only file system; write"),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "P/x: .* quota exceeded; free some of your"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1 vs 0"), "P/x: .*inline_container"),
        (
            RuntimeError("[enforce fail at inline_container.cc:747] . open file failed: No space left on device"),
            "P/x: cannot be written: No space left on device; free some space there",
        ),
    ],
)
def test_a_failing_disk_is_told_by_path_and_remedy_whoever_says_so(
    error: Exception, words: str, tmp_path: Path
) -> None:
    if getattr(error, "filename", None):
        error.filename = str(tmp_path / "y")
    assert is_write_problem(error, tmp_path)
    assert re.match(words.replace("P/", f"{tmp_path}/"), write_problem(error, tmp_path / "x"))


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), RuntimeError("shape"), SafetensorError("header")])
def test_other_errors_are_not_blamed_on_the_disk(error: Exception, tmp_path: Path) -> None:
    assert not is_write_problem(error, tmp_path)
    assert not is_write_problem(PermissionError(errno.EACCES, "no", "/elsewhere/model"), tmp_path)


def test_fingerprint_ignores_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_fingerprint_path_sees_names_and_bytes_but_not_leftovers(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("2")
    first = fingerprint_path(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "a.pyc").write_text("x")
    assert fingerprint_path(tmp_path) == first
    (tmp_path / "sub" / "b").write_text("3")
    changed = fingerprint_path(tmp_path)
    (tmp_path / "sub" / "b").rename(tmp_path / "sub" / "c")
    assert len({first, changed, fingerprint_path(tmp_path)}) == 3


def test_the_home_of_a_user_who_does_not_exist_is_a_name() -> None:
    assert user_path("~nobody-here/x") == Path("~nobody-here/x")
    assert user_path("~/x") == Path.home() / "x"


@pytest.mark.parametrize("command", [["noise"], ["compare"], ["inspect", "--base", "~nobody-here/b"], ["report"]])
def test_commands_name_the_path_that_holds_an_unknown_home(command: list[str]) -> None:
    done = CliRunner().invoke(main, [*command, "~nobody-here/x", *(["~nobody-here/y"] * (len(command) > 1))])
    assert done.exit_code == 1
    assert "~nobody-here" in done.output
    assert isinstance(done.exception, SystemExit)
