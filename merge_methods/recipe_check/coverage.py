"""Which tensors mergekit would load for a recipe, by its own plan, and which it would lose; no weights are read."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mergekit.architecture import ModelArchitecture, get_architecture_info
from mergekit.architecture.base import ConfiguredModelArchitecture
from mergekit.architecture.conversion import convert_checkpoint_tensors
from mergekit.common import ModelReference
from mergekit.io.tasks import LoaderCache, LoadTensor, SaveTensor
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint
from ordermerge.merge_methods.recipe_check.staging import Staged
from ordermerge.merge_methods.tied import find_ties
from ordermerge.weights import FLOATS, Stored

# Buffers that older checkpoints hold and transformers computes anew: nothing is lost with them.
_COMPUTED = re.compile(
    r"(rotary_emb\.inv_freq|(^|\.)position_ids|\.masked_bias|relative_position_index|num_batches_tracked)$"
)
_CAUSAL_MASK = re.compile(r"(attn|attention)\.bias$")


@dataclass(frozen=True)
class Group:
    """The tensors that become one tensor of the merged model.

    Args:
        name: Its name.
        vocabulary_axis: The axis that token ids index, if one does.
        optional: Whether models may lack it.
        stored: Each model, and where it stores its part; None if it does not, under this name or another.
        used: Each model, and the names that its part is read from.
    """

    name: str
    vocabulary_axis: int | None
    optional: bool
    stored: Mapping[ModelReference, Stored | None]
    used: Mapping[ModelReference, frozenset[str]]


def planned_tasks(
    staged: Staged, options: MergeOptions, table: ModelArchitecture | None = None
) -> tuple[ModelArchitecture, list[SaveTensor]]:
    """Return mergekit's table of a recipe's architecture, and what it plans to make of each tensor.

    Args:
        staged: The recipe, with all its models here.
        options: mergekit's options.
        table: A table in place of mergekit's.

    Raises:
        Exception: Of many kinds, where mergekit cannot plan the merge.
    """
    LoaderCache.loaders.clear()  # kept by name
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # mergekit and transformers tell each step; a failure is told by its exception
    try:
        config = staged.config.model_copy(deep=True)  # planning rewrites it
        architecture = table or get_architecture_info(config, options)
        shape = next(iter(staged.models)).config(trust_remote_code=options.trust_remote_code)
        tasks = MergePlanner(config, architecture, options, shape).plan_to_disk("")
        return architecture, [task for task in tasks if isinstance(task, SaveTensor)]
    finally:
        LoaderCache.loaders.clear()
        logging.disable(before)


def planned_groups(staged: Staged, options: MergeOptions) -> tuple[ModelArchitecture, list[Group]]:
    """Return mergekit's table of a recipe's architecture, and what it plans to load.

    Args:
        staged: The recipe, with all its models here.
        options: mergekit's options.

    Raises:
        Exception: As `planned_tasks`.
    """
    architecture, tasks = planned_tasks(staged, options)
    return architecture, [_group(task, staged, options) for task in tasks]


def _group(task: SaveTensor, staged: Staged, options: MergeOptions) -> Group:
    merge: Any = task.tensor_task
    gathered = getattr(merge.gather_tensors, "gather_tensors", merge.gather_tensors)  # within a change of vocabulary
    stored: dict[ModelReference, Stored | None] = {}
    used: dict[ModelReference, frozenset[str]] = {}
    for load in gathered.arguments().values():
        stored[load.model], used[load.model] = _find(load, staged.models[load.model], options)
    return Group(task.tensor_name, merge.output_weight.vocabulary_axis, task.optional, stored, used)


def _find(load: LoadTensor, model: Checkpoint, options: MergeOptions) -> tuple[Stored | None, frozenset[str]]:
    """Return where a model stores a tensor, and under which names; several, if it is made from them."""
    tensors = model.tensors or {}
    names = (load.tensor, *(load.aliases or ()), *(load.tied_names or ()))
    for name in names:
        if name in tensors:
            return tensors[name], frozenset({name})
    return _converted(names, model, load.model, options)


def _converted(
    names: Sequence[str], model: Checkpoint, reference: ModelReference, options: MergeOptions
) -> tuple[Stored | None, frozenset[str]]:
    """Return what transformers' tables of older layouts, which mergekit consults too, make a tensor from."""
    kind = str((model.config or {}).get("model_type"))
    if not get_checkpoint_conversion_mapping(kind):
        return None, frozenset()
    asked: set[str] = set()
    tensors = model.tensors or {}

    def ask(name: str) -> torch.Tensor:
        asked.add(name)
        dtype = FLOATS.get(str(tensors[name].dtype), torch.int64)
        return torch.empty(tensors[name].shape or (), dtype=dtype, device="meta")

    sources = {name: (lambda name=name: ask(name)) for name in tensors}  # type: ignore[misc]
    for name in names:
        asked.clear()
        made = convert_checkpoint_tensors(kind, sources, name)
        if made is not None and asked:
            first = tensors[min(asked)]
            return Stored(first.file, first.dtype, tuple(made.shape)), frozenset(asked)
    return None, frozenset()


def lost_tensors(
    staged: Staged, architecture: ModelArchitecture, groups: Sequence[Group], options: MergeOptions
) -> dict[str, list[str]]:
    """Return the tensors of each sub-model that would not be in the merged model, not even as a tied copy.

    Args:
        staged: The recipe.
        architecture: mergekit's table (see `planned_groups`).
        groups: What mergekit plans to load.
        options: mergekit's options.

    Returns:
        Name of each model that loses tensors, as the recipe has it, and the tensors' names.
    """
    lost: dict[str, list[str]] = {}
    for ref, model in staged.sub_models.items():
        used = {name for group in groups for name in group.used.get(ref, ())}
        if staged.config.slices or staged.config.modules:  # what is taken from which model is the recipe's choice
            used |= _table_names(architecture, ref, staged, options)
        left = [name for name in model.tensors or {} if name not in used]
        if left:
            config = ref.config(trust_remote_code=options.trust_remote_code)
            ties = find_ties(config, trust_remote_code=options.trust_remote_code)
            left = [name for name in left if not _is_tied_copy(name, used, ties)]
        if left:
            lost[model.path] = left
    return lost


def is_computed(name: str, stored: Stored) -> bool:
    """Tell whether a tensor is a buffer that transformers computes anew, which older checkpoints hold.

    Args:
        name: Its name.
        stored: The tensor.
    """
    shape = stored.shape or ()
    mask = bool(_CAUSAL_MASK.search(name)) and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return mask or bool(_COMPUTED.search(name))


def same_tied(name: str, other: str, ties: Mapping[str, str]) -> bool:
    """Tell whether two tensors are tied to each other, or both to a third.

    Args:
        name: One.
        other: The other.
        ties: What is tied to what (see `find_ties`).
    """
    return ties.get(name, name) == ties.get(other, other)


def _is_tied_copy(name: str, used: set[str], ties: Mapping[str, str]) -> bool:
    others = {other for other in (*ties, *ties.values()) if other != name and other in used}
    return any(same_tied(name, other, ties) for other in others)


def _table_names(
    architecture: ModelArchitecture, reference: ModelReference, staged: Staged, options: MergeOptions
) -> set[str]:
    config = reference.config(trust_remote_code=options.trust_remote_code)
    configured = ConfiguredModelArchitecture(info=architecture, config=config)
    modules = [configured.get_module(name) for name in staged.config.modules or architecture.modules]
    weights = [weight for module in modules for weight in module.all_weights()]
    return {name for w in weights for name in (w.name, *(w.aliases or ()), *(w.tied_names or ()))}
