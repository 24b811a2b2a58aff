"""The recipe parameters' types: each refuses a bad value with one sentence that names it.

mergekit resolves a list of values (a gradient) before it validates the result: numbers come out interpolated, as
floats. `resample`, `seed`, `granularity` and `scope` are therefore numbers inside, so that a gradient of any of them
arrives as a float and is refused, where a list of words would be taken silently for a choice by layer.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any

from pydantic import BeforeValidator

_NO_GRADIENT = "lists (gradients) and true/false are not possible here"


class Choice(IntEnum):
    """A parameter that is one of some words."""

    def __str__(self) -> str:
        return self.name.lower()


class Granularity(Choice):
    """What is drawn as one: an element, a row of the last axis, or the whole tensor."""

    ELEMENT = 0
    ROW = 1
    TENSOR = 2


class Scope(Choice):
    """What values are ranked over: each tensor, or the whole model."""

    TENSOR = 0
    MODEL = 1


def number(name: str, rule: str, holds: Callable[[float], bool]) -> BeforeValidator:
    """Return a validator of a parameter that is a number, or its text (YAML reads `1e-3` as text).

    Args:
        name: The parameter.
        rule: What it must be, as words after "must be".
        holds: Tells whether a number is that; false for NaN.
    """

    def parse(value: Any) -> float:
        try:
            parsed = float(value)
        except (TypeError, ValueError):
            parsed = math.nan
        if not holds(parsed):
            raise ValueError(f"`{name}` must be {rule}; got {value!r}")
        return parsed

    return BeforeValidator(parse)


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


def choice(kind: type[Choice]) -> BeforeValidator:
    """Return a validator of a parameter that is one of the words of an enumeration.

    Args:
        kind: The enumeration, named after the parameter.
    """

    def parse(value: Any) -> Choice:
        names = [str(member) for member in kind]
        if value not in names:
            name = kind.__name__.lower()
            raise ValueError(f"`{name}` must be one of {', '.join(names)}; got {value!r}; {_NO_GRADIENT}")
        return kind[value.upper()]

    return BeforeValidator(parse)


Weight = Annotated[float, number("weight", "a finite number >= 0", lambda x: 0 <= x < math.inf)]
BaseShare = Annotated[float, number("base_share", "a number from 0 to 1", lambda x: 0 <= x <= 1)]
Density = Annotated[float, number("density", "a number above 0 and at most 1", lambda x: 0 < x <= 1)]
Ratio = Annotated[float, number("ratio", "a number above 0 and at most 1", lambda x: 0 < x <= 1)]
Lambda = Annotated[float, number("lambda", "a finite number", math.isfinite)]
Resample = Annotated[float, BeforeValidator(parse_resample)]
Seed = Annotated[int, BeforeValidator(parse_seed)]
GranularityParameter = Annotated[Granularity, choice(Granularity)]
ScopeParameter = Annotated[Scope, choice(Scope)]


def measured(name: str) -> Any:
    """Return the type of a parameter that is measured over the whole model: a finite number, or None where it is not.

    Args:
        name: The parameter.
    """
    return Annotated[float, number(name, "a finite number", math.isfinite)] | None
