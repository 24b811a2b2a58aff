"""Files that are either whole or absent, fingerprints of files, disk space, and what is said of a failing disk."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ordermerge.errors import UserError

CARD = "README.md"  # of a model
_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_MOST_LETTERS, _TEMPORARY, _DAY = 160, ".writing-", 86400
_REMEDY = "mend that, or write elsewhere"
_REMEDIES = {
    errno.ENOSPC: "free some space there, or write elsewhere; the same command goes on",
    errno.EDQUOT: "free some of your quota there, or write elsewhere; the same command goes on",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "have its permissions changed, or write elsewhere",
    errno.EPERM: "have its permissions changed, or write elsewhere",
    errno.EFBIG: "raise the limit on a file's size (`ulimit -f`), or write elsewhere",
    errno.EIO: "the disk is failing: write elsewhere",
}
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
# What `torch.save` says when it cannot write, in a RuntimeError without the system's own words.
_TORCH_WRITER = re.compile(r"PytorchStreamWriter failed|inline_container\.cc|iostream error|file write failed")


FileStates = dict[str, list[int]]  # by path: size, time of the last change in nanoseconds, inode


class Digest(TypedDict):
    """A digest of files, and what they were when it was made."""

    files: FileStates
    digest: str


# The digests that are known, by name: this process's, or those that `run_directory.digests_kept` reads and writes.
digests: ContextVar[MutableMapping[str, Digest]] = ContextVar("digests", default={})  # noqa: B039 (one for the process)


class FileRecord(TypedDict):
    """What is noted of a file that was made."""

    size: int
    modified: int
    sha256: str


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part.

    Args:
        path: Where to write; parent folders are made.
        text: The content, written as UTF-8.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; what is equal is left as it is.

    Several processes may write the same file at once: each has a temporary file of its own.

    Args:
        path: Where to write; parent folders are made.
        content: The content.

    Raises:
        UserError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name[:_MOST_LETTERS]}{_TEMPORARY}{unique()}")
    try:
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(partial)
        try:
            with open(partial, "xb") as file:  # never what a link of that name points to
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if is_write_problem(error, path.parent):
            raise UserError(write_problem(error, path)) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all (see `write_text`).

    Args:
        path: Where to write.
        value: Anything `json` takes; other objects (paths, numpy scalars) are written as their text.
    """
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def user_path(given: str) -> Path:
    """Return a path in which `~` may stand for a home; that of an unknown user is the name of a folder.

    Args:
        given: The path.
    """
    return Path(os.path.expanduser(given))  # pathlib's own raises


def unique() -> str:
    """Return a part of a file's name that no other process has: host, process and a random number."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk.

    Args:
        path: The file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def workshop(path: Path) -> Path:
    """Return where to work on a folder, such that the result can be renamed to it: beside it, or else within it.

    Args:
        path: The folder to be made.
    """
    path = path.resolve()
    within = path.is_dir() and (_is_mount_point(path) or not os.access(path.parent, os.W_OK))
    return path if within else path.parent


def is_write_problem(error: BaseException, place: Path) -> bool:
    """Return whether an error means that something in a place cannot be written, whichever library says so.

    Args:
        error: What was raised.
        place: The folder that was written to.
    """
    cause = _write_error(error)
    if cause is None:
        return False
    name = getattr(cause, "filename", None)
    return name is None or Path(os.path.abspath(os.fsdecode(name))).is_relative_to(place.absolute())


def write_problem(error: BaseException, path: Path) -> str:
    """Return one sentence on why a file or folder cannot be written, and what to do.

    Args:
        error: What was raised.
        path: What was to be written; the error itself may know better.
    """
    cause = _write_error(error) or error
    code = getattr(cause, "errno", None) or _said_code(cause) or 0
    reason = os.strerror(code) if code else " ".join(str(cause).split())[:200]
    return f"{getattr(cause, 'filename', None) or path}: cannot be written: {reason}; {_REMEDIES.get(code, _REMEDY)}"


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
    return recall(str(path), [path], lambda: _digest(path))


def file_states(paths: Iterable[Path]) -> FileStates:
    """Return for each file what is another when its content is.

    Args:
        paths: Files.
    """
    states = ((path, path.stat()) for path in paths)
    return {str(path): [status.st_size, status.st_mtime_ns, status.st_ino] for path, status in states}


def recall(name: str, files: Iterable[Path], read: Callable[[], str]) -> str:
    """Return a digest of files: a base model's gigabytes are read once, however many stages ask.

    Args:
        name: Names the digest.
        files: What it is of; where none of them has changed since it was last made, it is not made again.
        read: Makes it.
    """
    known, states = digests.get(), file_states(files)
    found = known.get(name)
    if found is None or found["files"] != states:
        found = {"files": states, "digest": read()}
    known[name] = found
    return found["digest"]


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


def file_records(folder: Path, names: Iterable[str] | None = None) -> dict[str, FileRecord]:
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
    records: dict[str, FileRecord] = {}
    for name in names:
        status = (folder / name).stat()
        digest = fingerprint_file(folder / name)
        records[name] = {"size": status.st_size, "modified": status.st_mtime_ns, "sha256": digest}
    return records


def file_problems(folder: Path, records: Mapping[str, FileRecord], *, deep: bool = False) -> list[str]:
    """Return a sentence on each file that is not what it was when it was written.

    A model's card is passed over: scores are put into it later, and people write there.

    Args:
        folder: The folder that the files are in.
        records: From `file_records`.
        deep: Whether to read all files; else only those whose size or time of change is another.
    """
    problems = []
    for name, then in records.items():
        path = folder / name
        if name == CARD:
            continue
        try:
            status = path.stat()
            if status.st_size != then["size"]:
                problems.append(f"{path}: has {status.st_size} bytes, and had {then['size']} when it was made")
            elif deep or status.st_mtime_ns != then["modified"]:
                with open(path, "rb") as file:  # not the remembered digest: a flipped bit changes no time
                    if hashlib.file_digest(file, "sha256").hexdigest() != then["sha256"]:
                        problems.append(f"{path}: is not what it was when it was made (its SHA-256 is another)")
        except FileNotFoundError:
            problems.append(f"{path}: is missing")
    return problems


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


def _write_error(error: BaseException | None) -> BaseException | None:
    """Return the error, or the one behind it, that tells of a failing disk; None if none does."""
    while error is not None:
        code = error.errno if isinstance(error, OSError) else _said_code(error)
        if code in _REMEDIES or (isinstance(error, RuntimeError) and _TORCH_WRITER.search(str(error))):
            return error
        error = error.__cause__ or error.__context__
    return None


def _said_code(error: BaseException) -> int | None:
    """Return the number of the system's error that safetensors or PyTorch's writer put into their message alone."""
    said = str(error)
    if isinstance(error, RuntimeError) and _TORCH_WRITER.search(said):
        return next((code for code in _REMEDIES if os.strerror(code) in said), None)
    found = _SYSTEM_ERROR.search(said) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else None


def _remove_dead(partial: Path) -> None:
    """Remove the temporary files that killed processes left for the same file."""
    start, host = partial.name.partition(_TEMPORARY)[0] + _TEMPORARY, socket.gethostname()
    for name in os.listdir(partial.parent):
        if not name.startswith(start):
            continue
        owner, _, number = name.removeprefix(start).rpartition("-")[0].rpartition("-")
        with suppress(OSError):  # another process may be doing the same
            old = time.time() - (partial.parent / name).stat().st_mtime > _DAY
            if old or (owner == host and number.isdecimal() and not _is_alive(int(number))):
                (partial.parent / name).unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_mount_point(path: Path) -> bool:
    mounts = Path("/proc/self/mountinfo")  # names bind mounts too, which look like any folder
    if os.path.ismount(path) or not mounts.is_file():
        return os.path.ismount(path)
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in str(path))
    return any(line.split(" ")[4] == escaped for line in mounts.read_text(errors="surrogateescape").splitlines())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
