"""docs/pleas.md: the permutation that matches the units of siblings is the identity."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
CODE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "pleas.md").read_text(encoding="utf-8"), re.DOTALL)
W1 = torch.tensor([[1.0, 0], [0, 1], [-1, 1]])
Match = Callable[[torch.Tensor, torch.Tensor], list[int]]


@pytest.fixture(scope="module")
def match_units() -> Match:
    assert CODE
    scope: dict[str, Any] = {}
    exec(CODE[1], scope)
    return scope["match_units"]


def test_rows_in_another_order_are_found_again(match_units: Match) -> None:
    assert match_units(W1, W1[[2, 0, 1]]) == [1, 2, 0]


def test_noise_leaves_the_identity(match_units: Match) -> None:
    noise = torch.randn(W1.shape, generator=torch.Generator().manual_seed(0))
    assert match_units(W1, W1 + 0.01 * noise) == [0, 1, 2]


def test_siblings_have_their_units_in_one_order(match_units: Match) -> None:
    generator = torch.Generator().manual_seed(0)
    base = load_file(ROOT / "recipes" / "quickstart" / "base" / "model.safetensors")
    layers = [weights for name, weights in base.items() if re.search(r"mlp\.(gate|up)_proj", name)]
    assert len(layers) >= 4
    for weights in layers:
        one, other = (
            weights + 0.15 * weights.norm() * noise / noise.norm()
            for noise in torch.randn(2, *weights.shape, generator=generator)
        )
        units = len(weights)
        assert match_units(one, other) == list(range(units))
        order = torch.randperm(units, generator=generator)
        assert match_units(one, other[order]) == order.argsort().tolist()
