"""The recipe parameters' types: each refuses a bad value with one sentence that names it.

mergekit resolves a list of values (a gradient) before it validates the result: numbers come out interpolated, as
floats. `resample`, `seed` and `granularity` are therefore numbers inside, so that a gradient of any of them arrives
as a float and is refused, where a list of words would be taken silently for a choice by layer.
"""

import math
from enum import IntEnum
from typing import Annotated, Any

from pydantic import BeforeValidator

_NO_GRADIENT = "lists (gradients) and true/false are not possible here"


class Granularity(IntEnum):
    """What is drawn as one: an element, a row of the last axis, or the whole tensor."""

    ELEMENT = 0
    ROW = 1
    TENSOR = 2

    def __str__(self) -> str:
        return self.name.lower()


def parse_weight(value: Any) -> float:
    """Return a selection weight: a finite number >= 0.

    Args:
        value: A number, or its text (YAML reads `1e-3` as text).

    Raises:
        ValueError: If it is not a number, negative, infinite or NaN.
    """
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"`weight` must be a finite number >= 0; got {value!r}")
    return weight


def parse_resample(value: Any) -> float:
    """Return the number of resampling rounds, with infinity for `full`.

    Args:
        value: An integer >= 0, or "full".

    Raises:
        ValueError: If it is anything else.
    """
    if value == "full":
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`resample` must be a whole number >= 0 or `full`; got {value!r}; {_NO_GRADIENT}")
    return value


def parse_seed(value: Any) -> int:
    """Return the seed.

    Args:
        value: An integer.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`seed` must be a whole number; got {value!r}; {_NO_GRADIENT}")
    return value


def parse_granularity(value: Any) -> Granularity:
    """Return the granularity.

    Args:
        value: "element", "row" or "tensor".

    Raises:
        ValueError: If it is anything else.
    """
    names = [str(granularity) for granularity in Granularity]
    if value not in names:
        raise ValueError(f"`granularity` must be one of {', '.join(names)}; got {value!r}; {_NO_GRADIENT}")
    return Granularity[value.upper()]


Weight = Annotated[float, BeforeValidator(parse_weight)]
Resample = Annotated[float, BeforeValidator(parse_resample)]
Seed = Annotated[int, BeforeValidator(parse_seed)]
GranularityParameter = Annotated[Granularity, BeforeValidator(parse_granularity)]
