"""The selection as torch operations, several passes over the values: taken from the history of this repository."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ordermerge.unchanged import to_lanes

_COMMIT = "e62ed80"  # the last before the compiled loops
_FILES = ("src/ordermerge/counter.py", "src/ordermerge/unchanged.py", "merge_methods/selection.py")


@functools.cache
def load() -> Callable[..., None] | None:
    """Return `fill_elements` of that time, or None where the history is not at hand."""
    for path in _FILES:
        found = subprocess.run(
            ["git", "show", f"{_COMMIT}:{path}"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        if found.returncode:
            return None
        name = Path(path).stem
        module = ModuleType(f"earlier_{name}")
        sys.modules[module.__name__] = module
        source = found.stdout.replace("from ordermerge.counter", "from earlier_counter")
        exec(source.replace("from ordermerge.unchanged", "from earlier_unchanged"), module.__dict__)
    return sys.modules["earlier_selection"].fill_elements  # type: ignore[no-any-return]


def merge(base: torch.Tensor | None, models: list[torch.Tensor], parameters: dict[str, Any], name: str) -> torch.Tensor:
    """Merge tensors with equal weights."""
    fill_elements = load()
    assert fill_elements is not None
    out = torch.empty_like(models[0])
    lanes = [to_lanes(model) for model in models]
    origin = None if base is None else to_lanes(base)
    fill_elements(to_lanes(out), lanes, [1.0] * len(lanes), origin, parameters.get("resample", 0), (0, name))
    return out
