"""Models as fine-tuning leaves them: close to their base, each in its own direction."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


def nudge(folder: Path, origin: Path, share: float, seed: int) -> None:
    """Write origin's weights into folder, each tensor moved by a share of its norm in a direction that seed names."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in load_file(origin / "model.safetensors").items():
        noise = torch.randn(tensor.shape, generator=generator)
        size = tensor.float().norm() / noise.norm() if tensor.float().norm() > 0 else 0
        moved[name] = (tensor.float() + share * size * noise).to(tensor.dtype)
    save_file(moved, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="session")
def move() -> Callable[[Path, Path, float, int], None]:
    return nudge


@pytest.fixture(scope="session")
def close_family(make_family: Callable[..., list[Path]]) -> list[Path]:
    """Return a base model and three sub-models that look like fine-tuned ones; not to be changed."""
    family = make_family(count=3)
    for seed, folder in enumerate(family[1:]):
        nudge(folder, family[0], 0.05, seed)
    return family
