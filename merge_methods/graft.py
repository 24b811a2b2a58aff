"""Grafting: the base model plus the largest changes of each sub-model, the largest over the whole model.

Panigrahi et al., "Task-Specific Skill Localization in Fine-tuned Language Models" (arXiv 2302.06600), for one model;
Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer" (LT-SFT, arXiv 2110.07560, section 3), for
the sum of several.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import ParameterScope, ParameterSpec, TensorGroup

from ordermerge.merge_methods.base_required import base_required_method
from ordermerge.merge_methods.first_pass import FirstPass, Read, missing_results, require_finite
from ordermerge.merge_methods.order_statistics import values_at_ranks
from ordermerge.merge_methods.parameters import Density, Lambda, measured
from ordermerge.merge_methods.task_vectors import pieces_of, task_vector, widened


def graft(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    thresholds: Sequence[float],
    *,
    scale: float = 1.0,
    strict: bool = False,
) -> torch.Tensor:
    """Add to the base model what each sub-model changed by at least a threshold.

    Computed in float32 (float64 for float64 models), and rounded once; sizes are compared in float32. A NaN counts as
    larger than any threshold. Scratch memory does not grow with the tensors, unless they are not contiguous.

    Args:
        tensors: The K sub-models' values, all of one shape, dtype and device.
        base: The base model's values, likewise.
        thresholds: K numbers, such as those of `graft_thresholds`.
        scale: Multiplies the sum of what is kept (a recipe's `lambda`).
        strict: Whether a change must be larger than the threshold (grafting), or may equal it (LT-SFT).

    Returns:
        Contiguous tensor of the inputs' shape, dtype and device.
    """
    origin, models = base.reshape(-1), [tensor.reshape(-1) for tensor in tensors]
    out = torch.empty_like(origin)
    for piece in pieces_of(origin.numel()):
        total = torch.zeros_like(widened(origin[piece]))
        for model, threshold in zip(models, thresholds, strict=True):
            change = task_vector(model[piece], origin[piece])
            size = change.abs().float()
            total += change.masked_fill(size <= threshold if strict else size < threshold, 0)
        out[piece] = widened(origin[piece]) + scale * total
    return out.view(base.shape)


def graft_thresholds(read: Read, density: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """Return, for each sub-model, the size of its k-th largest change over all tensors; k is its share of them.

    Args:
        read: Gives all tensors; they are gone through twice.
        density: The share of each sub-model's values to keep, k = max(1, int(density n)).

    Returns:
        The thresholds, exact in float32.

    Raises:
        ValueError: If a threshold is not finite, because the models hold values that are not.
    """

    def sizes() -> Iterator[tuple[Hashable, torch.Tensor]]:
        for group in read():
            assert group.base is not None
            origin = group.base.tensor.reshape(-1)
            for entry in group.non_base:
                model = entry.tensor.reshape(-1)
                for piece in pieces_of(origin.numel()):
                    yield entry.id, task_vector(model[piece], origin[piece]).abs().float()

    found = values_at_ranks(sizes, lambda model, n: [n - max(1, int(density[model] * n))])
    require_finite(found)
    return {model: threshold for model, (threshold,) in found.items()}


def _measure(read: Read, settings: Mapping[str, Any]) -> dict[Hashable, dict[str, float]]:
    return {model: {"threshold": found} for model, found in graft_thresholds(read, settings["density"]).items()}


def _merge(group: TensorGroup, **parameters: Any) -> torch.Tensor:
    assert group.base is not None
    thresholds = parameters["threshold"].values_for(group.non_base)
    if None in thresholds:
        raise missing_results("`graft`", "a `threshold`", group.metadata.name or "")
    return graft(
        [entry.tensor for entry in group.non_base],
        group.base.tensor,
        thresholds,
        scale=parameters["lambda"],
        strict=parameters["strict"],
    )


GRAFT_PASS = FirstPass(settings=("density",), results=("threshold",), measure=_measure)

graft_merge = base_required_method(
    "graft",
    "Grafting",
    "https://arxiv.org/abs/2302.06600",
    parameters=(
        ParameterSpec("density", Density, ParameterScope.NON_BASE, default=0.1),
        ParameterSpec("threshold", measured("threshold"), ParameterScope.NON_BASE, default=None),
        ParameterSpec("lambda", Lambda, ParameterScope.SHARED, default=1.0),
        ParameterSpec("strict", bool, ParameterScope.SHARED, default=False),
    ),
    merge=_merge,
)
