"""What can be known of a checkpoint without reading it: its config, and the names, shapes and places of its tensors."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from mergekit.common import ModelReference

# The names that mergekit looks for, in its order.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_LFS_POINTER = b"version https://git-lfs"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its header
_COPY_AGAIN = "copy or download it again"


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


@dataclass(frozen=True)
class Checkpoint:
    """A local model as its headers describe it.

    Args:
        path: The folder, as the recipe names it.
        config: Its config.json, sections as attributes; None if there is none that can be read.
        tensors: Name to place; None where finding out would mean unpickling, or an adapter is to be merged first.
        problems: What keeps it from being merged, one sentence each.
    """

    path: str
    config: SimpleNamespace | None
    tensors: Mapping[str, Stored] | None
    problems: tuple[str, ...]


def open_checkpoint(reference: ModelReference) -> Checkpoint | None:
    """Return what the headers say of a model; None if it is not a local folder with a config.json.

    Args:
        reference: The model, with an adapter or without.
    """
    path = reference.model.path
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        return None
    problems: list[str] = []
    config, tensors = None, None
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"), object_hook=lambda d: SimpleNamespace(**d))
    except ValueError as error:
        problems.append(f"model {path}: config.json is not valid JSON ({error}); {_COPY_AGAIN}")
    if reference.override_architecture and config is not None:
        config.architectures = [reference.override_architecture]
    try:
        tensors = _tensors(folder)
    except Unreadable as error:
        problems.append(f"model {path}: {error}")
    return Checkpoint(path, config, None if reference.lora else tensors, tuple(problems))


def _tensors(folder: Path) -> dict[str, Stored] | None:
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed(folder, index)
        if (folder / name).is_file():
            return read_header(folder / name) if name.endswith(".safetensors") else None
    others = sorted(path.name for path in folder.glob("*.safetensors")) or ["none at all"]
    raise Unreadable(
        f"no weights where mergekit looks for them, {' or '.join(WEIGHT_FILES)} or an index of shards "
        f"(found: {', '.join(others[:3])}); save the model with `save_pretrained`, or {_COPY_AGAIN}"
    )


def _indexed(folder: Path, index: Path) -> dict[str, Stored]:
    try:
        shards = dict(json.loads(index.read_text("utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{index.name} is no index of shards ({error!r}); {_COPY_AGAIN}") from error
    files = sorted(set(shards.values()))
    if absent := [file for file in files if not (folder / file).is_file()]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise Unreadable(f"shard {absent[0]}{more}, named in {index.name}, is missing; {_COPY_AGAIN}")
    if not files or not files[0].endswith(".safetensors"):
        return {name: Stored(folder / file) for name, file in shards.items()}
    held = {file: read_header(folder / file) for file in files}
    if lost := [name for name, file in shards.items() if name not in held[file]]:
        raise Unreadable(
            f"tensor {lost[0]} is not in {shards[lost[0]]}, where {index.name} puts it; {_COPY_AGAIN}, shards and index"
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
            raise Unreadable(f"{file.name} ({size} bytes) is cut off or no safetensors file; {_COPY_AGAIN}")
        text = opened.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        ends = [_LENGTH_BYTES + length, *(_LENGTH_BYTES + length + e["data_offsets"][1] for e in entries.values())]
        tensors = {
            name: Stored(file, e["dtype"], tuple(e["shape"]), _LENGTH_BYTES + length + e["data_offsets"][0])
            for name, e in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise Unreadable(f"the header of {file.name} is damaged ({error!r}); {_COPY_AGAIN}") from error
    if max(ends) != size:
        raise Unreadable(f"{file.name} has {size} bytes where its header tells of {max(ends)}; {_COPY_AGAIN}")
    return tensors


def count(tensor: Stored) -> int:
    """Return how many values a tensor has.

    Args:
        tensor: One whose shape is known.
    """
    return math.prod(tensor.shape or ())


def read_values(tensor: Stored, most: int) -> torch.Tensor:
    """Return some of a tensor's values, from its middle.

    Args:
        tensor: One of a floating-point dtype (see `FLOATS`).
        most: How many to read at most; fewer if the tensor has fewer.

    Returns:
        Tensor of shape [min(most, values of the tensor)], as stored.
    """
    assert tensor.dtype is not None
    dtype = FLOATS[tensor.dtype]
    values = min(most, count(tensor))
    skipped = (count(tensor) - values) // 2
    with open(tensor.file, "rb", buffering=0) as file:
        file.seek(tensor.offset + skipped * dtype.itemsize)
        return torch.frombuffer(bytearray(file.read(values * dtype.itemsize)), dtype=dtype)


def open_all(references: set[ModelReference]) -> Iterator[tuple[ModelReference, Checkpoint]]:
    """Yield each local model of a recipe with its headers; hub ids are passed over.

    Args:
        references: The models.
    """
    for reference in sorted(references, key=str):
        if (checkpoint := open_checkpoint(reference)) is not None:
            yield reference, checkpoint
