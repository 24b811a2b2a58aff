"""Half-Reset: each value goes back to the base model's with a given probability, or is a sub-model's, bit for bit.

From the first experiment of Hui et al., "HFT: Half Fine-Tuning for Large Language Models" (arXiv 2404.18466), which
returns half of a fine-tuned model's parameters to those of its base model; here by value, and for several sub-models
by parameter selection.
"""

from collections.abc import Sequence

import torch
from mergekit.merge_methods.base import BasePolicy, InputContract, PerNonBase, TensorGroup
from mergekit.merge_methods.easy_define import merge_method

from ordermerge.merge_methods.base_required import name_missing_base
from ordermerge.merge_methods.parameter_selection import parameter_selection
from ordermerge.merge_methods.parameters import BaseShare, Seed, Weight
from ordermerge.merge_methods.tied import draw_name


def half_reset(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    weights: Sequence[float] | None = None,
    *,
    base_share: float = 0.5,
    seed: int = 0,
    name: str = "",
) -> torch.Tensor:
    """Take each value whole, from the base model with probability `base_share`, else from a sub-model.

    The sub-model is drawn in proportion to weight, as by `parameter_selection`: the base model is one more model there.
    With one seed, what a share resets is reset by every larger share too.

    Args:
        tensors: The K sub-models' values, all of one shape, dtype and device.
        base: The base model's values, likewise.
        weights: K numbers >= 0, finite, not all 0; all 1 if not given.
        base_share: From 0 (none) to 1 (all); exact to 2^-16.
        seed: Names the draw.
        name: The tensor's name; tensors of other names are drawn independently.

    Returns:
        Contiguous tensor of the inputs' shape, dtype and device.

    Raises:
        ValueError: If `base_share` is not from 0 to 1, or as by `parameter_selection`.
    """
    if not 0 <= base_share <= 1:
        raise ValueError(f"`base_share` must be a number from 0 to 1; got {base_share} for tensor {name!r}")
    weights = [1.0] * len(tensors) if weights is None else weights
    shares = [base_share * sum(weights), *((1 - base_share) * weight for weight in weights)]
    return parameter_selection([base, *tensors], shares, seed=seed, name=name)


@name_missing_base()
@merge_method(
    name="half_reset",
    pretty_name="Half-Reset",
    reference_url="https://arxiv.org/abs/2404.18466",
    contract=InputContract(base=BasePolicy.REQUIRED, min_non_base=1),
)
def half_reset_merge(  # noqa: D103
    group: TensorGroup,
    weight: PerNonBase[Weight] = 1.0,
    base_share: BaseShare = 0.5,
    seed: Seed = 0,
) -> torch.Tensor:
    assert group.base is not None
    return half_reset(
        [entry.tensor for entry in group.non_base],
        group.base.tensor,
        weight.values_for(group.non_base),
        base_share=base_share,
        seed=seed,
        name=draw_name(group),
    )
