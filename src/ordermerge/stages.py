"""Stages and their steps: done or not, by a marker written last that holds the fingerprint of the step's inputs."""

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ordermerge.config import STAGES
from ordermerge.differences import changes
from ordermerge.errors import UserError
from ordermerge.files import FileRecord, file_problems, fingerprint, write_json
from ordermerge.yaml_json import read_json

NOTES = (".md", ".log", ".yml")  # files that say how something was made, and when


@with_config(ConfigDict(extra="allow"))
class Made(TypedDict):
    """What every marker says of what was made."""

    files: NotRequired[dict[str, FileRecord]]
    made_from: NotRequired[dict[str, str | None]]


class Marker(Made):
    """What a step's marker holds."""

    fingerprint: str
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One unit of work that is done once.

    Attributes:
        stage: One of `STAGES`, which is what `--force` takes.
        name: The order, merge or model.
        output: The folder it makes.
        marker: Its marker file, relative to that folder.
        inputs: JSON-like values: its part of the configuration, and fingerprints of its input files.
        needs: The steps whose outputs it is made from, in order.
        keys: Where the user finds its inputs, as `changes` takes it.
    """

    stage: str
    name: str
    output: Path
    marker: str
    inputs: dict[str, Any]
    needs: tuple["Step", ...] = field(default=(), repr=False)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of its inputs."""
        return fingerprint(_plain(self.inputs))

    def is_done(self) -> bool:
        """Return whether the step was finished with just these inputs, from what the steps that it needs have made.

        If one of these has been made anew, and differently, the step is to be done again. Whether those steps are done
        themselves is asked of them.

        Raises:
            MadeOtherwise: If it was finished with other inputs that these do not merely add to.
            UserError: If a file of it is missing or has been changed since.
        """
        record = self.record()
        if record is None:
            return False
        if self.is_otherwise():
            if self.adds_to(record):
                return False
            changed = changes(record["inputs"], _plain(self.inputs), self.keys) or ["its marker was edited"]
            raise MadeOtherwise([(self, changed)], [self])
        if problems := file_problems(self.output, without_notes(record)):
            raise UserError(
                f"{problem}; restore it, or make it anew: delete {self.output} or, in a run, `--force {self.stage}`"
                for problem in problems
            )
        return record.get("made_from", {}) == self.made_from()

    def is_otherwise(self) -> bool:
        """Return whether it was finished with other inputs."""
        record = self.record()
        return record is not None and record["fingerprint"] != self.fingerprint

    def adds_to(self, record: Marker) -> bool:
        """Return whether its inputs hold all that it was finished with, and more: then it is made anew unasked.

        Args:
            record: What its marker holds.
        """
        return False

    def record(self) -> Marker | None:
        """Return what its marker holds, None where there is none.

        Raises:
            UserError: If the marker cannot be read.
        """
        marker = self.output / self.marker
        try:
            status = marker.stat()
            return _read_marker(marker, self.stage, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            return None

    def made(self) -> str | None:
        """Return the fingerprint of the files that the step has made, less its notes; None where it has not."""
        record = self.record()
        if record is None:
            return None
        files = without_notes(record)
        return fingerprint({name: of["sha256"] for name, of in files.items() if name != self.marker})

    def made_from(self) -> dict[str, str | None]:
        """Return for each step that it needs the fingerprint of what that has made."""
        return {need.name: need.made() for need in self.needs}


class MadeOtherwise(UserError):
    """Finished steps were made with other inputs than they have now.

    Args:
        changed: Each such step, and what changed, in the user's words.
        steps: All steps at hand: some need the changed ones, some still hold.
        remedy: What to do, as a sentence.
    """

    def __init__(self, changed: Sequence[tuple[Step, list[str]]], steps: Sequence[Step], remedy: str = ""):
        self.changed, self.steps = changed, steps
        together: dict[tuple[int, ...], list[str]] = {}
        for phrase in dict.fromkeys(phrase for _, phrases in changed for phrase in phrases):
            affected = _with_dependents([step for step, phrases in changed if phrase in phrases], steps)
            together.setdefault(affected, []).append(phrase)
        made = [place for place, step in enumerate(steps) if step.record() is not None]
        lines = []
        for affected, phrases in together.items():
            found = [steps[place] for place in affected if place in made]
            old = "the old value" if len(phrases) == 1 else "the old values"
            lines.append(f"{'; '.join(phrases)}: {_counted(found)} made with {old}")
        lost = {place for affected in together for place in affected}
        holds = _counted([steps[place] for place in made if place not in lost], "still holds", "still hold")
        stage = min((step.stage for step, _ in changed), key=STAGES.index)
        remedy = remedy or f"`ordermerge run --force {stage}` makes that anew; another `name` keeps it"
        place = os.path.commonpath([step.output for step, _ in changed])
        listed = f" {lines[0]}." if len(lines) == 1 else "".join(f"\n  - {line}" for line in lines) + "\n "
        super().__init__(f"{place}:{listed} {f'{holds[0].upper()}{holds[1:]}. ' if holds else ''}{remedy}")


def unfinished(steps: Iterable[Step], force: str | None = None) -> list[Step]:
    """Return the steps still to do.

    Args:
        steps: The steps.
        force: A stage of which all steps are to be done again; those of later stages may have been made otherwise.

    Raises:
        MadeOtherwise: If any were done from other inputs, about all of those together.
        UserError: If files of any are missing or changed.
    """
    steps = list(steps)
    todo, problems = list[Step](), list[str]()
    changed: list[tuple[Step, list[str]]] = []
    for step in steps:
        try:
            if step.stage == force or not step.is_done():
                todo.append(step)
        except MadeOtherwise as error:
            if force and STAGES.index(step.stage) > STAGES.index(force):
                todo.append(step)
            else:
                changed += error.changed
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    otherwise = MadeOtherwise(changed, steps) if changed else None
    if problems:
        raise UserError([*(otherwise.problems if otherwise else []), *problems])
    if otherwise:
        raise otherwise
    return todo


def mark_done(
    marker: Path,
    inputs: dict[str, Any],
    record: dict[str, Any],
    *,
    files: dict[str, Any],
    made_from: dict[str, str | None] | None = None,
) -> None:
    """Write a step's marker; call it when everything else of the step is on disk.

    Args:
        marker: The file to write.
        inputs: What `Step.is_done` will compare with.
        record: What else to note of how the output was made.
        files: What was made: `file_records` of it.
        made_from: The step's `made_from`, as it was when the step began.
    """
    now = _plain(inputs)
    head = {"fingerprint": fingerprint(now), "inputs": now, "made_from": made_from or {}}
    write_json(marker, {**head, **record, "files": files})


def recorded_files(marker: Path, *, remedy: str) -> dict[str, FileRecord] | None:
    """Return what a marker says of the files that were made, less notes; None where an older version wrote it.

    Args:
        marker: The file.
        remedy: What to do where it is damaged.

    Raises:
        UserError: If it cannot be read.
    """
    made: Made = read_json(marker, Made, remedy=remedy)
    return without_notes(made) if "files" in made else None


def _with_dependents(changed: Sequence[Step], steps: Sequence[Step]) -> tuple[int, ...]:
    """Return the places of some steps, and of those that need them."""
    known = {id(step) for step in changed}
    for step in steps:
        if any(id(need) in known for need in step.needs):
            known.add(id(step))
    return tuple(place for place, step in enumerate(steps) if id(step) in known)


def _counted(steps: Sequence[Step], one: str = "was", many: str = "were") -> str:
    """Return what some steps have made, and a verb: "3 orders, the merge mean and their scores were"."""
    trained, merged, scored = (dict.fromkeys(step.name for step in steps if step.stage == stage) for stage in STAGES)
    orders = [name for name in trained if name.startswith("order_")]
    parts = [f"{len(orders)} orders"] if len(orders) > 1 else orders
    parts += [name for name in trained if name not in orders]
    parts += [f"{len(merged)} merges"] if len(merged) > 1 else [f"the merge {name}" for name in merged]
    several = len(trained) + len(merged) > 1
    theirs = {step.name for step in steps if step.stage == "eval" and step.needs} if parts else set()
    parts += ["their scores" if several else "its scores"] if theirs else []
    others = [name for name in scored if name not in theirs]
    if others:
        parts.append(f"the scores of {', '.join(others) if len(others) <= 3 else f'{len(others)} models'}")
    if not parts:
        return ""
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{listed} {many if several or scored else one}"


@functools.lru_cache(maxsize=4096)
def _read_marker(marker: Path, stage: str, _modified: int, _size: int) -> Marker:
    """Return what a marker holds; it is read once, however many steps build on it."""
    remedy = f"delete it, or in a run redo the stage with `--force {stage}`"
    return cast(Marker, read_json(marker, Marker, remedy=remedy))


def without_notes(made: Made) -> dict[str, FileRecord]:
    """Return what a marker says of the files that were made, less those that say how.

    Args:
        made: The marker.
    """
    return {name: of for name, of in made.get("files", {}).items() if not name.endswith(NOTES)}


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value, default=str))
