"""Task vectors, piece by piece: no more of them is in memory at once than fits a cache."""

from collections.abc import Iterator

import torch

# Elements worked on at once.
PIECE = 1 << 17


def pieces_of(length: int) -> Iterator[slice]:
    """Yield the parts of a flat tensor that are worked on at once.

    Args:
        length: Its number of elements.
    """
    return (slice(start, start + PIECE) for start in range(0, length, PIECE))


def widened(values: torch.Tensor) -> torch.Tensor:
    """Return values in the dtype that is computed in: float64 where they are that, else float32."""
    return values if values.dtype == torch.float64 else values.float()


def task_vector(values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return what a sub-model changed of its base model.

    Args:
        values: The sub-model's, of any floating-point dtype.
        base: The base model's at the same places.

    Returns:
        Tensor of the same shape, float32 (float64 where the inputs are).
    """
    return widened(values) - widened(base)
