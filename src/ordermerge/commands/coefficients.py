"""Weights of a merge's models: along one training, oldest checkpoint first, and by validation loss.

Of N checkpoints, each function returns N numbers that sum to 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from ordermerge.errors import UserError


def uniform(count: int) -> list[float]:
    """Return 1/N for each checkpoint: their mean, as in LAWA (Kaddour, arXiv 2209.14981).

    Args:
        count: N, the number of checkpoints.
    """
    return [1 / count] * count


def weighted_moving_average(count: int) -> list[float]:
    """Return i / (1 + ... + N) for checkpoint i = 1..N: the newest weighs most (Li et al., arXiv 2505.12082).

    Args:
        count: N, the number of checkpoints.
    """
    return [place * 2 / (count * (count + 1)) for place in range(1, count + 1)]


def exponential_moving_average(count: int, rate: float) -> list[float]:
    """Return what mean <- (1 - rate) mean + rate checkpoint, begun with the oldest, amounts to (arXiv 2505.12082).

    Args:
        count: N, the number of checkpoints.
        rate: The share of each newer checkpoint, between 0 and 1.
    """
    return [(rate if place else 1) * (1 - rate) ** (count - 1 - place) for place in range(count)]


def emulated_decay(count: int, left: Callable[[float], float]) -> list[float]:
    """Return weights under which a merge holds each update as a decayed learning rate would have left it.

    The updates before checkpoint i are in it and in all later ones, so that their share is the sum of these weights;
    that is to be left((i - 1) / N). So checkpoint i weighs left((i - 1) / N) - left(i / N): c_j = w_j - w_(j+1) of Tian
    et al., WSM (arXiv 2507.17634); Megatron-LM's pull request 5114 has the same.

    Args:
        count: N, the number of checkpoints.
        left: The share of the learning rate that is left after a share of the decay; from 1 (at 0) down to 0 (at 1).
    """
    return [left(place / count) - left((place + 1) / count) for place in range(count)]


def linear_decay(count: int) -> list[float]:
    """Return the weights that emulate a decay by 1 - t: all alike.

    Args:
        count: N, the number of checkpoints.
    """
    return emulated_decay(count, lambda share: 1 - share)


def minus_sqrt_decay(count: int) -> list[float]:
    """Return the weights that emulate a decay by 1 - sqrt(t): the oldest checkpoint weighs most.

    Args:
        count: N, the number of checkpoints.
    """
    return emulated_decay(count, lambda share: 1 - math.sqrt(share))


def loss_weights(losses: Sequence[float], temperature: float) -> list[float]:
    """Return the weights of a merge's models from their validation losses: softmax(-loss / temperature).

    A small temperature leaves the best model alone, a large one weighs all alike. From LM-Cocktail (Xiao et al.,
    arXiv 2311.13534, equation 3), where the losses are those on a few examples of the task.

    Args:
        losses: Mean validation loss of each model, in nats; shape [K].
        temperature: Above 0, in nats.

    Returns:
        K weights that sum to 1.

    Raises:
        UserError: If the temperature is not above 0, or a loss is not finite.
    """
    if not 0 < temperature < math.inf:
        raise UserError(f"`weights.validation_loss` is a temperature, a number above 0; got {temperature!r}")
    if bad := [loss for loss in losses if not math.isfinite(loss)]:
        raise UserError(f"`weights.validation_loss` needs a finite validation loss of every model; got {bad[0]!r}")
    smallest = min(losses)
    terms = [math.exp((smallest - loss) / temperature) for loss in losses]  # the smallest loss cannot overflow
    return [term / sum(terms) for term in terms]


# By the names that an experiment's `weights` takes.
ALONG_TRAINING: Mapping[str, Callable[[int], list[float]]] = {
    "uniform": uniform,
    "wma": weighted_moving_average,
    "linear": linear_decay,
    "minus-sqrt": minus_sqrt_decay,
}
