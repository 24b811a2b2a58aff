"""The order in which training really met the samples, against the order that was planned."""

from array import array
from collections.abc import Sequence

import torch

from ordermerge.errors import UserError


def interleave(streams: Sequence[array], batch: int) -> torch.Tensor:
    """Return the ids that all processes met, in the order of the global stream.

    accelerate deals an epoch's batches out in turn: of P processes, process p gets batches p, p + P, p + 2P and so on.

    Args:
        streams: The ids that each process met, by rank.
        batch: Samples per batch of one process; only a process that is alone has a shorter one, its last.

    Returns:
        int64 of shape [sum of the streams' lengths].
    """
    if len(streams) == 1:
        return torch.tensor(streams[0], dtype=torch.int64)
    rows = [torch.tensor(stream, dtype=torch.int64).view(-1, batch) for stream in streams]
    return torch.stack(rows, dim=1).flatten()


def count_repeats(consumed: torch.Tensor, planned: torch.Tensor, where: str, *, drop_last: bool) -> int:
    """Check an epoch's order, and return how many samples were met twice to fill the last batches up.

    Args:
        consumed: Ids in the order met, int64 of shape [m].
        planned: Ids in the order planned, int64 of shape [n]; all different.
        where: Names the order and the epoch, for the message.
        drop_last: Whether the end of the plan may be left out.

    Returns:
        m - n, or 0 where less than n samples were met.

    Raises:
        UserError: If they differ.
    """
    common = min(len(consumed), len(planned))
    different = (consumed[:common] != planned[:common]).nonzero()
    if len(different):
        place = int(different[0])
        raise UserError(
            f"{where}: training met the samples in another order than planned: at position {place} sample "
            f"{int(consumed[place])} instead of {int(planned[place])}. The order is not kept. This is a fault of "
            "ordermerge or of a library version that it was not tried with; please report it"
        )
    if common < len(planned) and not drop_last:
        raise UserError(
            f"{where}: training met only {common} of {len(planned)} samples. The order is not kept. This is a fault of "
            "ordermerge or of a library version that it was not tried with; please report it"
        )
    return len(consumed) - common
