"""What "this value equals the base model's" means, in one place for merge kernels and analyses.

Tensors are compared as *lanes*, their bits seen as signed integers of the same width. `ordermerge.loops` has the same
in compiled form.
"""

import torch

LANES = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def to_lanes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a floating-point tensor as a flat integer tensor; no copy where it is contiguous.

    Args:
        tensor: Any shape; float16, bfloat16, float32 or float64.

    Returns:
        Tensor of shape [numel], of the signed integer type of the same width.

    Raises:
        ValueError: If the dtype is none of these.
    """
    if not tensor.is_floating_point() or tensor.element_size() not in LANES:
        raise ValueError(f"dtype {tensor.dtype} is not supported; set `dtype: bfloat16` in the recipe to convert it")
    return tensor.detach().contiguous().view(-1).view(LANES[tensor.element_size()])


def changed(lanes: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return where values differ from the base model's.

    A value is unchanged when it `==` the base's in the tensors' dtype, or has exactly its bits: -0.0 equals 0.0, and
    a NaN equals only a NaN of the same bits. So values differ where their bits do, unless both are zeros.

    Args:
        lanes: A model's bits (see `to_lanes`), shape [n].
        base: The base model's bits, of the same shape and type.

    Returns:
        bool tensor of shape [n].
    """
    return (lanes != base) & ((lanes | base) != torch.iinfo(base.dtype).min)
