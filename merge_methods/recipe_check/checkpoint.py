"""What can be known of a checkpoint without reading it: its config, and the names, shapes and places of its tensors."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from pydantic_core import from_json

from ordermerge.errors import counted
from ordermerge.files import user_path
from ordermerge.merge_methods.recipe_check.references import folder_of
from ordermerge.models import local_folder
from ordermerge.weights import COPY_AGAIN, FLOATS, Stored, Unreadable, count, stored_tensors, unused_weights

# Whole numbers that are copied and not merged; every other dtype holds packed or scaled numbers.
_COUNTS = ("I64", "I32", "BOOL", "INT64", "INT32")
_SCALES = re.compile(
    r"(\.(qweight|qzeros|scales|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)"
    r"|\.quant_state\..*|[._](weight_packed|weight_scale|weight_scale_inv|weight_scale_2|input_scale|weight_zero_point)"
    r"|_(blocks|scales))$"
)
_UNPACK = "merge the models that it was made from, or load it with transformers, `dequantize()` it and save it"


@dataclass(frozen=True)
class Checkpoint:
    """A model as its headers describe it.

    Args:
        path: The model, as the recipe names it.
        folder: Where it is; of an adapter, its base model.
        config: Its config.json; None if there is none that can be read.
        tensors: Name to place; None where they cannot be read. An adapter is to be merged first: its base model's.
        problems: What keeps it from being merged, one sentence each.
        adapter: The adapter's folder, if it has one.
    """

    path: str
    folder: Path
    config: Mapping[str, Any] | None
    tensors: Mapping[str, Stored] | None
    problems: tuple[str, ...]
    adapter: Path | None = None


def open_checkpoint(reference: ModelReference, cache_dir: str | None = None) -> Checkpoint | None:
    """Return what the headers say of a model; None if it is not here, as a folder or in the Hugging Face cache.

    Args:
        reference: The model, with an adapter or without.
        cache_dir: The Hugging Face cache, if it is not the usual one.
    """
    whole = local_folder(str(reference))  # its name may hold a +
    folder = whole or folder_of(reference.model, cache_dir)
    adapter = folder_of(reference.lora, cache_dir) if reference.lora and not whole else None
    if folder is None or not (folder / "config.json").is_file() or (reference.lora and not whole and adapter is None):
        return None
    path = str(reference if whole else reference.model)
    checkpoint = _open(path, folder, reference.override_architecture)
    if checkpoint.tensors is None and not local_folder(path) and not user_path(reference.model.path).exists():
        return None  # of a hub id, only a part is in the cache
    beside = () if adapter else _embedded_adapter(path, folder)
    return replace(checkpoint, adapter=adapter, problems=(*checkpoint.problems, *beside))


def reopened(model: Checkpoint, folder: Path) -> Checkpoint:
    """Return what the headers say of the dense model that was made of a model and its adapter.

    Args:
        model: The model, with its adapter.
        folder: The dense model.
    """
    tensors = _open(f"{model.path}+{model.adapter}", folder, None)
    return replace(tensors, folder=model.folder, config=model.config, adapter=model.adapter)


def _open(path: str, folder: Path, architecture: str | None) -> Checkpoint:
    problems: list[str] = []
    config, tensors = None, None
    try:
        config = from_json((folder / "config.json").read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
        config |= {"architectures": [architecture]} if architecture else {}
    except ValueError as error:
        config = None
        problems.append(f"model {path}: config.json is not valid JSON ({error}); {COPY_AGAIN}")
    try:
        tensors = stored_tensors(folder)
    except Unreadable as error:
        problems.append(f"model {path}: {error}")
    problems += _packed_problems(path, config or {}, tensors or {})
    return Checkpoint(path, folder, config, tensors, tuple(problems))


def _embedded_adapter(path: str, folder: Path) -> Iterator[str]:
    if (folder / "adapter_config.json").is_file():
        yield (
            f"model {path} holds an adapter beside the whole model, which transformers adds when it loads that; "
            f"write `{path}+{path}` to merge both, or remove adapter_config.json"
        )


def _packed_problems(path: str, config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Iterator[str]:
    """Yield what says that a model's numbers are packed or scaled, so that their bytes are not its weights."""
    settings = config.get("quantization_config")
    packed = {name: str(t.dtype) for name, t in tensors.items() if t.dtype not in FLOATS and t.dtype not in _COUNTS}
    scales = [name for name in tensors if _SCALES.search(name)]
    if settings is not None:
        kind = settings.get("quant_method", "unnamed") if isinstance(settings, dict) else "unnamed"
        said = f"`quantization_config` in config.json: {kind}"
        yield f"model {path} is quantised ({said}): its bytes are no weights; {_UNPACK}"
    elif packed:
        name = next(iter(packed))
        yield (
            f"model {path} holds packed numbers, quantised or of 8 bits ({counted(len(packed), 'tensor')}, such as "
            f"`{name}`: {packed[name]}): their bytes are no weights; {_UNPACK}"
        )
    elif scales:
        yield f"model {path} holds the scales of quantised weights (`{scales[0]}`): its bytes are no weights; {_UNPACK}"


def file_warnings(model: Checkpoint) -> Iterator[str]:
    """Yield which of a model's weight files are not read, as transformers reads others before them.

    Args:
        model: The model.
    """
    if unused := unused_weights(model.folder, model.tensors or {}):
        used = sorted({stored.file.name for stored in (model.tensors or {}).values()})
        more = f" and {len(used) - 1} more" if len(used) > 1 else ""
        yield (
            f"{model.path} holds weights twice: {used[0]}{more} is read, as transformers does, and "
            f"{', '.join(unused[:3])}{f' and {len(unused) - 3} more' if len(unused) > 3 else ''} is not (an index or "
            f"shards of another save?)"
        )


def read_values(tensor: Stored, most: int) -> torch.Tensor:
    """Return some of a tensor's values, from its middle.

    Args:
        tensor: One of a floating-point dtype (see `FLOATS`), in a safetensors file.
        most: How many to read at most; fewer if the tensor has fewer.

    Returns:
        Tensor of shape [min(most, values of the tensor)], as stored.
    """
    assert tensor.dtype is not None
    assert tensor.offset is not None
    dtype = FLOATS[tensor.dtype]
    values = min(most, count(tensor))
    skipped = (count(tensor) - values) // 2
    if not values:
        return torch.empty(0, dtype=dtype)
    with open(tensor.file, "rb", buffering=0) as file:
        file.seek(tensor.offset + skipped * dtype.itemsize)
        return torch.frombuffer(bytearray(file.read(values * dtype.itemsize)), dtype=dtype)


def open_all(references: set[ModelReference]) -> Iterator[tuple[ModelReference, Checkpoint]]:
    """Yield each model of a recipe that is here with its headers; other hub ids are passed over.

    Args:
        references: The models.
    """
    for reference in sorted(references, key=str):
        if (checkpoint := open_checkpoint(reference)) is not None:
            yield reference, checkpoint
