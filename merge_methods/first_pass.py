"""What a merge method must know of the whole model before the first tensor is merged, and how it is found."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.merge_methods.base import TensorGroup

# Gives the tensors of the whole model, those of all models side by side, each time it is called.
Read = Callable[[], Iterable[TensorGroup]]


@dataclass(frozen=True)
class FirstPass:
    """A pass over all tensors, whose results go into the recipe, as parameters of each sub-model.

    Args:
        settings: The parameters that the results depend on; each has one value for the whole model.
        results: The parameters that it finds.
        measure: Given the tensors, and the settings (those of sub-models as mappings from the model), returns for each
            sub-model the value of each result.
        needed: Tells from the settings whether the pass is needed.
    """

    settings: tuple[str, ...]
    results: tuple[str, ...]
    measure: Callable[[Read, Mapping[str, Any]], Mapping[Hashable, Mapping[str, float]]]
    needed: Callable[[Mapping[str, Any]], bool] = lambda settings: True


def missing_results(method: str, results: str, tensor: str) -> ValueError:
    """Return the refusal of a kernel that lacks the results of a first pass.

    Args:
        method: The merge method, as the recipe asks for it.
        results: What is missing.
        tensor: The tensor's name.
    """
    return ValueError(
        f"{method} needs {results} for every sub-model, and tensor {tensor!r} has none; merge with `ordermerge merge`, "
        "which measures the whole model first, and keeps a completed recipe for `mergekit-yaml` beside the merged model"
    )


def require_finite(found: Mapping[Hashable, Sequence[float]]) -> None:
    """Refuse models that hold values that are not numbers.

    Args:
        found: What was measured of each sub-model's changes.

    Raises:
        ValueError: If something of it is infinite or NaN, naming the sub-model.
    """
    for model, values in found.items():
        if not all(map(math.isfinite, values)):
            raise ValueError(
                f"the difference of sub-model {model} to its base model is infinite or NaN in places: one of the two "
                "is damaged, or its training diverged; leave it out"
            )
