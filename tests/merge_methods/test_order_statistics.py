"""Values at ranks are those of a sort, whatever the numbers and the pieces that they come in."""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ordermerge.merge_methods.order_statistics import values_at_ranks

SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4028235e38, 1.0000001, 0.99999994]
NUMBERS = st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from(SPECIAL), min_size=1, max_size=60)


def find(series: dict[str, torch.Tensor], ranks: Sequence[int], size: int = 7) -> dict[str, list[float]]:
    def pieces() -> Iterator[tuple[str, torch.Tensor]]:
        for name, values in series.items():
            yield from ((name, part) for part in values.split(size))

    return values_at_ranks(pieces, lambda name, n: ranks)


@given(NUMBERS, st.integers(1, 9))
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_every_rank_is_the_sorted_value(numbers: list[float], size: int) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    found = find({"x": values}, range(len(values)), size)["x"]
    assert found == values.sort().values.tolist()


def test_neighbouring_floats_are_told_apart() -> None:
    bits = torch.arange(0x3F80FFF0, 0x3F810010, dtype=torch.int32)  # across a border of the upper 16 bits
    values = bits.view(torch.float32)[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    found = torch.tensor(find({"x": values}, range(32))["x"], dtype=torch.float32)
    assert torch.equal(found.view(torch.int32), bits)


def test_series_are_ranked_on_their_own() -> None:
    series = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([-5.0, -4.0, -6.0])}
    assert find(series, [0, 2]) == {"a": [1.0, 3.0], "b": [-6.0, -4.0]}


def test_nan_comes_after_infinity() -> None:
    found = find({"x": torch.tensor([math.nan, math.inf, 1.0])}, [0, 1, 2])["x"]
    assert found[:2] == [1.0, math.inf]
    assert math.isnan(found[2])


def test_ranks_may_depend_on_series_and_length() -> None:
    asked = []

    def ranks(name: object, n: int) -> list[int]:
        asked.append((name, n))
        return [n - 1]

    pieces = [("a", torch.arange(5.0)), ("b", torch.arange(3.0)), ("a", torch.arange(4.0))]
    assert values_at_ranks(lambda: pieces, ranks) == {"a": [4.0], "b": [2.0]}
    assert asked == [("a", 9), ("b", 3)]


@pytest.mark.parametrize("size", [1000, 65536, 100_000])
def test_large_series_in_any_pieces(size: int) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 1e-3
    ranks = [0, 10, 49_999, 50_000, 99_999]
    assert find({"x": values}, ranks, size)["x"] == [values.sort().values[rank].item() for rank in ranks]
