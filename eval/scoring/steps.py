"""The step that scores a model on a task, and what merely adds documents to it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ordermerge.files import fingerprint
from ordermerge.stages import Marker, Step

SIZES = "bytes"  # in the marker: the sizes of the data files
# Where the experiment has what a score is made from.
KEYS = {"files.": "evaluation.tasks.", "model": "the model", "model.recipe.": "recipe."}


@dataclass(frozen=True)
class ScoringStep(Step):
    """Scores a model on a task.

    Attributes:
        data: The task's files of one document a line, by where `inputs` has their fingerprints below "files".
    """

    data: Mapping[str, Path] = field(default_factory=dict, repr=False, compare=False)

    def adds_to(self, record: Marker) -> bool:
        """Return whether documents were added and nothing else changed: at a file's end, or by a higher `limit`.

        Args:
            record: What its marker holds.
        """
        before, now = record["inputs"], self.inputs
        files: dict[str, Any] = {
            name: {file: self._known(record, f"{name}.{file}", digest) for file, digest in of.items()}
            for name, of in now["files"].items()
        }
        evaluation = dict(now["evaluation"])
        if _is_raised(before.get("evaluation", {}).get("limit"), evaluation["limit"]):
            evaluation["limit"] = before["evaluation"]["limit"]
        return fingerprint(before) == fingerprint({**now, "files": files, "evaluation": evaluation})

    def _known(self, record: Marker, name: str, digest: str) -> str:
        """Return the fingerprint that a file had, if it has only grown since; else the one that it has."""
        noted: dict[str, Any] = {**record}
        path, size = self.data.get(name), noted.get(SIZES, {}).get(name)
        if path is None or size is None or path.stat().st_size <= size:
            return digest
        with open(path, "rb") as file:
            old, after = file.read(size), file.read(1)
        return hashlib.sha256(old).hexdigest() if old.endswith(b"\n") or after in b"\r\n" else digest


def sizes(step: Step) -> dict[str, int]:
    """Return the sizes of a step's data files in bytes, by name.

    Args:
        step: The step.
    """
    return {name: path.stat().st_size for name, path in step.data.items()} if isinstance(step, ScoringStep) else {}


def _is_raised(before: float | None, now: float | None) -> bool:
    """Return whether a limit lets more documents through than the one before; a fraction is below 1."""
    if before is None or now is None:
        return before is not None
    return before < now and (before < 1) == (now < 1)
