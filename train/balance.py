"""How evenly orders place the samples: statistics of permutations alone."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Balance:
    """How evenly K orders place the samples in an epoch.

    Attributes:
        spread: Standard deviation over the samples of their mean position, as a share of the epoch. Independent orders
            have about 1/sqrt(12 K), rotations 1/(K sqrt(12)); 0 is even.
        once_each: Share of the samples that are met exactly once in each K-th of the epoch.
        never_met: Mean share of an epoch's K-ths in which a sample is never met; (1 - 1/K)^K of independent orders.
        correlation: Lowest and highest of the orders' rank correlations with each other.
    """

    spread: float
    once_each: float
    never_met: float
    correlation: tuple[float, float]


def balance(places: torch.Tensor) -> Balance:
    """Return how evenly orders place the samples.

    Args:
        places: Positions in one epoch, int64 of shape [count, n], both at least 2.
    """
    count, samples = places.shape
    met = visits(places)
    rho = correlations(places)[*torch.triu_indices(count, count, 1)]
    return Balance(
        spread=(places.double() / samples).mean(dim=0).std(correction=0).item(),
        once_each=(met == 1).all(dim=0).double().mean().item(),
        never_met=(met == 0).double().mean().item(),
        correlation=(rho.min().item(), rho.max().item()),
    )


def positions(permutations: torch.Tensor) -> torch.Tensor:
    """Return when each sample is visited: the inverse permutations.

    Args:
        permutations: int64 of shape [..., n], each row a permutation.

    Returns:
        int64 of the same shape: entry i is the position of sample i, 0 for the first.
    """
    return permutations.argsort(dim=-1)


def correlations(places: torch.Tensor) -> torch.Tensor:
    """Return Spearman's rank correlation of each two orders' positions; there are no ties.

    Independent orders have 0 ± 1/sqrt(n - 1) (standard deviation).

    Args:
        places: Positions in one epoch, int64 of shape [count, n], n at least 2.

    Returns:
        float64 of shape [count, count], 1 on the diagonal.
    """
    samples = places.shape[1]
    centred = places.double() - (samples - 1) / 2
    return centred @ centred.T / (samples * (samples**2 - 1) / 12)


def visits(places: torch.Tensor) -> torch.Tensor:
    """Return how often, over the K orders, each sample is met in each K-th of the epoch.

    Args:
        places: Positions in one epoch, int64 of shape [count, n].

    Returns:
        int64 of shape [count, n]: entry (j, i) is the number of orders that visit sample i in part j.
    """
    count, samples = places.shape
    parts = places * count // samples
    return torch.stack([(parts == part).sum(dim=0) for part in range(count)])


def mean_positions(places: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the mean position of consecutive samples, as a share of the epoch: 0.5 where it tells nothing.

    Args:
        places: Positions in one epoch, int64 of shape [count, n], the samples in the order of the data.
        bins: How many parts the samples are cut into; at most n.

    Returns:
        float64 of shape [count, bins].
    """
    shares = (places.double() + 0.5) / places.shape[1]
    return torch.stack([part.mean(dim=1) for part in shares.tensor_split(bins, dim=1)], dim=1)
