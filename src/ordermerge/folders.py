"""Folders that are whole or absent: filled elsewhere, under a name of their own, and put in place as the last act."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ordermerge.errors import UserError
from ordermerge.files import is_write_problem, sync, unique, workshop, write_json, write_problem
from ordermerge.locks import is_locked, lock

_BEFORE = ".before"  # in a working folder: what stood in its place
_MOVED = ".moved.json"  # in a working folder: the names of the files that are put in place one by one
_LAST = ("config.json", "ordermerge.json")  # without the first no loader takes a folder for a model
_WORKING, _SCRATCH, _LOCK = ".partial", ".scratch", ".lock"


@contextmanager
def new_directory(
    path: Path, *, resumable: str | None = None, own: Collection[str] | None = None, beside: bool = False
) -> Iterator[Path]:
    """Yield a folder that takes the place of `path` only when the block ends well; to be used under `lock(path)`.

    An earlier folder at `path` stays until then. Its files get the permissions that the umask leaves, and are on the
    disk before the folder is renamed. What killed processes left is cleared first.

    Where `path` cannot be renamed (a mount point), or others' files stay in it, files are put in place one by one.

    Args:
        path: The folder to make.
        resumable: Name of a folder beside the yielded one; where the block makes it, all stays after a failure, and
            the next call goes on with it.
        own: The files of the earlier folder that go where it must stay.
        beside: Add to the earlier folder, whose files all stay but for those of the same names.

    Yields:
        The folder to fill, empty but for the work of a process that left `resumable`. It is `NAME` in a folder of its
        own: some programs write a folder's own name into its files.

    Raises:
        UserError: If it cannot be written, or another process has put something in its place meanwhile.
    """
    path = path.resolve()
    place = workshop(path)
    workplace = place / f".{path.name}{_WORKING}-{unique()}"
    keep = resumable
    try:
        try:
            clear_leftovers(path, take_over=workplace if resumable else None, resumable=resumable)
            (workplace / path.name).mkdir(parents=True, exist_ok=True)
            stood = _identity(path)
            yield workplace / path.name
            finish(workplace / path.name)
            if beside or place == path:
                _move_files(workplace / path.name, path, own or [], beside=beside)
            else:
                _swap(workplace / path.name, path, stood)
            keep = None
        except Exception as error:
            if is_write_problem(error, place):
                raise UserError(write_problem(error, path)) from error
            if isinstance(error, FileNotFoundError) and not workplace.exists():
                raise UserError(
                    f"{path}: another process has begun to make it, and took this one's work away"
                ) from error
            raise
    finally:
        if keep is None or not (workplace / keep).exists():
            shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def scratch_directory(place: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder that is there for as long as the block; those that killed processes left go first.

    Args:
        place: Where to make it.
        name: What it is for.
    """
    folder = place / f".{name}{_SCRATCH}-{unique()}"
    with lock(folder):
        clear_dead(place, name)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear_dead(place: Path, name: str = "", *, keep: Collection[str] = ()) -> None:
    """Remove the working and scratch folders, and the files of locks on folders, that killed processes left in a place.

    Args:
        place: The folder that they are in.
        name: Only scratch folders of this name; all, and working folders too, by default.
        keep: Of these names, working folders stay: who makes them anew goes on with them.
    """
    for entry in _entries(place):
        if entry.name.endswith(_LOCK):  # of a finished thing: nobody takes it again
            thing = place / entry.name[1 : -len(_LOCK)]
            lost = not name and thing.name not in keep and (thing.is_dir() or _SCRATCH in thing.name)
        elif _SCRATCH in entry.name and entry.name.startswith(f".{name}"):
            thing, lost = entry, True
        else:
            thing = place / entry.name.removeprefix(".").partition(_WORKING)[0]
            lost = not name and _is_leftover(entry, thing) and thing.name not in keep
        if lost and not is_locked(thing):
            with suppress(UserError), lock(thing, wait=False):
                clear_leftovers(thing) if thing != entry else _remove(entry)


def clear_leftovers(path: Path, *, take_over: Path | None = None, resumable: str | None = None) -> None:
    """Undo what a process that was killed while it made a folder has left; to be used under `lock(path)`.

    Args:
        path: The folder that was made.
        take_over: Where to move the newest working folder that holds `resumable`.
        resumable: As in `new_directory`.
    """
    left = sorted(
        (entry for entry in _entries(workshop(path)) if _is_leftover(entry, path)), key=lambda e: e.stat().st_mtime
    )
    for entry in left:
        if (entry / _BEFORE).exists() and not path.exists():
            os.rename(entry / _BEFORE, path)
        if (entry / _MOVED).exists():
            for name in json.loads((entry / _MOVED).read_text(encoding="utf-8")):
                (path / name).unlink(missing_ok=True)
    if take_over and resumable and (whole := [entry for entry in left if (entry / resumable).exists()]):
        left.remove(whole[-1])
        os.rename(whole[-1], take_over)
    for entry in left:
        _remove(entry)


def finish(folder: Path) -> None:
    """Give all files in a folder the permissions that the umask leaves, and wait until they are on the disk.

    Libraries make files that only their owner can read, whatever the umask is.

    Args:
        folder: A folder that was made by `mkdir`, whose own permissions tell the umask.
    """
    allowed = folder.stat().st_mode & 0o777
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        wanted = allowed if path.is_dir() else allowed & 0o666
        if stat.S_IMODE(path.stat().st_mode) & 0o777 != wanted:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o777 | wanted)
        sync(path)


def _swap(partial: Path, path: Path, stood: object) -> None:
    """Put a finished folder in the place of what stood there when it was begun, and of nothing else."""
    before = partial.parent / _BEFORE
    if path.exists():
        os.rename(path, before)
        if _identity(before) != stood:
            os.rename(before, path)
            raise _made_meanwhile(path)
    try:
        os.rename(partial, path)  # refuses to replace a folder that is not empty
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _made_meanwhile(path) from error
        if before.exists():
            os.rename(before, path)
        raise
    sync(path.parent)


def _move_files(partial: Path, path: Path, own: Collection[str], *, beside: bool) -> None:
    """Put finished files in place one by one; until the last there is no marker, and no model to load."""
    files = [file.relative_to(partial).as_posix() for file in partial.rglob("*") if file.is_file()]
    files.sort(key=lambda name: (_LAST.index(name) if name in _LAST else -1, "ordermerge_" in name, name))
    if taken := [] if beside else [name for name in files if name not in own and (path / name).exists()]:
        raise UserError(f"{path}: holds {', '.join(taken)}, which no merge wrote; move it away, or name a new folder")
    write_json(partial.parent / _MOVED, sorted({*own, *files}))
    for name in (name for name in reversed(_LAST) if name in own):
        (path / name).unlink(missing_ok=True)
    for name in {*own} - {*files}:
        (path / name).unlink(missing_ok=True)
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, path / name)
    sync(path)
    (partial.parent / _MOVED).unlink()


def _made_meanwhile(path: Path) -> UserError:
    return UserError(f"{path}: another process has made it meanwhile; it is kept, and this one's work is dropped")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from one that took its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns  # inodes are used again


def _is_leftover(entry: Path, path: Path) -> bool:
    start = f".{path.name}{_WORKING}"
    return entry.is_dir() and (entry.name == start or entry.name.startswith(f"{start}-"))


def _entries(place: Path) -> list[Path]:
    return sorted(place.iterdir()) if place.is_dir() else []


def _remove(entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)
