import json
import os
from pathlib import Path

import pytest

from ordermerge.commands.merge_output import merge_output
from ordermerge.errors import UserError
from ordermerge.files import file_records


def merge(out: Path, files: dict[str, str], *, listed: bool = True) -> None:
    with merge_output(out, None) as partial:
        assert partial is not None
        for name, text in files.items():
            (partial / name).write_text(text)
        (partial / "ordermerge.json").write_text(json.dumps({"files": file_records(partial)} if listed else {}))


def content(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.iterdir() if path.name != "ordermerge.json"}


def test_a_later_merge_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    merge(tmp_path / "out", {"model-1.safetensors": "a", "config.json": "{}"})  # no model card
    merge(tmp_path / "out", {"model.safetensors": "b", "config.json": "{}"})
    assert content(tmp_path / "out") == {"model.safetensors": "b", "config.json": "{}"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("listed", [True, False])
def test_what_no_merge_wrote_is_named_and_kept(listed: bool, tmp_path: Path) -> None:
    merge(tmp_path / "out", {"model.safetensors": "a"}, listed=listed)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out: holds notes.txt, which the merge there did not write; move it away"):
        merge(tmp_path / "out", {"model.safetensors": "b"})
    assert content(tmp_path / "out") == {"model.safetensors": "a", "notes.txt": "mine"}


def test_what_is_no_merge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(UserError, match="out: exists and was not made by a merge; name a new folder"):
        merge(tmp_path / "out", {})
    with pytest.raises(UserError, match=r"config\.json: exists and is no folder"):
        merge(tmp_path / "out" / "config.json", {})


def test_a_volume_is_filled_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ordermerge.files._is_mount_point", lambda path: path.name == "out")
    out = tmp_path / "out"
    (out / "lost+found").mkdir(parents=True)
    inode = os.stat(out).st_ino
    merge(out, {"model-1.safetensors": "a", "config.json": "{}"})
    merge(out, {"model.safetensors": "b", "config.json": "{1}"})
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "lost+found",
        "model.safetensors",
        "ordermerge.json",
    ]
    assert os.stat(out).st_ino == inode
