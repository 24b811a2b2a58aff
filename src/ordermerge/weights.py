"""Where a model folder stores its tensors: which files count; names, dtypes, shapes and places, from headers alone.

What transformers would load counts: a `model.safetensors` before an index of shards, safetensors before pickles.
"""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from pydantic_core import from_json

from ordermerge.errors import shortened

# In transformers' order; mergekit prefers an index to a whole file, and would take what an earlier save has left.
WEIGHT_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
_PICKLED_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_LFS_POINTER = b"version https://git-lfs"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its header
_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
COPY_AGAIN = "copy or download it again"


class Unreadable(ValueError):
    """A file of a checkpoint cannot be what its name says; the text says why."""


@dataclass(frozen=True)
class Stored:
    """One tensor as a checkpoint stores it.

    Args:
        file: The file that holds it.
        dtype: The name safetensors gives its dtype; None where only an index is known.
        shape: Its shape; None where only an index is known.
        offset: Where its bytes begin in the file; None in a pickle.
    """

    file: Path
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    offset: int | None = None


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return name and place of every tensor of a model.

    Args:
        folder: The model's folder: one file of weights, or an index and its shards.

    Raises:
        Unreadable: If a file is missing, cut off or damaged.
    """
    if file := _weight_file(folder):
        return _indexed(folder, file) if file.suffix == ".json" else _tensors_of(file)
    others = sorted(path.name for path in folder.glob("*.safetensors")) or ["none at all"]
    raise Unreadable(
        f"no weights where mergekit looks for them, {WEIGHT_FILES[0]} or {WEIGHT_FILES[2]} or an index of shards "
        f"(found: {', '.join(others[:3])}); save the model with `save_pretrained`, or {COPY_AGAIN}"
    )


def unused_weights(folder: Path, tensors: Mapping[str, Stored]) -> list[str]:
    """Return the files of a model that look like weights and are not among those that count.

    Args:
        folder: The model's folder.
        tensors: What counts (see `stored_tensors`).
    """
    chosen = _weight_file(folder)
    used = {stored.file.name for stored in tensors.values()} | ({chosen.name} if chosen else set())
    return sorted(path.name for path in folder.iterdir() if weight_like(path.name) and path.name not in used)


def weight_like(name: str) -> bool:
    """Tell whether a file is named as transformers names weights and their indices.

    Args:
        name: The file's name.
    """
    return any(fnmatch(name, pattern) for pattern in _WEIGHTS)


def is_pickled(folder: Path) -> bool:
    """Tell whether the weights of a model that count are pickles.

    Args:
        folder: The model's folder.
    """
    file = _weight_file(folder)
    return file is not None and ".bin" in file.name


def _weight_file(folder: Path) -> Path | None:
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def _indexed(folder: Path, index: Path) -> dict[str, Stored]:
    try:
        shards = dict(from_json(index.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{index.name} is no index of shards ({error!r}); {COPY_AGAIN}") from error
    files = sorted(set(shards.values()))
    if absent := [file for file in files if not (folder / file).is_file()]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise Unreadable(f"shard {absent[0]}{more}, named in {index.name}, is missing; {COPY_AGAIN}")
    held = {file: _tensors_of(folder / file) for file in files}
    if lost := [name for name, file in shards.items() if name not in held[file]]:
        raise Unreadable(
            f"tensor {lost[0]} is not in {shards[lost[0]]}, where {index.name} puts it; {COPY_AGAIN}, shards and index"
        )
    # transformers loads what the shards hold, in the index or not.
    return {name: stored for tensors in held.values() for name, stored in tensors.items()}


def _tensors_of(file: Path) -> dict[str, Stored]:
    return read_header(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_pickle(file: Path) -> dict[str, Stored]:
    """Return name, dtype and shape of every tensor in a pickled file, without running what it holds."""
    with open(file, "rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise Unreadable(_lfs_problem(file))
    try:
        held = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
        held = held.get("state_dict", held)
        items = [(name, tensor) for name, tensor in held.items() if isinstance(tensor, torch.Tensor)]
    except Exception as error:  # pickles raise many kinds
        raise Unreadable(
            f"{file.name} cannot be read ({shortened(' '.join(str(error).split()))}); {COPY_AGAIN}"
        ) from error
    kinds = {name: str(tensor.dtype).removeprefix("torch.").upper() for name, tensor in items}
    return {
        name: Stored(file, _PICKLED_DTYPES.get(tensor.dtype, kinds[name]), tuple(tensor.shape))
        for name, tensor in items
    }


def read_header(file: Path) -> dict[str, Stored]:
    """Return name and place of every tensor in a safetensors file.

    Args:
        file: The file; only its header is read.

    Raises:
        Unreadable: If it is cut off, or no safetensors file.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(_LENGTH_BYTES)
        if (start + opened.read(len(_LFS_POINTER))).startswith(_LFS_POINTER):
            raise Unreadable(_lfs_problem(file))
        opened.seek(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise Unreadable(f"{file.name} ({size} bytes) is cut off or no safetensors file; {COPY_AGAIN}")
        text = opened.read(length)
    try:
        entries = {name: entry for name, entry in from_json(text).items() if name != "__metadata__"}
        ends = [_LENGTH_BYTES + length, *(_LENGTH_BYTES + length + e["data_offsets"][1] for e in entries.values())]
        tensors = {
            name: Stored(file, e["dtype"], tuple(e["shape"]), _LENGTH_BYTES + length + e["data_offsets"][0])
            for name, e in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Unreadable(f"the header of {file.name} is damaged ({error!r}); {COPY_AGAIN}") from error
    if max(ends) != size:
        raise Unreadable(f"{file.name} has {size} bytes where its header tells of {max(ends)}; {COPY_AGAIN}")
    return tensors


def _lfs_problem(file: Path) -> str:
    return f"{file.name} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository"


def count(tensor: Stored) -> int:
    """Return how many values a tensor has.

    Args:
        tensor: One whose shape is known.
    """
    return math.prod(tensor.shape or ())
