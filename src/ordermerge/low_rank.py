"""Sums of low-rank matrices that stay of low rank: LoRA's B A of several adapters, exactly or by the largest parts.

The mean of products is not the product of means: mean(B A), by which Caccia et al. (MHR, arXiv 2211.03831) average
adapters, has the rank of all of them together. Concatenation gives it exactly, as PEFT's `add_weighted_adapter` does
with `combination_type="cat"`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

# Of the randomised search for the largest parts (Halko et al., arXiv 0909.4061): columns beyond the rank, and rounds.
_SPARE, _ROUNDS = 16, 4


class LowRank(NamedTuple):
    """A matrix as a product.

    Args:
        left: LoRA's B, with its scaling; shape [rows, rank].
        right: LoRA's A; shape [rank, columns].
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        """The rank that the product can have."""
        return self.right.shape[0]


class Approximation(NamedTuple):
    """The largest parts of a matrix.

    Args:
        matrix: Their sum.
        kept: Its squared norm.
        whole: The squared norm of the whole matrix.
    """

    matrix: LowRank
    kept: float
    whole: float


def weighted_sum(matrices: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return the sum of weight times matrix, whose rank is the sum of their ranks; nothing is lost.

    Args:
        matrices: Matrices of one shape.
        weights: As many factors.

    Returns:
        float32, the weights within the left factor.
    """
    left = torch.cat([matrix.left.float() * w for matrix, w in zip(matrices, weights, strict=True)], dim=1)
    return LowRank(left, torch.cat([matrix.right.float() for matrix in matrices], dim=0))


def largest_parts(matrix: LowRank, rank: int) -> Approximation:
    """Return the best approximation of a product by one of lower rank (Eckart and Young), without making the product.

    Args:
        matrix: The product.
        rank: The most that its approximation may have; where the product has no more, it is returned as it is.

    Returns:
        float32; computed in float64.
    """
    q_left, r_left = torch.linalg.qr(matrix.left.double())
    q_right, r_right = torch.linalg.qr(matrix.right.double().T)
    u, sizes, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    whole = float(sizes.square().sum())
    if matrix.rank <= rank:
        return Approximation(matrix, whole, whole)
    return _cut(q_left @ u, sizes, q_right @ v.T, rank, whole)


def largest_parts_of_dense(matrix: torch.Tensor, rank: int) -> Approximation:
    """Return a near-best approximation of a matrix by one of low rank: the same for the same matrix.

    Args:
        matrix: Shape [rows, columns].
        rank: The most that its approximation may have.

    Returns:
        float32; what it keeps is exact, if not the most that could be kept.
    """
    values = matrix.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, sizes, v = torch.svd_lowrank(values, q=min(rank + _SPARE, *values.shape), niter=_ROUNDS)
    return _cut(u, sizes, v, rank, float(values.double().square().sum()))


def _cut(u: torch.Tensor, sizes: torch.Tensor, v: torch.Tensor, rank: int, whole: float) -> Approximation:
    root = sizes[:rank].sqrt()
    matrix = LowRank((u[:, :rank] * root).float(), (v[:, :rank] * root).T.float().contiguous())
    return Approximation(matrix, float(sizes[:rank].double().square().sum()), whole)
