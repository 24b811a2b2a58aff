"""Done or not: a stage's marker is written last and holds the fingerprint of the stage's inputs."""

import json
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError
from ordermerge.files import fingerprint, write_json


def is_done(marker: Path, inputs: dict[str, Any], *, stage: str, output: Path | None = None) -> bool:
    """Return whether a stage was finished with just these inputs.

    Args:
        marker: The file that `mark_done` writes.
        inputs: JSON-like values: the stage's part of the configuration, and fingerprints of its input files.
        stage: The stage's name as `--force` takes it, for the message.
        output: What the stage made, for the message; the marker's folder if not given.

    Raises:
        UserError: If it was finished with other inputs; the message names each that changed.
    """
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        before = record["inputs"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{marker}: cannot be read as a marker ({error!r}); redo it with `--force {stage}`") from None
    now = json.loads(json.dumps(inputs, default=str))
    if record.get("fingerprint") == fingerprint(now):
        return True
    changes = "; ".join(_changes(before, now)) or "its marker was edited"
    raise UserError(
        f"{output or marker.parent} was made with other inputs: {changes}. "
        f"Keep it and write elsewhere (another `name` or `--out`), or redo it (`ordermerge run ... --force {stage}`)"
    )


def mark_done(marker: Path, inputs: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a stage's marker; call it when everything else of the stage is on disk.

    Args:
        marker: The file to write.
        inputs: What `is_done` will compare with.
        record: What else to note of how the output was made.
    """
    now = json.loads(json.dumps(inputs, default=str))
    write_json(marker, {"fingerprint": fingerprint(now), "inputs": now, **record})


def _changes(before: Any, now: Any, where: str = "") -> list[str]:
    """Return one phrase for each place where two JSON-like values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        parts = [_changes(before.get(key), now.get(key), f"{where}.{key}" if where else key) for key in keys]
        return [phrase for part in parts for phrase in part]
    return [] if before == now else [f"`{where}` was {_short(before)}, is now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
