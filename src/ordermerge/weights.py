"""Where a model folder stores its tensors: names, dtypes, shapes and places, from headers alone."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

# The names that mergekit looks for, in its order.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_LFS_POINTER = b"version https://git-lfs"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its header
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
        offset: Where its bytes begin in the file.
    """

    file: Path
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    offset: int = 0


def stored_tensors(folder: Path) -> dict[str, Stored] | None:
    """Return name and place of every tensor of a model; None if they are pickled (`pytorch_model.bin`).

    Args:
        folder: The model's folder: one safetensors file, or an index and its shards.

    Raises:
        Unreadable: If a file is missing, cut off or damaged.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if (folder / name).is_file():
            return read_header(folder / name) if name.endswith(".safetensors") else None
    others = sorted(path.name for path in folder.glob("*.safetensors")) or ["none at all"]
    raise Unreadable(
        f"no weights where mergekit looks for them, {' or '.join(WEIGHT_FILES)} or an index of shards "
        f"(found: {', '.join(others[:3])}); save the model with `save_pretrained`, or {COPY_AGAIN}"
    )


def _indexed(folder: Path, index: Path) -> dict[str, Stored]:
    try:
        shards = dict(json.loads(index.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{index.name} is no index of shards ({error!r}); {COPY_AGAIN}") from error
    files = sorted(set(shards.values()))
    if absent := [file for file in files if not (folder / file).is_file()]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise Unreadable(f"shard {absent[0]}{more}, named in {index.name}, is missing; {COPY_AGAIN}")
    if not files or not files[0].endswith(".safetensors"):
        return {name: Stored(folder / file) for name, file in shards.items()}
    held = {file: read_header(folder / file) for file in files}
    if lost := [name for name, file in shards.items() if name not in held[file]]:
        raise Unreadable(
            f"tensor {lost[0]} is not in {shards[lost[0]]}, where {index.name} puts it; {COPY_AGAIN}, shards and index"
        )
    return {name: held[file][name] for name, file in shards.items()}


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
            raise Unreadable(f"{file.name} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
        opened.seek(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise Unreadable(f"{file.name} ({size} bytes) is cut off or no safetensors file; {COPY_AGAIN}")
        text = opened.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
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


def count(tensor: Stored) -> int:
    """Return how many values a tensor has.

    Args:
        tensor: One whose shape is known.
    """
    return math.prod(tensor.shape or ())
