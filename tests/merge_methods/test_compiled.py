"""The compiled loops and the plain torch operations give the same bits, and so do many merges at a time."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ordermerge import compiled
from ordermerge.merge_methods import parameter_selection
from ordermerge.unchanged import to_lanes

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
N = 3001  # several of the loops' pieces, and a rest
WEIGHTS = {
    "equal": lambda count: [1.0] * count,
    "whole": lambda count: [1.0 + k for k in range(count)],
    "fractional": lambda count: [1 / (1 + 0.3717 * k) for k in range(count)],
    "vanishing": lambda count: [1e-20 if k % 2 else 1.0 for k in range(count)],
    "rare": lambda count: [1.0] + [1e-4] * (count - 1),
}


def family(dtype: torch.dtype, count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and models that share half of its values; all of them often zeros of both signs, infinities and NaNs."""
    generator = torch.Generator().manual_seed(count)
    special = torch.tensor([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, -math.nan], dtype=dtype)
    pool = torch.cat([special, torch.randn(9, generator=generator).to(dtype)])
    base, *models = (pool[torch.randint(len(pool), (N,), generator=generator)] for _ in range(count + 1))
    return base, [torch.where(torch.rand(N, generator=generator) < 0.5, base, model) for model in models]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 40])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_loops_and_torch_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int, weights: Callable[[int], list[float]]
) -> None:
    base, models = family(dtype, count)
    for resample in (0, 1, 2, 70, math.inf):
        found = []
        for failures in ([ImportError()], []):
            monkeypatch.setattr(compiled, "_failures", failures)
            found.append(to_lanes(parameter_selection(models, weights(count), base=base, resample=resample, name="w")))
        assert not failures
        assert torch.equal(*found), resample


def test_many_merges_at_a_time_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with mergekit's --multi-gpu, which runs kernels in threads of its own."""
    monkeypatch.setattr(compiled, "SPAN", 512)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    base, models = family(torch.bfloat16, 4)

    def merge(seed: int) -> torch.Tensor:
        return to_lanes(parameter_selection(models, base=base, resample=(0, 3, math.inf)[seed % 3], seed=seed))

    expected = [merge(seed) for seed in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(merge, range(60)))
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


# Merges twice, after the methods were registered, and says what came out.
MERGE = """
import sys
from mergekit.merge_methods import registered_methods
assert {"parameter_selection", "parameter_selection_resample"} <= {m.spec.name for m in registered_methods()}
assert "numba" not in sys.modules, "imported before it is needed"
import torch
from ordermerge.merge_methods import parameter_selection
base, models = torch.zeros(40), [torch.arange(40.0) % (k + 2) for k in range(3)]
for resample in (1, float("inf")):
    print(*parameter_selection(models, base=base, resample=resample).int().tolist())
"""


@pytest.mark.parametrize("numba", ["broken", "unable to keep compiled code"])
def test_methods_register_and_merge_whatever_numba_says(tmp_path: Path, numba: str) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('broken')")
    unwritable = {"HOME": "/nonexistent", "XDG_CACHE_HOME": "/dev/null/none"}
    env = {"PYTHONPATH": str(tmp_path)} if numba == "broken" else unwritable
    done = subprocess.run(
        [sys.executable, "-c", MERGE], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Numba cannot be used") == (numba == "broken"), done.stderr
    base, models = torch.zeros(40), [torch.arange(40.0) % (k + 2) for k in range(3)]
    merged = [parameter_selection(models, base=base, resample=resample).int().tolist() for resample in (1, math.inf)]
    assert done.stdout.splitlines() == [" ".join(map(str, values)) for values in merged]
