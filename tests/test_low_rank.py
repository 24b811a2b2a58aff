"""Sums of low-rank matrices, against dense ones."""

import pytest
import torch

from ordermerge.low_rank import LowRank, largest_parts, largest_parts_of_dense, weighted_sum

GENERATOR = torch.Generator().manual_seed(0)
FIRST = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0]]))
SECOND = LowRank(torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 1.0]]))


def product(matrix: LowRank) -> torch.Tensor:
    return matrix.left @ matrix.right


def made(rows: int, columns: int, rank: int) -> LowRank:
    return LowRank(torch.randn(rows, rank, generator=GENERATOR), torch.randn(rank, columns, generator=GENERATOR))


def test_mean_of_products_is_exact_and_no_product_of_means() -> None:
    mean = weighted_sum([FIRST, SECOND], [0.5, 0.5])
    assert mean.rank == 2
    assert torch.equal(product(mean), torch.tensor([[0.5, 1.5], [1.0, 0.0]]))
    of_means = (FIRST.left + SECOND.left) / 2 @ ((FIRST.right + SECOND.right) / 2)
    assert torch.equal(of_means, torch.tensor([[1.0, 1.0], [0.5, 0.5]]))


def test_sum_of_several_ranks_and_signs() -> None:
    parts, weights = [made(7, 5, rank) for rank in (1, 3, 2)], [0.5, -2.0, 0.25]
    total = weighted_sum(parts, weights)
    assert total.rank == 6
    expected = sum(weight * product(part) for part, weight in zip(parts, weights, strict=True))
    assert torch.allclose(product(total), torch.as_tensor(expected), atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_largest_parts_are_those_of_the_singular_values(rank: int) -> None:
    matrix = made(9, 6, 4)
    u, sizes, v = torch.linalg.svd(product(matrix).double(), full_matrices=False)
    best = (u[:, :rank] * sizes[:rank]) @ v[:rank]
    for found in (largest_parts(matrix, rank), largest_parts_of_dense(product(matrix), rank)):
        assert found.matrix.rank == rank
        assert torch.allclose(product(found.matrix).double(), best, atol=1e-5)
        assert found.kept == pytest.approx(float(sizes[:rank].square().sum()), rel=1e-5)
        assert found.whole == pytest.approx(float(sizes.square().sum()), rel=1e-5)


def test_what_has_no_higher_rank_is_left_as_it_is() -> None:
    matrix = made(9, 6, 3)
    found = largest_parts(matrix, 3)
    assert found.matrix is matrix
    assert found.kept == found.whole


def test_parts_of_a_matrix_are_the_same_each_time_and_leave_the_global_generator_alone() -> None:
    matrix = torch.randn(64, 48, generator=GENERATOR)
    torch.manual_seed(5)
    first = largest_parts_of_dense(matrix, 4)
    after = torch.rand(1)
    torch.manual_seed(6)
    second = largest_parts_of_dense(matrix, 4)
    assert torch.equal(first.matrix.left, second.matrix.left)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
