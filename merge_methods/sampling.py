"""A few values of every model of a recipe, from the same places of each: some megabytes, whatever the models' size."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration

from ordermerge.merge_methods.checkpoint import Checkpoint, open_all, read_values
from ordermerge.weights import FLOATS, Stored

# Enough to tell related from unrelated tensors (the mean of so many products is known to 1 %), read in milliseconds.
PROBES, PROBE_VALUES = 16, 8192
# A copy is confirmed with a few values of every tensor: a fine-tuning that froze nearly everything is no copy.
GLANCE_VALUES = 256
_VOCABULARY = re.compile(r"embed|lm_head|wte|wpe|word_embeddings")


@dataclass(frozen=True)
class Sampled:
    """The sub-models of one recipe and their base, with values of the same places in each.

    Args:
        subs: The local sub-models.
        base: The base model, if the recipe has one and it is local.
        names: The tensors that all of them have alike.
        values: For each model, the values sampled of each probe.
    """

    subs: Sequence[Checkpoint]
    base: Checkpoint | None
    names: Sequence[str]
    values: Mapping[str, Sequence[torch.Tensor]]


def sample(config: MergeConfiguration) -> Sampled | None:
    """Read a few values of the local models of a recipe; None if fewer than two of them have tensors in common.

    Args:
        config: A recipe with a plain list of models.
    """
    listed = {entry.model for entry in config.models or ()}
    models = dict(open_all(listed | ({config.base_model} if config.base_model else set())))
    known: dict[ModelReference, Checkpoint] = {ref: m for ref, m in models.items() if m.tensors and not m.problems}
    base = known.get(config.base_model) if config.base_model else None
    subs = [known[e.model] for e in config.models or () if e.model in known and e.model != config.base_model]
    everyone = [*subs, *([base] if base else [])]
    if len(everyone) < 2:
        return None
    names = [name for name in everyone[0].tensors or () if _alike([(m.tensors or {}).get(name) for m in everyone])]
    probes = _probes(names, everyone[0])
    values = {m.path: [read_values((m.tensors or {})[name], PROBE_VALUES) for name in probes] for m in everyone}
    return Sampled(subs, base, names, values) if probes else None


def _alike(tensors: Sequence[Stored | None]) -> bool:
    shapes = {tensor.shape if tensor and tensor.dtype in FLOATS else None for tensor in tensors}
    return len(shapes) == 1 and None not in shapes and 0 not in (shapes.pop() or ())


def _probes(names: Sequence[str], model: Checkpoint) -> list[str]:
    """Return some tensors of every kind and depth; vectors (norms are all near 1) and vocabularies tell less."""
    shapes = {name: (model.tensors or {})[name].shape or () for name in names}
    matrices = [name for name in names if len(shapes[name]) > 1 and not _VOCABULARY.search(name)] or list(names)
    by_kind = sorted(matrices, key=lambda name: (re.sub(r"\d+", "#", name), len(name), name))
    number = min(PROBES, len(by_kind))
    return [by_kind[(2 * i + 1) * len(by_kind) // (2 * number)] for i in range(number)]


def look_the_same(sampled: Sampled, one: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether two models agree in all probes and then, before it is said aloud, in a glance at every tensor.

    Args:
        sampled: What was read of the recipe's models.
        one: One of them.
        other: Another.
    """
    pairs = zip(sampled.values[one.path], sampled.values[other.path], strict=True)
    return all(_equal(a, b) for a, b in pairs) and all(
        _equal(*(read_values((model.tensors or {})[name], GLANCE_VALUES) for model in (one, other)))
        for name in sampled.names
    )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
