"""Stages and their steps: done or not, by a marker written last that holds the fingerprint of the step's inputs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError
from ordermerge.files import fingerprint, write_json

STAGES = ("train", "merge", "eval")


@dataclass(frozen=True)
class Step:
    """One unit of work that is done once.

    Attributes:
        stage: One of `STAGES`, which is what `--force` takes.
        name: The order, merge or model.
        output: The folder it makes.
        marker: Its marker file, relative to that folder.
        inputs: JSON-like values: its part of the configuration, and fingerprints of its input files.
    """

    stage: str
    name: str
    output: Path
    marker: str
    inputs: dict[str, Any]

    def is_done(self) -> bool:
        """Return whether the step was finished with just these inputs.

        Raises:
            UserError: If it was finished with other inputs; the message names each that changed.
        """
        marker = self.output / self.marker
        try:
            record = json.loads(marker.read_text(encoding="utf-8"))
            before = record["inputs"]
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"{marker}: cannot be read as a marker ({error!r}); delete it, or in a run redo the stage with "
                f"`--force {self.stage}`"
            ) from None
        now = json.loads(json.dumps(self.inputs, default=str))
        if record.get("fingerprint") == fingerprint(now):
            return True
        changed = "; ".join(changes(before, now)) or "its marker was edited"
        raise UserError(
            f"{self.output} was made with other inputs: {changed}. Keep it and write elsewhere (another `name` or "
            f"`--out`), or make it anew: delete it or, in a run, `--force {self.stage}`"
        )


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


def mark_done(marker: Path, inputs: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a step's marker; call it when everything else of the step is on disk.

    Args:
        marker: The file to write.
        inputs: What `Step.is_done` will compare with.
        record: What else to note of how the output was made.
    """
    now = json.loads(json.dumps(inputs, default=str))
    write_json(marker, {"fingerprint": fingerprint(now), "inputs": now, **record})


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


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
