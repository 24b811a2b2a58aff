"""Files and folders that are either whole or absent, fingerprints of files, and disk space."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part.

    Args:
        path: Where to write; parent folders are made.
        text: The content, written as UTF-8.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: Where to write; parent folders are made.
        content: The content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all (see `write_text`).

    Args:
        path: Where to write.
        value: Anything `json` takes; other objects (paths, numpy scalars) are written as their text.
    """
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


@contextmanager
def new_directory(path: Path, *, keep_if_present: str | None = None) -> Iterator[Path]:
    """Yield a folder that takes the place of `path` only when the block ends well.

    An earlier folder at `path` stays until then. What an interrupted run left is cleared first, unless it holds the
    keep_if_present: then the folder to fill is as that run left it.

    Args:
        path: The folder to make.
        keep_if_present: Name of a folder beside the yielded one; where the block makes it, all stays after a failure.

    Yields:
        The folder to fill (see `partial_directory`), empty but for the work of a run that left the keep_if_present.
    """
    path = path.resolve()
    partial = partial_directory(path)
    workplace = partial.parent
    _clear(workplace, keep_if_present)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if path.exists():
            os.replace(path, workplace / ".before")
        os.replace(partial, path)
        keep_if_present = None
    finally:
        _clear(workplace, keep_if_present)


def partial_directory(path: Path) -> Path:
    """Return the folder in which `new_directory` has a folder filled.

    It is `.NAME.partial/NAME` beside it: some programs write a folder's own name into its files.

    Args:
        path: The folder to be made.
    """
    path = path.resolve()
    return path.with_name(f".{path.name}.partial") / path.name


def fingerprint(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON-like value; the order of mapping keys does not matter.

    Args:
        value: Nested dicts, lists, strings, numbers, booleans, None and paths.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes.

    Args:
        path: The file.
    """
    status = path.stat()
    return _digest(path, status.st_size, status.st_mtime_ns)


def fingerprint_path(path: Path) -> str:
    """Return one SHA-256 (hex) for a file, or for the names and bytes of all files below a folder.

    Compiled Python and hidden files do not count.

    Args:
        path: A file or folder.
    """
    if path.is_file():
        return fingerprint_file(path)
    files = (p for p in path.rglob("*") if p.is_file() and p.suffix != ".pyc")
    visible = (p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts))
    return fingerprint({p.relative_to(path).as_posix(): fingerprint_file(p) for p in visible})


def file_records(folder: Path, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return size, time of the last change and SHA-256 of files that were just written.

    Args:
        folder: The folder that they are in.
        names: Their paths below it; by default all, less hidden ones.

    Returns:
        By path below the folder: "size" in bytes, "modified" in nanoseconds, "sha256" in hex.
    """
    if names is None:
        below = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
        names = [path.as_posix() for path in below if not any(part.startswith(".") for part in path.parts)]
    records = {}
    for name in names:
        status = (folder / name).stat()
        digest = fingerprint_file(folder / name)
        records[name] = {"size": status.st_size, "modified": status.st_mtime_ns, "sha256": digest}
    return records


def checkpoint_bytes(folder: Path, dtype: str | None = None) -> int:
    """Return how much disk a checkpoint's weights take, or would take in another dtype.

    Args:
        folder: A local checkpoint; 0 is returned where it has no weights that are known here.
        dtype: "float16", "bfloat16", "float32" or "float64"; as stored, if not given.
    """
    files = [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    stored = sum(file.stat().st_size for file in files)
    if dtype not in _ITEM_BYTES or not files or files[0].suffix != ".safetensors":
        return stored
    from safetensors import safe_open

    with safe_open(files[0], framework="np") as opened:
        kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return stored * _ITEM_BYTES[dtype] // max((_ITEM_BYTES.get(kind, 1) for kind in kinds), default=1)


def require_space(directory: Path, needed: int, what: str) -> None:
    """Refuse work whose result would not fit on the disk.

    Args:
        directory: Where the result goes; it need not exist yet.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        UserError: If fewer bytes are free.
    """
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.3g} GB of disk, and {existing} has {free / 1e9:.3g} GB free; "
            "free some, or write elsewhere"
        )


def _clear(workplace: Path, keep_if_present: str | None) -> None:
    if keep_if_present is None or not (workplace / keep_if_present).exists():
        shutil.rmtree(workplace, ignore_errors=True)


@functools.cache
def _digest(path: Path, _size: int, _modified: int) -> str:
    """Return the SHA-256 (hex) of a file; a base model's gigabytes are read once, however many stages ask."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
