"""Order strategies: pure functions to explicit permutations.

An order is a permutation of the samples for each epoch. Library shuffles are no alternative: accelerate's seeds each
epoch with seed + epoch, so that neighbouring seeds repeat each other's epochs, and torch's permutation stream may
change between releases. Here each permutation sorts the words of its own counter-based stream.
"""

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction

import torch

from ordermerge.counter import random_words, stream_key
from ordermerge.errors import UserError

Strategy = Callable[[int, int, int, int, int], torch.Tensor]


def random_orders(samples: int, epochs: int, count: int, seed: int, batch: int = 1) -> torch.Tensor:
    """Return K orders whose every epoch is an independent, uniformly drawn permutation.

    The permutations of an order depend neither on `count` nor on the number of epochs.

    Args:
        samples: n, the number of samples.
        epochs: The number of epochs.
        count: K, the number of orders.
        seed: Names the draw.
        batch: Of no effect here.

    Returns:
        int64 tensor of shape [count, epochs, samples]; each row is a permutation of 0 .. samples - 1.
    """
    orders = torch.empty(count, epochs, samples, dtype=torch.int64)
    for order in range(count):
        for epoch in range(epochs):
            orders[order, epoch] = _permutation(samples, seed, "random", order, epoch)
    return orders


def batch_orders(samples: int, epochs: int, count: int, seed: int, batch: int = 1) -> torch.Tensor:
    """Return K orders of one fixed partition into batches: only the positions of whole batches differ.

    The partition is drawn once, for all orders and epochs; in every epoch of every order the full batches are visited
    in an independent, uniformly drawn permutation. A short batch stays last. The permutations of an order depend
    neither on `count` nor on the number of epochs.

    Args:
        samples: n, the number of samples.
        epochs: The number of epochs.
        count: K, the number of orders.
        seed: Names the draw.
        batch: The samples of one optimizer step.

    Returns:
        int64 tensor of shape [count, epochs, samples]; each row is a permutation of 0 .. samples - 1.
    """
    full = samples // batch
    partition = _permutation(samples, seed, "batch", "partition")
    batches, short = partition[: full * batch].view(full, batch), partition[full * batch :]
    orders = torch.empty(count, epochs, samples, dtype=torch.int64)
    for order in range(count):
        for epoch in range(epochs):
            positions = _permutation(full, seed, "batch", order, epoch)
            orders[order, epoch] = torch.cat([batches[positions].flatten(), short])
    return orders


def rotate_orders(samples: int, epochs: int, count: int, seed: int, batch: int = 1) -> torch.Tensor:
    """Return K orders that are rotations of one permutation, a new one for each epoch: balanced by design.

    Order k begins the epoch's permutation at floor(k n / K). So over the K orders a sample's positions in an epoch lie
    n/K apart, the last followed by the first. If K divides n, every sample visits every K-th of every epoch exactly
    once. Otherwise no set of orders does (a K-th would have to hold n/K positions): then the positions lie
    floor(n/K) or ceil(n/K) apart, so that a stretch of ceil(n/K) positions is visited at least once by every sample,
    one of floor(n/K) at most once, and no K orders come closer.

    Each epoch is a uniformly drawn permutation, independent of the other epochs of its order. The permutations of an
    order depend on `count`.

    Args:
        samples: n, the number of samples.
        epochs: The number of epochs.
        count: K, the number of orders.
        seed: Names the draw.
        batch: Of no effect here.

    Returns:
        int64 tensor of shape [count, epochs, samples]; each row is a permutation of 0 .. samples - 1.
    """
    common = torch.stack([_permutation(samples, seed, "rotate", epoch) for epoch in range(epochs)])
    return torch.stack([common.roll(-(order * samples // count), dims=1) for order in range(count)])


# The one place where a strategy is wired in: (samples, epochs, count, seed, batch) -> [count, epochs, samples].
STRATEGIES: dict[str, Strategy] = {"random": random_orders, "batch": batch_orders, "rotate": rotate_orders}
# Strategies whose order k is another one for each `count`.
DEPEND_ON_COUNT = frozenset({"rotate"})


def branch_step(at: int | float | None, steps: int) -> int:
    """Return after which optimizer step K orders part; 0 if they share none.

    Args:
        at: A number of steps, or a fraction of all (rounded down to a whole step); None for none.
        steps: The optimizer steps of a whole training.

    Raises:
        UserError: If no step would be left.
    """
    # Of the decimal number that was written: 0.29 * 100 is less than 29.
    step = at if isinstance(at, int) else math.floor(Fraction(str(at or 0)) * steps)
    if step >= steps:
        raise UserError(f"`orders.branch_at` is step {step}, and a training takes {steps}; nothing would be left over")
    return step


def branch_orders(orders: torch.Tensor, epoch: int, place: int, strategy: str) -> torch.Tensor:
    """Return orders that are one up to a place of an epoch: they begin as order 0 does, which stays as it is.

    In the branch's epoch, the samples that are left over come as each order had them, which for `random` is uniformly
    drawn too and for `batch` keeps the batches; for `rotate`, order k begins at floor(k m / K) of the m left over.
    Later epochs stay as they are.

    Args:
        orders: int64 of shape [count, epochs, samples], each row a permutation.
        epoch: The branch's epoch.
        place: How many of its samples are common; at the end of a batch.
        strategy: How the orders were made.

    Returns:
        int64 of the same shape, each row a permutation.

    Raises:
        UserError: If the orders are the user's own and do not begin alike.
    """
    count, _, samples = orders.shape
    branched = orders.clone()
    branched[:, :epoch] = orders[0, :epoch]
    common, left = orders[0, epoch, :place], orders[0, epoch, place:]
    for order in range(count):
        if strategy == "rotate":
            rest = left.roll(-(order * len(left) // count))
        else:
            rest = orders[order, epoch][~torch.isin(orders[order, epoch], common)]
        branched[order, epoch] = torch.cat([common, rest])
    if strategy == "file" and not torch.equal(branched, orders):
        raise UserError(
            f"`orders.branch_at`: orders of `orders.file` differ before the branch (epoch {epoch}, position {place} "
            f"of {samples}); leave `branch_at` out, or give orders that begin alike"
        )
    return branched


def epoch_fingerprints(permutations: torch.Tensor) -> list[str]:
    """Return the SHA-256 (hex) of each epoch's permutation, taken over its little-endian int64 bytes.

    Args:
        permutations: One order, int64 of shape [epochs, samples].
    """
    return [hashlib.sha256(epoch.cpu().numpy().astype("<i8").tobytes()).hexdigest() for epoch in permutations]


def check_distinct(
    orders: torch.Tensor, strategy: str = "random", batch: int = 1, *, may_begin_alike: bool = False
) -> None:
    """Refuse orders that share an epoch: sub-models trained alike for an epoch are not K different ones.

    Args:
        orders: int64 of shape [count, epochs, samples].
        strategy: How they were made, for the remedy.
        batch: The samples of one optimizer step, for the remedy.
        may_begin_alike: Allow two orders to share their first epochs, if they part later.

    Raises:
        UserError: If an epoch of one order visits the samples just as an epoch of another order does.
    """
    seen: dict[str, tuple[int, int]] = {}
    shared = []
    for order, permutations in enumerate(orders):
        for epoch, fingerprint in enumerate(epoch_fingerprints(permutations)):
            first = seen.setdefault(fingerprint, (order, epoch))
            if first[0] != order and not (may_begin_alike and _only_begin_alike(orders, first, (order, epoch))):
                shared.append(f"order {first[0]} epoch {first[1]} = order {order} epoch {epoch}")
    if shared:
        raise UserError(
            f"orders share epochs ({'; '.join(shared[:4])}{'; ...' if len(shared) > 4 else ''}): "
            f"{_why_shared(len(orders), orders.shape[2], strategy, batch)}"
        )


def _only_begin_alike(orders: torch.Tensor, one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two equal epochs are the end of a common beginning of two orders that differ."""
    (first, epoch), (second, same) = one, other
    return (
        epoch == same
        and torch.equal(orders[first, :epoch], orders[second, :epoch])
        and not torch.equal(orders[first], orders[second])
    )


def _why_shared(count: int, samples: int, strategy: str, batch: int) -> str:
    if strategy == "file":
        return "`orders.file` gives them so; give every order permutations of its own"
    if strategy == "batch":
        return (
            f"{samples} training samples are {samples // batch} full batches of {batch}, too few to permute; use "
            "smaller batches (`sft.per_device_train_batch_size`, `sft.gradient_accumulation_steps`), more samples, "
            "fewer orders or epochs, another `orders.seed`, or `orders.strategy: random`"
        )
    if strategy == "rotate" and samples < count:
        return (
            f"{samples} training samples have only {samples} rotations, and `orders.count` is {count}; "
            "use more samples or fewer orders"
        )
    return (
        f"with {samples} training samples there are too few different permutations; "
        "use more samples, fewer orders or epochs, or another `orders.seed`"
    )


def _permutation(samples: int, seed: int, *name: int | str) -> torch.Tensor:
    """Return the permutation of this name, int64 of shape [samples]."""
    # Stable: should two words be equal, every version and machine still agrees.
    return torch.argsort(random_words(stream_key("order", seed, *name), 0, samples), stable=True)
