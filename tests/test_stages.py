from pathlib import Path

import pytest

from ordermerge.errors import UserError
from ordermerge.stages import is_done, mark_done

INPUTS = {"orders": {"seed": 0, "strategy": "random"}, "files": ["a"]}


def test_done_only_after_marking_with_the_same_inputs(tmp_path: Path) -> None:
    marker = tmp_path / "x" / "marker.json"
    assert not is_done(marker, INPUTS, stage="train")
    mark_done(marker, INPUTS, {"seconds": 1})
    assert is_done(marker, dict(reversed(INPUTS.items())), stage="train")


def test_changed_inputs_are_refused_by_name(tmp_path: Path) -> None:
    mark_done(tmp_path / "m.json", INPUTS, {})
    changed = {"orders": {"seed": 1, "strategy": "random"}, "files": ["a", "b"]}
    with pytest.raises(UserError) as caught:
        is_done(tmp_path / "m.json", changed, stage="train")
    text = str(caught.value)
    assert '`orders.seed` was 0, is now 1; `files` was ["a"], is now ["a", "b"]' in text
    assert "--force train" in text


def test_added_and_removed_keys_are_named(tmp_path: Path) -> None:
    mark_done(tmp_path / "m.json", {"a": 1, "b": 2}, {})
    with pytest.raises(UserError, match=r"`b` was 2, is now null; `c` was null, is now 3"):
        is_done(tmp_path / "m.json", {"a": 1, "c": 3}, stage="eval")


def test_unreadable_marker_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(UserError, match=r"m\.json: cannot be read as a marker .* `--force merge`"):
        is_done(tmp_path / "m.json", {}, stage="merge")
