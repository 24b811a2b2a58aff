import json
from pathlib import Path

import pytest

from ordermerge.files import fingerprint, fingerprint_path, new_directory, partial_directory, write_json, write_text


def test_write_text_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_text(target, "one")
    write_text(target, "två")
    assert target.read_text(encoding="utf-8") == "två"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_write_json_round_trips(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, None, "é"], "p": Path("q")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None, "é"], "p": "q"}


def test_new_directory_appears_only_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_directory(out) as partial:
        assert partial.name == "out"
        (partial / "file").write_text("1")
        assert not out.exists()
    assert (out / "file").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_new_directory_failure_keeps_the_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_directory(out) as partial:
        (partial / "file").write_text("1")
    with pytest.raises(KeyboardInterrupt), new_directory(out) as partial:
        (partial / "file").write_text("2")
        raise KeyboardInterrupt
    assert (out / "file").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_new_directory_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    left = tmp_path / ".out.partial" / "out"
    left.mkdir(parents=True)
    (left / "stale").write_text("x")
    with new_directory(tmp_path / "out") as partial:
        assert list(partial.iterdir()) == []


def test_new_directory_keeps_what_a_failed_run_left_with_a_survivor(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), new_directory(out, keep_if_present="state") as partial:
        assert partial == partial_directory(out)
        (partial / "file").write_text("1")
        (partial.parent / "state").mkdir()
        raise KeyboardInterrupt
    with new_directory(out, keep_if_present="state") as partial:
        assert (partial / "file").read_text() == "1"
    assert (out / "file").read_text() == "1"
    with pytest.raises(KeyboardInterrupt), new_directory(out, keep_if_present="state") as partial:
        assert list(partial.iterdir()) == []
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


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
