"""The merge methods that are measured, with their parameters."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def whole_weights(count: int) -> list[float]:
    return [1.0 + index for index in range(count)]


def fractional_weights(count: int) -> list[float]:
    """Return weights that are in no proportion of small whole numbers, which the methods treat apart."""
    return [1 / (1 + 0.3717 * index) for index in range(count)]


@dataclass(frozen=True)
class Case:
    """A merge method with parameters.

    Args:
        name: What it is called in options and results.
        method: mergekit's name.
        base: Whether the base model is an input.
        weights: Gives each sub-model's weight; 1 for all if not given.
        slow: Whether it is repeated less often.
        command: Whether the whole command is measured too.
    """

    name: str
    method: str
    base: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: Callable[[int], list[float]] | None = None
    slow: bool = False
    command: bool = True

    def parameters_for(self, count: int) -> dict[str, Any]:
        """Return mergekit's parameters for `count` sub-models."""
        return {"weight": self.weights(count) if self.weights else 1.0, **self.parameters}


LINEAR = Case("linear", "linear")
# Every input is read once and the output written once; the second reads the base model too.
FLOORS = (Case("floor", "benchmark_floor"), Case("floor_with_base", "benchmark_floor", base=True))
SELECTION = Case("selection", "parameter_selection")
FULL = Case("full", "parameter_selection_resample", base=True)
CASES = (
    LINEAR,
    Case("task_arithmetic", "task_arithmetic", base=True, slow=True),
    Case("dare_ties", "dare_ties", base=True, parameters={"density": 0.5}, slow=True, command=False),
    Case("ties", "ties", base=True, parameters={"density": 0.5}, slow=True, command=False),
    SELECTION,
    Case("resample_1", "parameter_selection_resample", base=True, parameters={"resample": 1}),
    Case("resample_3", "parameter_selection_resample", base=True, parameters={"resample": 3}, command=False),
    FULL,
    Case("selection_whole_weights", "parameter_selection", weights=whole_weights, command=False),
    Case("selection_fractional_weights", "parameter_selection", weights=fractional_weights, command=False),
    Case("full_whole_weights", "parameter_selection_resample", base=True, weights=whole_weights, command=False),
    Case(
        "full_fractional_weights", "parameter_selection_resample", base=True, weights=fractional_weights, command=False
    ),
)
# Our methods as they were before they were compiled: several passes of torch operations (see `earlier`).
EARLIER = (
    Case("selection_earlier", "earlier", command=False),
    Case("resample_1_earlier", "earlier", base=True, parameters={"resample": 1}, command=False),
    Case("full_earlier", "earlier", base=True, parameters={"resample": math.inf}, command=False),
)
SCALING = (LINEAR, SELECTION, FULL)
