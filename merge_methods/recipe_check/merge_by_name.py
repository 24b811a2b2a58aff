"""Merging by tensor name: a table of what the models store, in place of mergekit's tables of architectures.

mergekit does the rest as ever: loading, methods, filters, gradients, vocabularies, shards.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergekit.architecture import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo
from mergekit.common import ModelReference
from mergekit.options import MergeOptions
from pydantic import BaseModel

from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint
from ordermerge.merge_methods.recipe_check.coverage import Group, is_computed, same_tied
from ordermerge.merge_methods.recipe_check.staging import Staged
from ordermerge.merge_methods.tied import find_ties
from ordermerge.weights import FLOATS, Stored, count

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")  # the first number in a name is the layer's, as mergekit takes it
_VOCABULARY = re.compile(r"embed|lm_head|wte|shared|score|decoder|proj_out|output")
_NAMED = 3
_COMPARED = 1 << 16  # values of a buffer of whole numbers


class NamedModule(ModuleArchitecture, BaseModel, frozen=True):
    """A module whose tensors are listed: those of each layer, and the others."""

    others: tuple[WeightInfo, ...]
    layers: tuple[tuple[WeightInfo, ...], ...]

    def pre_weights(self, config: Any) -> list[WeightInfo]:
        """Return the tensors that are in no layer."""
        return list(self.others)

    def post_weights(self, config: Any) -> list[WeightInfo]:
        """Return none: a gradient has its first value there, as it has in `pre_weights`."""
        return []

    def layer_weights(self, index: int, config: Any) -> list[WeightInfo]:
        """Return the tensors of a layer."""
        return list(self.layers[index])

    def num_layers(self, config: Any) -> int:
        """Return the number of layers."""
        return len(self.layers)


def named_groups(staged: Staged, options: MergeOptions) -> tuple[list[Group], list[str], list[str]]:
    """Return the tensors that all models have, by name, and what keeps them from being merged so.

    Args:
        staged: The recipe, with all its models here.
        options: mergekit's options.

    Returns:
        The groups, sorted by name; one sentence each on what keeps the models from being merged by name; and the names
        of buffers that only some models hold, which are left out as transformers computes them.
    """
    if not staged.config.models:
        return [], ["merging by tensor name needs a plain list of `models`, without slices or modules"], []
    subs, everyone = staged.sub_models, staged.models
    names = sorted({name for model in subs.values() for name in model.tensors or {}})
    partial = [name for name in names if not all(name in (model.tensors or {}) for model in everyone.values())]
    ties = _ties(everyone, options) if partial else {}
    groups, lacking, dropped = [], [], []
    for name in names:
        stored = {ref: _stored(name, model, ties) for ref, model in everyone.items()}
        if name in partial and _kept_elsewhere(name, everyone, ties):
            continue  # a tied copy of what is merged under another name
        absent = [model.path for ref, model in everyone.items() if stored[ref] is None]
        if not absent:
            used = {ref: frozenset({found[0]}) for ref, found in stored.items() if found}
            places = {ref: found[1] if found else None for ref, found in stored.items()}
            groups.append(Group(name, _vocabulary_axis(name, places, everyone), False, places, used))
        elif all(is_computed(name, found[1]) for found in stored.values() if found):
            dropped.append(name)
        else:
            lacking.append((name, absent[0]))
    problems = []
    if lacking:
        paths = dict.fromkeys(path for _, path in lacking)
        each = "; ".join(f"{path} lacks {_some([n for n, p in lacking if p == path])}" for path in paths)
        problems = [f"by tensor name, all models must hold the same tensors: {each}"]
    return groups, [*problems, *_buffer_problems(groups, staged)], dropped


def table_by_name(groups: Sequence[Group]) -> ModelArchitecture:
    """Return the table, in mergekit's form, by which tensors are merged under the names that the models store.

    Args:
        groups: The tensors (see `named_groups`).
    """
    modules: dict[str, dict[int, list[WeightInfo]]] = {}
    others: list[WeightInfo] = []
    for group in groups:
        weight = _weight(group)
        if match := _LAYER.search(group.name):
            modules.setdefault(group.name[: match.start(1)], {}).setdefault(int(match[1]), []).append(weight)
        else:
            others.append(weight)
    definitions = {"": NamedModule(others=tuple(others), layers=())}
    for prefix, layers in modules.items():
        listed = tuple(tuple(layers.get(index, ())) for index in range(max(layers) + 1))
        definitions[prefix] = NamedModule(others=(), layers=listed)
    return ModelArchitecture(
        modules={prefix or "default": ModuleDefinition(architecture=module) for prefix, module in definitions.items()},
        architectures=[],
        model_type="",
    )


def _weight(group: Group) -> WeightInfo:
    used = {name for names in group.used.values() for name in names}
    kinds = {stored.dtype for stored in group.stored.values() if stored}
    return WeightInfo(
        name=group.name,
        vocabulary_axis=group.vocabulary_axis,
        tied_names=tuple(sorted(used - {group.name})) or None,
        force_dtype="int64" if kinds & {"I64", "INT64"} else None,  # else a recipe's `dtype` would be given to it
    )


def _ties(models: Mapping[ModelReference, Checkpoint], options: MergeOptions) -> dict[str, str]:
    """Return what all of the models tie."""
    trust = options.trust_remote_code
    found = [find_ties(ref.config(trust_remote_code=trust), trust_remote_code=trust) for ref in models]
    return {name: source for name, source in found[0].items() if all(ties.get(name) == source for ties in found)}


def _stored(name: str, model: Checkpoint, ties: Mapping[str, str]) -> tuple[str, Stored] | None:
    """Return where a model stores a tensor: under its name, or that of one that is tied to it."""
    tensors = model.tensors or {}
    tied = [other for other in (*ties, *ties.values()) if same_tied(name, other, ties)] if name not in tensors else []
    return next(((other, tensors[other]) for other in (name, *tied) if other in tensors), None)


def _kept_elsewhere(name: str, models: Mapping[ModelReference, Checkpoint], ties: Mapping[str, str]) -> bool:
    """Tell whether a tensor is tied to one that is merged in its stead: one that all models have, or the first one."""
    tied = sorted({other for other in (*ties, *ties.values()) if same_tied(name, other, ties)})
    stored = [other for other in tied if any(other in (model.tensors or {}) for model in models.values())]
    whole = [other for other in stored if all(other in (model.tensors or {}) for model in models.values())]
    kept = next(iter([ties.get(name, name)] if ties.get(name, name) in whole else whole or stored), name)
    return kept != name


def _vocabulary_axis(
    name: str, stored: Mapping[ModelReference, Stored | None], models: Mapping[ModelReference, Checkpoint]
) -> int | None:
    """Return 0 for what has a row for each token of the model's vocabulary, None for the rest."""
    for ref, place in stored.items():
        config = models[ref].config or {}
        text = config.get("text_config")
        size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
        if not place or not place.shape or place.shape[0] != size or not _VOCABULARY.search(name):
            return None
    return None if _LAYER.search(name) else 0


def _buffer_problems(groups: Sequence[Group], staged: Staged) -> Iterator[str]:
    """Yield buffers of whole numbers that cannot be kept as they are."""
    for group in groups:
        whole = [stored for stored in group.stored.values() if stored and stored.dtype not in FLOATS]
        if not whole:
            continue
        kind = whole[0].dtype
        if kind not in ("I64", "INT64") and (staged.config.dtype or staged.config.out_dtype):
            yield f"`{group.name}` holds {kind} values, which a recipe's `dtype` would change; leave `dtype` out"
        elif len({_content(stored) for stored in whole}) > 1:
            yield f"`{group.name}` holds whole numbers that differ between the models: they cannot be merged"


def _content(stored: Stored) -> object:
    if stored.offset is None or count(stored) > _COMPARED:
        return stored.shape
    with open(stored.file, "rb") as file:
        file.seek(stored.offset)
        return file.read(count(stored) * 8 if stored.dtype == "I64" else count(stored))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more tensors" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more
