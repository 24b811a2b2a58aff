"""Stages and their steps: done or not, by a marker written last that holds the fingerprint of the step's inputs."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, cast

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ordermerge.errors import UserError
from ordermerge.files import FileRecord, file_problems, fingerprint, write_json
from ordermerge.yaml_json import read_json

NOTES = (".md", ".log", ".yml")  # files that say how something was made, and when


@with_config(ConfigDict(extra="allow"))
class Made(TypedDict):
    """What every marker says of what was made."""

    files: NotRequired[dict[str, FileRecord]]


class Marker(Made):
    """What a step's marker holds."""

    fingerprint: str
    inputs: dict[str, Any]
    made_from: NotRequired[dict[str, str | None]]


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
    """

    stage: str
    name: str
    output: Path
    marker: str
    inputs: dict[str, Any]
    needs: tuple["Step", ...] = field(default=(), repr=False)

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of its inputs."""
        return fingerprint(_plain(self.inputs))

    def is_done(self) -> bool:
        """Return whether the step was finished with just these inputs, from what the steps that it needs have made.

        If one of these has been made anew, and differently, the step is to be done again. Whether those steps are done
        themselves is asked of them.

        Raises:
            UserError: If it was finished with other inputs, which the message names, or a file of it is missing or
                has been changed since.
        """
        record = self.record()
        if record is None:
            return False
        if record["fingerprint"] != self.fingerprint:
            changed = "; ".join(changes(record["inputs"], _plain(self.inputs))) or "its marker was edited"
            raise UserError(
                f"{self.output} was made with other inputs: {changed}. Keep it and write elsewhere (another `name` or "
                f"`--out`), or make it anew: delete it or, in a run, `--force {self.stage}`"
            )
        if problems := file_problems(self.output, _without_notes(record)):
            raise UserError(
                f"{problem}; restore it, or make it anew: delete {self.output} or, in a run, `--force {self.stage}`"
                for problem in problems
            )
        return record.get("made_from", {}) == self.made_from()

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
        files = _without_notes(record)
        return fingerprint({name: of["sha256"] for name, of in files.items() if name != self.marker})

    def made_from(self) -> dict[str, str | None]:
        """Return for each step that it needs the fingerprint of what that has made."""
        return {need.name: need.made() for need in self.needs}


def unfinished(steps: Iterable[Step]) -> list[Step]:
    """Return the steps still to do.

    Args:
        steps: The steps.

    Raises:
        UserError: If any were done from other inputs, about all of those together.
    """
    todo, problems = [], []
    for step in steps:
        try:
            if not step.is_done():
                todo.append(step)
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise UserError(problems)
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
    return _without_notes(made) if "files" in made else None


def changes(before: Any, now: Any, where: str = "") -> list[str]:
    """Return one phrase for each place where two JSON-like values differ.

    Args:
        before: A value.
        now: The other.
        where: The key that both are found at.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        parts = [changes(before.get(key), now.get(key), f"{where}.{key}" if where else key) for key in keys]
        return [phrase for part in parts for phrase in part]
    return [] if before == now else [f"`{where}` was {_short(before)}, is now {_short(now)}"]


@functools.lru_cache(maxsize=4096)
def _read_marker(marker: Path, stage: str, _modified: int, _size: int) -> Marker:
    """Return what a marker holds; it is read once, however many steps build on it."""
    remedy = f"delete it, or in a run redo the stage with `--force {stage}`"
    return cast(Marker, read_json(marker, Marker, remedy=remedy))


def _without_notes(made: Made) -> dict[str, FileRecord]:
    return {name: of for name, of in made.get("files", {}).items() if not name.endswith(NOTES)}


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
