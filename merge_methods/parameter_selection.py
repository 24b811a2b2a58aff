"""Parameter-selection merging with resampling: each value of the merged model is one sub-model's value, bit for bit.

Ju et al., "Mitigating Training Imbalance in LLM Fine-Tuning via Selective Parameter Merging", EMNLP 2024
(arXiv 2410.03743).
"""

import math
from collections.abc import Sequence

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    InputContract,
    PerInputValues,
    PerNonBase,
    TensorGroup,
)
from mergekit.merge_methods.easy_define import merge_method

from ordermerge.merge_methods.base_required import name_missing_base
from ordermerge.merge_methods.parameters import Granularity, GranularityParameter, Resample, Seed, Weight
from ordermerge.merge_methods.selection import fill_blocks, fill_elements
from ordermerge.merge_methods.tied import draw_name
from ordermerge.unchanged import to_lanes

PAPER = "https://arxiv.org/abs/2410.03743"
NAMES = ("parameter_selection", "parameter_selection_resample")


def parameter_selection(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    *,
    base: torch.Tensor | None = None,
    resample: float = 0,
    seed: int = 0,
    name: str = "",
    granularity: Granularity = Granularity.ELEMENT,
) -> torch.Tensor:
    """Take each value whole from one sub-model, drawn with probability weight_k / sum of weights.

    With `resample` n > 0, a value equal to the base model's is drawn again from all sub-models, n times: where z of K
    equally weighted sub-models are unchanged it stays the base's with probability (z/K)^(n+1). With infinity (a
    recipe's `full`) it is drawn, in proportion to weight, from the sub-models that changed it, and stays the base's
    only where none did: the limit of n rounds.

    The draw for element i is a pure function of (seed, name, round, i). Inputs are not modified. Scratch memory does
    not grow with the tensors, unless they are not contiguous.

    Args:
        tensors: The K sub-models' values, all of one shape, dtype and device.
        weights: K numbers >= 0, finite, not all 0; all 1 if not given. Probabilities are exact to 2^-16.
        base: The base model's values, of the same shape, dtype and device; needed when `resample` is not 0.
        resample: Number of rounds, or `math.inf`.
        seed: Names the draw.
        name: The tensor's name; tensors of other names are drawn independently.
        granularity: What is drawn as one: an element, a row of the last axis, or the whole tensor.

    Returns:
        Contiguous tensor of the inputs' shape, dtype and device.

    Raises:
        ValueError: If the weights are negative, not finite or all 0, the base is missing, `resample` is not 0 where
            `granularity` is not `ELEMENT`, or the dtype is not a 16, 32 or 64 bit floating-point type.
    """
    weights = [1.0] * len(tensors) if weights is None else weights
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(
            f"`weight` must be >= 0 and finite for every sub-model, and not 0 for all; got {list(weights)} "
            f"for tensor {name!r}"
        )
    if resample and base is None:
        raise ValueError(f"`resample` needs `base_model`, and tensor {name!r} has none; name the base model")
    if resample and granularity is not Granularity.ELEMENT:
        raise ValueError(
            f"`resample` goes with `granularity: element` only; got {granularity} for tensor {name!r}; "
            "set `resample: 0` to select whole rows or tensors"
        )
    positive = [(to_lanes(tensor), weight) for tensor, weight in zip(tensors, weights, strict=True) if weight]
    models, weights = [lanes for lanes, _ in positive], [weight for _, weight in positive]
    out = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    if granularity is Granularity.ELEMENT:
        base_lanes = to_lanes(base) if resample and base is not None else None
        fill_elements(to_lanes(out), models, weights, base_lanes, resample, (seed, name))
    else:
        rows = 1 if granularity is Granularity.TENSOR else math.prod(out.shape[:-1])
        fill_blocks(to_lanes(out), models, weights, rows, (seed, name))
    return out


def _merge(
    group: TensorGroup, weight: PerInputValues[float], resample: float, seed: int, granularity: Granularity
) -> torch.Tensor:
    return parameter_selection(
        [entry.tensor for entry in group.non_base],
        weight.values_for(group.non_base),
        base=group.base.tensor if group.base else None,
        resample=resample,
        seed=seed,
        name=draw_name(group),
        granularity=granularity,
    )


# The defaults are what a recipe would say: mergekit validates them like a recipe's values.
@merge_method(
    name="parameter_selection",
    pretty_name="Parameter Selection",
    reference_url=PAPER,
    contract=InputContract(base=BasePolicy.OPTIONAL, min_non_base=1),
)
def parameter_selection_merge(
    group: TensorGroup,
    weight: PerNonBase[Weight] = 1.0,
    resample: Resample = 0,
    seed: Seed = 0,
    granularity: GranularityParameter = "element",  # type: ignore[assignment]
) -> torch.Tensor:
    return _merge(group, weight, resample, seed, granularity)


@name_missing_base(", or use `parameter_selection` with `resample: 0`")
@merge_method(
    name="parameter_selection_resample",
    pretty_name="Parameter Selection with Resampling",
    reference_url=PAPER,
    contract=InputContract(base=BasePolicy.REQUIRED, min_non_base=1),
)
def parameter_selection_resample_merge(
    group: TensorGroup,
    weight: PerNonBase[Weight] = 1.0,
    resample: Resample = "full",  # type: ignore[assignment]
    seed: Seed = 0,
    granularity: GranularityParameter = "element",  # type: ignore[assignment]
) -> torch.Tensor:
    return _merge(group, weight, resample, seed, granularity)
