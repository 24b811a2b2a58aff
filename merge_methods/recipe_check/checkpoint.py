"""What can be known of a checkpoint without reading it: its config, and the names, shapes and places of its tensors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from mergekit.common import ModelReference

from ordermerge.weights import COPY_AGAIN, FLOATS, Stored, Unreadable, count, stored_tensors


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
        problems.append(f"model {path}: config.json is not valid JSON ({error}); {COPY_AGAIN}")
    if reference.override_architecture and config is not None:
        config.architectures = [reference.override_architecture]
    try:
        tensors = stored_tensors(folder)
    except Unreadable as error:
        problems.append(f"model {path}: {error}")
    return Checkpoint(path, config, None if reference.lora else tensors, tuple(problems))


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
