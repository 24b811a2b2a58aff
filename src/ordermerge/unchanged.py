"""What "this value equals the base model's" means, in one place for merge kernels and analyses.

Tensors are compared as *lanes*, their bits seen as signed integers of the same width: integer comparisons that write
integers are vectorised by torch where comparisons of 16-bit floats are not.
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


class Base:
    """A piece of the base model, prepared for comparing many sub-models with it.

    A value is unchanged when it `==` the base's in the tensors' dtype, or has exactly its bits: -0.0 equals 0.0, and
    a NaN equals only a NaN of the same bits.

    Args:
        lanes: The base's bits (see `to_lanes`).
    """

    def __init__(self, lanes: torch.Tensor):
        limits = torch.iinfo(lanes.dtype)
        magnitude = torch.bitwise_and(lanes, limits.max)
        # Where the base is zero of either sign, the sign bit is set on both sides before they are compared. Most pieces
        # of real weights hold no zero. (`min` is vectorised for integers, `any` is not.)
        zero = bool(magnitude.numel()) and magnitude.min() == 0
        self._zero_sign = magnitude.eq_(0).mul_(limits.min) if zero else None
        self._lanes = lanes if self._zero_sign is None else torch.bitwise_or(lanes, self._zero_sign)

    def changed(self, lanes: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return 1 where a value differs from the base's and 0 where it is unchanged.

        Args:
            lanes: The other model's bits, shape [numel].
            out: Where to write, of the shape and type of `lanes`.

        Returns:
            Integer tensor of the shape and type of `lanes`.
        """
        out = torch.empty_like(lanes) if out is None else out
        return torch.ne(self._comparable(lanes, out), self._lanes, out=out)

    def unchanged(self, lanes: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        """Return 1 where a value is unchanged and 0 elsewhere; otherwise like `changed`."""
        return torch.eq(self._comparable(lanes, out), self._lanes, out=out)

    def _comparable(self, lanes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return lanes if self._zero_sign is None else torch.bitwise_or(lanes, self._zero_sign, out=out)
