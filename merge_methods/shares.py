"""What share of the draws a model gets for its weight. A draw is a whole number from -2^15 up to 2^15 - 1."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import TypeVar

DRAWS = 1 << 16
# A draw scaled to a whole number up to this is exact in float32, and the number fits into 16 bits.
_LARGEST_TOTAL = 127
# A weight this much smaller than the largest is still counted as positive in float32.
_SMALLEST_WEIGHT = 2.0**-100

Model = TypeVar("Model")


def whole_weights(weights: Sequence[float]) -> list[float]:
    """Return the same proportions as small whole numbers, or else as fractions of the largest weight.

    Args:
        weights: Positive numbers.
    """
    shares = [weight / max(weights) for weight in weights]
    near = [Fraction(share).limit_denominator(_LARGEST_TOTAL) for share in shares]
    whole = [share * math.lcm(*(share.denominator for share in near)) for share in near]
    exact = all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(near, shares, strict=True))
    if exact and all(whole) and sum(whole) <= _LARGEST_TOTAL:
        return [int(weight) for weight in whole]
    return [max(share, _SMALLEST_WEIGHT) for share in shares]


def share_draws(models: Sequence[Model], weights: Sequence[float]) -> tuple[list[Model], list[int]]:
    """Return the models that some draw takes, and for each the draw from which on it is taken and not the one before.

    Args:
        models: K models.
        weights: Their weights, K positive numbers.
    """
    totals = [0, *accumulate(weights)]
    marks = [round(DRAWS * (total / totals[-1])) - DRAWS // 2 for total in totals]
    taken = [k for k in range(len(models)) if marks[k] < marks[k + 1]]
    return [models[k] for k in taken], [marks[k] for k in taken]
