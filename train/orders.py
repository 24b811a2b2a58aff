"""Order strategies: pure functions to explicit permutations.

An order is a permutation of the samples for each epoch. Library shuffles are no alternative: accelerate's seeds each
epoch with seed + epoch, so that neighbouring seeds repeat each other's epochs, and torch's permutation stream may
change between releases. Here each permutation sorts the words of its own counter-based stream.
"""

import hashlib
from collections.abc import Callable

import torch

from ordermerge.counter import random_words, stream_key
from ordermerge.errors import UserError

Strategy = Callable[[int, int, int, int], torch.Tensor]


def random_orders(samples: int, epochs: int, count: int, seed: int) -> torch.Tensor:
    """Return K orders whose every epoch is an independent, uniformly drawn permutation.

    The permutations of an order depend neither on `count` nor on the number of epochs.

    Args:
        samples: n, the number of samples.
        epochs: The number of epochs.
        count: K, the number of orders.
        seed: Names the draw.

    Returns:
        int64 tensor of shape [count, epochs, samples]; each row is a permutation of 0 .. samples - 1.
    """
    orders = torch.empty(count, epochs, samples, dtype=torch.int64)
    for order in range(count):
        for epoch in range(epochs):
            words = random_words(stream_key("order", seed, "random", order, epoch), 0, samples)
            # Stable: should two words be equal, every version and machine still agrees.
            orders[order, epoch] = torch.argsort(words, stable=True)
    return orders


# The one place where a strategy is wired in: (samples, epochs, count, seed) -> [count, epochs, samples].
STRATEGIES: dict[str, Strategy] = {"random": random_orders}


def epoch_fingerprints(permutations: torch.Tensor) -> list[str]:
    """Return the SHA-256 (hex) of each epoch's permutation, taken over its little-endian int64 bytes.

    Args:
        permutations: One order, int64 of shape [epochs, samples].
    """
    return [hashlib.sha256(epoch.cpu().numpy().astype("<i8").tobytes()).hexdigest() for epoch in permutations]


def check_distinct(orders: torch.Tensor) -> None:
    """Refuse orders that share an epoch: sub-models trained alike for an epoch are not K different ones.

    Args:
        orders: int64 of shape [count, epochs, samples].

    Raises:
        UserError: If an epoch of one order visits the samples just as an epoch of another order does.
    """
    seen: dict[str, tuple[int, int]] = {}
    shared = []
    for order, permutations in enumerate(orders):
        for epoch, fingerprint in enumerate(epoch_fingerprints(permutations)):
            first = seen.setdefault(fingerprint, (order, epoch))
            if first[0] != order:
                shared.append(f"order {first[0]} epoch {first[1]} = order {order} epoch {epoch}")
    if shared:
        raise UserError(
            f"orders share epochs ({'; '.join(shared[:4])}{'; ...' if len(shared) > 4 else ''}): with "
            f"{orders.shape[2]} training samples there are too few different permutations; "
            "use more samples, fewer orders or epochs, or another `orders.seed`"
        )
