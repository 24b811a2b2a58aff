import os
from pathlib import Path
from typing import Any

import pytest

from ordermerge.errors import UserError
from ordermerge.files import file_problems, file_records
from ordermerge.stages import MadeOtherwise, Step, mark_done, unfinished

INPUTS = {"orders": {"seed": 0, "strategy": "random"}, "files": ["a"]}


def step(tmp_path: Path, inputs: dict[str, Any], name: str = "x", stage: str = "train") -> Step:
    return Step(stage, name, tmp_path / name, "marker.json", inputs)


def done(tmp_path: Path, inputs: dict[str, Any], name: str = "x") -> None:
    mark_done(tmp_path / name / "marker.json", inputs, {"seconds": 1}, files={})


def test_done_only_after_marking_with_the_same_inputs(tmp_path: Path) -> None:
    assert not step(tmp_path, INPUTS).is_done()
    done(tmp_path, INPUTS)
    assert step(tmp_path, dict(reversed(INPUTS.items()))).is_done()


def test_changed_inputs_are_refused_by_name(tmp_path: Path) -> None:
    done(tmp_path, INPUTS, "order_0")
    with pytest.raises(MadeOtherwise) as caught:
        step(tmp_path, {"orders": {"seed": 1, "strategy": "random"}, "files": ["a", "b"]}, "order_0").is_done()
    assert str(caught.value) == (
        f'{tmp_path / "order_0"}: orders.seed: 0, now 1; files: ["a"], now ["a", "b"]: order_0 was made with the old '
        "values. `ordermerge run --force train` makes that anew; another `name` keeps it"
    )


def test_an_edit_is_told_once_with_what_depends_on_it_and_what_still_holds(tmp_path: Path) -> None:
    def steps(rate: float, weight: int) -> list[Step]:
        orders = [step(tmp_path, {"order": k, "sft": {"rate": rate}}, f"order_{k}") for k in range(3)]
        merges = [
            Step("merge", name, tmp_path / name, "m.json", {"recipe": {"weight": of}}, tuple(orders), {"recipe.": ""})
            for name, of in (("mean", weight), ("drawn", 1))
        ]
        models: list[Step | None] = [None, *orders, *merges]
        named = [(model.name if model else "base", (model,) if model else ()) for model in models]
        scores = [Step("eval", name, tmp_path / "eval" / name, "t.json", {}, needs) for name, needs in named]
        return [*orders, *merges, *scores]

    for one in steps(0.1, 1):
        mark_done(one.output / one.marker, one.inputs, {}, files={}, made_from=one.made_from())
    for (rate, weight), message in {
        (0.2, 1): f"{tmp_path}: sft.rate: 0.1, now 0.2: 3 orders, 2 merges and their scores were made with the old "
        "value. The scores of base still hold. `ordermerge run --force train` makes that anew; another `name` keeps it",
        (0.1, 2): f"{tmp_path}/mean: weight: 1, now 2: the merge mean and its scores were made with the old value. 3 "
        "orders, the merge drawn, their scores and the scores of base still hold. `ordermerge run --force merge` makes "
        "that anew; another `name` keeps it",
    }.items():
        with pytest.raises(MadeOtherwise) as caught:
            unfinished(steps(rate, weight))
        assert str(caught.value) == message
    with pytest.raises(MadeOtherwise, match=r"\n  - sft.rate: 0.1, now 0.2: 3 .* value\n  - weight: 1, now 2: the "):
        unfinished(steps(0.2, 2))
    assert [one.name for one in unfinished(steps(0.2, 2), "train")] == ["order_0", "order_1", "order_2", "mean"]
    with pytest.raises(MadeOtherwise, match=r"sft\.rate"):
        unfinished(steps(0.2, 2), "merge")


def test_unreadable_marker_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    done(tmp_path, {})
    (tmp_path / "x" / "marker.json").write_text("{")
    with pytest.raises(UserError, match=r"marker\.json: damaged .*; delete it, .* `--force merge`"):
        step(tmp_path, {}, stage="merge").is_done()


def test_unfinished_keeps_the_order_and_reports_all_changes_together(tmp_path: Path) -> None:
    done(tmp_path, INPUTS, "b")
    steps = [step(tmp_path, INPUTS, name) for name in ("c", "b", "a")]
    assert unfinished(steps) == [steps[0], steps[2]]
    done(tmp_path, {}, "a")
    done(tmp_path, {}, "c")
    with pytest.raises(MadeOtherwise) as caught:
        unfinished(steps)
    assert [step.name for step, _ in caught.value.changed] == ["c", "a"]


def test_a_step_is_done_again_when_what_it_needs_was_made_anew_and_differently(tmp_path: Path) -> None:
    def make(content: str) -> None:
        (tmp_path / "need").mkdir(exist_ok=True)
        (tmp_path / "need" / "weights").write_text(content)
        (tmp_path / "need" / "README.md").write_text(content)  # a note
        mark_done(tmp_path / "need" / "m.json", {}, {"seconds": len(content)}, files=file_records(tmp_path / "need"))

    need = Step("train", "need", tmp_path / "need", "m.json", {})
    step = Step("merge", "x", tmp_path / "x", "m.json", INPUTS, (need,))
    make("one")
    assert not step.is_done()
    mark_done(tmp_path / "x" / "m.json", INPUTS, {}, files={}, made_from=step.made_from())
    assert step.is_done()
    (tmp_path / "need" / "README.md").write_text("more")
    make("one")
    assert step.is_done()
    make("another")
    assert not step.is_done()
    (tmp_path / "need" / "m.json").unlink()
    assert not step.is_done()


def test_what_was_changed_or_lost_since_it_was_made_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "weights").write_text("one")
    (folder / "README.md").write_text("a note")
    mark_done(folder / "marker.json", INPUTS, {}, files=file_records(folder))
    made = step(tmp_path, INPUTS)
    (folder / "README.md").write_text("another note")
    os.utime(folder / "weights", ns=(1, 1))  # as a copy has it
    assert made.is_done()
    (folder / "weights").write_text("two")
    with pytest.raises(
        UserError, match=r"weights: is not what it was when it was made .*; restore it, or make it anew"
    ):
        made.is_done()
    (folder / "weights").write_text("three")
    with pytest.raises(UserError, match=r"weights: has 5 bytes, and had 3 when it was made"):
        made.is_done()
    (folder / "weights").unlink()
    with pytest.raises(UserError, match=r"weights: is missing; restore it"):
        made.is_done()


def test_a_flipped_bit_is_found_where_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    records, status = file_records(tmp_path), (tmp_path / "weights").stat()
    (tmp_path / "weights").write_bytes(b"onf")
    os.utime(tmp_path / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_problems(tmp_path, records) == []
    (problem,) = file_problems(tmp_path, records, deep=True)
    assert problem == f"{tmp_path / 'weights'}: is not what it was when it was made (its SHA-256 is another)"
