"""A base model and its sub-models side by side: which tensors all of them have, where, and what does not fit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from pydantic_core import from_json

from ordermerge.errors import UserError
from ordermerge.files import user_path
from ordermerge.models import HUB_ID, hub_revision, local_folder, model_names
from ordermerge.weights import FLOATS, Stored, Unreadable, count, is_pickled, stored_tensors

_NAMED = 3  # of many tensors, so many are named
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Group:
    """One tensor of all models.

    Args:
        name: Its name.
        shape: Its shape, the same in all models.
        dtype: What it is compared in.
        models: Where each model stores it: the sub-models in order, then the base model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    models: tuple[Stored, ...]

    @property
    def values(self) -> int:
        """Number of values of the tensor in one model."""
        return count(self.models[0])


@dataclass(frozen=True)
class Family:
    """A base model and its sub-models, opened.

    Args:
        base: The base model as given.
        names: A name for each sub-model, and the sub-model as given.
        groups: The tensors that all have alike, in the base model's order.
        warnings: What is left out or compared in another dtype than stored, one sentence each.
    """

    base: str
    names: Mapping[str, str]
    groups: Sequence[Group]
    warnings: list[str] = field(default_factory=list)


def open_family(base: str, models: Sequence[str], dtype: torch.dtype | None = None) -> Family:
    """Find the tensors that a base model and its sub-models have in common; reads headers only.

    Args:
        base: Folder, or hub id in the local cache.
        models: The same, of one or more sub-models.
        dtype: What to compare in, as a recipe's `dtype`; if not given, what the sub-models are stored in.

    Raises:
        UserError: If a model cannot be read, is listed twice, or none of its tensors is in the base model.
    """
    names = model_names(models)
    headers: dict[str, Mapping[str, Stored]] = {}
    problems: list[str] = []
    for model in dict.fromkeys([*names.values(), base]):
        try:
            headers[model] = _open(model)
        except Unreadable as error:
            problems.append(f"model {model}: {error}")
    if problems:
        raise UserError(problems)
    groups, left_out = _match(_tied_once(headers), [*names.values(), base], dtype)
    if not groups:
        reasons = "; ".join(f"{_some(tensors)}: {reason}" for reason, tensors in list(left_out.items())[:_NAMED])
        raise UserError(
            f"{base} has no tensor in common with the models: {reasons}; name the model that they were fine-tuned from "
            f"as `--base`; if transformers loads it, saving it once with `save_pretrained` gives its tensors their "
            f"usual names"
        )
    warnings = [f"left out: {_some(tensors)}: {reason}" for reason, tensors in left_out.items()]
    return Family(base, names, groups, [*warnings, *_dtype_warnings(groups, dtype)])


def _match(
    headers: Mapping[str, Mapping[str, Stored]], sides: Sequence[str], dtype: torch.dtype | None
) -> tuple[list[Group], dict[str, list[str]]]:
    """Return the tensors that all models have alike, and the names of the others by what is the matter with them."""
    together = {name: [headers[model].get(name) for model in sides] for model in sides[::-1] for name in headers[model]}
    groups: list[Group] = []
    left_out: dict[str, list[str]] = {}
    for name, found in together.items():
        stored = [tensor for tensor in found if tensor is not None]
        if reason := _misfit(found, sides):
            left_out.setdefault(reason, []).append(name)
        elif count(stored[0]):
            compared = dtype or reduce(torch.promote_types, (FLOATS[str(tensor.dtype)] for tensor in stored[:-1]))
            groups.append(Group(name, stored[0].shape or (), compared, tuple(stored)))
    return groups, left_out


def _open(model: str) -> dict[str, Stored]:
    folder = local_folder(model)
    if folder is None:
        path, _, adapter = model.partition("+")
        if adapter and local_folder(path):
            raise Unreadable(f"an adapter is not compared as such; merge it into {path} first (docs/lora.md)")
        folder = _cached(model)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise Unreadable("is a LoRA adapter, not a whole model; merge it into its base model first (docs/lora.md)")
    if is_pickled(folder):
        raise Unreadable("stored as pytorch_model.bin; load it with transformers and save it with `save_pretrained`")
    return stored_tensors(folder)


def _cached(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if user_path(model).exists():
        raise Unreadable("is a file; name the folder that holds config.json and the weights")
    looks_like_id = HUB_ID.fullmatch(model) and not model.startswith(".")
    try:
        if looks_like_id:
            name, revision = hub_revision(model)
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise Unreadable(
            f"no such folder, nor a model in the local Hugging Face cache; download it with `hf download {model}`"
        ) from None
    raise Unreadable(f"no such model folder (looked in {user_path(model).absolute().parent})")


def _tied_once(headers: Mapping[str, Mapping[str, Stored]]) -> dict[str, Mapping[str, Stored]]:
    """Return the tensors without second copies of tied embeddings, under the embedding's name in all models.

    Tied models store the pair once or twice, under either name.
    """
    named = [name for tensors in headers.values() for name in tensors if name.endswith(_EMBEDDINGS)]
    result: dict[str, Mapping[str, Stored]] = {}
    for model, tensors in headers.items():
        result[model] = tensors
        heads = [name for name in tensors if name.endswith(_HEADS)]
        if named and heads and _is_tied(next(iter(tensors.values())).file.parent):
            own = {name: tensor for name, tensor in tensors.items() if name not in heads}
            result[model] = {named[0]: tensors[heads[0]], **own}
    return result


def _is_tied(folder: Path) -> bool:
    try:
        config = from_json((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(isinstance(config, dict) and config.get("tie_word_embeddings"))


def _misfit(found: Sequence[Stored | None], sides: Sequence[str]) -> str | None:
    """Return why the same tensor of all models cannot be compared."""
    if absent := [model for model, tensor in zip(sides, found, strict=True) if tensor is None]:
        return f"not in {', '.join(absent)}" if len(absent) < len(sides) else None
    if unknown := {str(tensor.dtype) for tensor in found if tensor} - set(FLOATS):
        return f"{', '.join(sorted(unknown))}, not floating-point values of 16 to 64 bits"
    shapes: dict[tuple[int, ...] | None, str] = {}
    for model, tensor in zip(sides, found, strict=True):
        shapes.setdefault(tensor.shape if tensor else None, model)
    if len(shapes) > 1:
        return ", ".join(f"{list(shape or ())} in {model}" for shape, model in shapes.items())
    return None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more tensors" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more


def _dtype_warnings(groups: Sequence[Group], chosen: torch.dtype | None) -> Iterator[str]:
    kinds: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        stored = {FLOATS[str(tensor.dtype)] for tensor in group.models}
        if stored != {group.dtype}:
            own, base = (sorted({str(t.dtype) for t in part}) for part in (group.models[:-1], group.models[-1:]))
            text = f"{', '.join(own)} in the models and {base[0]} in the base model"
            kinds.setdefault((text, str(group.dtype).removeprefix("torch.")), []).append(group.name)
    for (text, compared), names in kinds.items():
        how = "as `--dtype` says" if chosen else f"as a recipe with `dtype: {compared}` does"
        yield f"{_some(names)}: stored as {text}; compared in {compared}, {how}"
