"""PCB-Merging: task vectors averaged with weights from the balance of their values within and between models.

Du et al., "Parameter Competition Balancing for Model Merging" (arXiv 2410.02396), in the form of `PCB_merge` in the
authors' repository: values are clamped at the ratio 1e-4, and models are compared by their unclamped task vectors.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mergekit.merge_methods.base import ParameterScope, ParameterSpec, TensorGroup

from ordermerge.merge_methods.base_required import base_required_method
from ordermerge.merge_methods.first_pass import FirstPass, Read, missing_results, require_finite
from ordermerge.merge_methods.order_statistics import values_at_ranks
from ordermerge.merge_methods.parameters import Lambda, Ratio, Scope, ScopeParameter, measured
from ordermerge.merge_methods.task_vectors import pieces_of, task_vector, widened

_CLAMPED = 1e-4  # the share of the smallest, and of the largest, values that are clamped
_SMALLEST_SUM = 1e-12


class Limits(NamedTuple):
    """What ranks over a tensor or the whole model say of one sub-model.

    Attributes:
        floor: The size that smaller values are taken for.
        ceiling: The size that larger values are taken for.
        threshold: The balance up to which a value has no weight.
        maximum: The largest balance, whose value has the weight 1.
    """

    floor: float
    ceiling: float
    threshold: float
    maximum: float


def pcb(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    ratio: float = 0.1,
    scale: float = 1.0,
    limits: Sequence[Limits] | None = None,
) -> torch.Tensor:
    """Add to the base model the average of the task vectors, each value weighed by how it stands out and is agreed on.

    With N task vectors t_i: A = |t_i| clamped to `floor` and `ceiling`; the balance within the model is
    exp(N norm(A)^2), that between the models tanh(t_i sum_j t_j), and a value's weight is norm of their product, which
    is 0 up to `threshold`; norm maps the range to 0 ... 1 (a range of one value to 1). The average of sign(t_i) A by
    these weights is added to the base; where all are 0, nothing is.

    The weights are computed in float32, the sum in float32 (float64 for float64 models), rounded once. Scratch memory
    does not grow with the tensors, unless they are not contiguous.

    Args:
        tensors: The N sub-models' values, all of one shape, dtype and device.
        base: The base model's values, likewise.
        ratio: The share of each sub-model's values that get a weight.
        scale: Multiplies the average (a recipe's `lambda`).
        limits: One for each sub-model, such as those of `pcb_limits` for a whole model; those of these tensors alone,
            if not given.

    Returns:
        Contiguous tensor of the inputs' shape, dtype and device.

    Raises:
        ValueError: As by `pcb_limits`.
    """
    group = TensorGroup.from_tensors([base, *tensors], base_index=0)
    if limits is None:
        limits = list(pcb_limits(lambda: [group], ratio).values())
    origin = base.reshape(-1)
    out = torch.empty_like(origin)
    for piece, changes in _changes(group):
        sums, weights = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
        for size, balance, change, limit in zip(*_balance(changes, limits), changes, limits, strict=True):
            weight = _normalized(balance.clamp(min=limit.threshold), limit.threshold, limit.maximum)
            sums += change.sign() * size * weight
            weights += weight
        out[piece] = widened(origin[piece]) + scale * sums / weights.clamp(min=_SMALLEST_SUM)
    return out.view(base.shape)


def pcb_limits(read: Read, ratio: float) -> dict[Hashable, Limits]:
    """Return the limits of each sub-model over all tensors.

    Of n sorted values, the limits are those at the places int(n c) and int(n (1 - c) - 1) for c = 1e-4, and of the
    balance the one at int(n (1 - ratio)) and the last: not interpolated, as in the authors' code.

    Args:
        read: Gives all tensors; they are gone through four times.
        ratio: The share of each sub-model's values that get a weight.

    Returns:
        Limits by the sub-models' ids, exact in float32.

    Raises:
        ValueError: If a limit is not finite, because the models hold values that are not.
    """

    def sizes(group: TensorGroup) -> Iterator[torch.Tensor]:
        return (changes.abs() for _, changes in _changes(group))

    def balances(group: TensorGroup) -> Iterator[torch.Tensor]:
        for _, changes in _changes(group):
            limits = [Limits(*clamps[entry.id], 0, 0) for entry in group.non_base]
            yield torch.stack(_balance(changes, limits)[1])

    # The largest size is asked for too, to name the model that holds a NaN, and not those that meet it in the sums.
    places = _values_at_ranks(read, sizes, lambda n: (int(n * _CLAMPED), max(0, int(n * (1 - _CLAMPED) - 1)), n - 1))
    clamps = {model: (floor, ceiling) for model, (floor, ceiling, _) in places.items()}
    found = _values_at_ranks(read, balances, lambda n: (min(n - 1, int(n * (1 - ratio))), n - 1))
    return {model: Limits(*clamps[model], *found[model]) for model in found}


def _values_at_ranks(
    read: Read, rows_of: Callable[[TensorGroup], Iterator[torch.Tensor]], ranks: Callable[[int], Sequence[int]]
) -> dict[Hashable, list[float]]:
    """Return values at ranks over all tensors, for each sub-model."""

    def pieces() -> Iterator[tuple[Hashable, torch.Tensor]]:
        for group in read():
            for rows in rows_of(group):
                yield from zip((entry.id for entry in group.non_base), rows, strict=True)

    found = values_at_ranks(pieces, lambda _, n: ranks(n))
    require_finite(found)
    return found


def _changes(group: TensorGroup) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield parts of the flat tensors, and what each sub-model changed there: float32 of shape [N, n]."""
    assert group.base is not None
    origin, models = group.base.tensor.reshape(-1), [entry.tensor.reshape(-1) for entry in group.non_base]
    for piece in pieces_of(origin.numel()):
        yield piece, torch.stack([task_vector(model[piece], origin[piece]).float() for model in models])


def _balance(changes: torch.Tensor, limits: Sequence[Limits]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return, for each sub-model, the clamped sizes of its changes, and the balance of each."""
    total = sum(changes)  # one after the other: the order, and so the rounding, is always the same
    sizes = [change.abs().clamp(limit.floor, limit.ceiling) for change, limit in zip(changes, limits, strict=True)]
    shares = [_normalized(size, limit.floor, limit.ceiling) for size, limit in zip(sizes, limits, strict=True)]
    within = [torch.exp(len(limits) * share**2) for share in shares]
    return sizes, [own * torch.tanh(change * total) for own, change in zip(within, changes, strict=True)]


def _normalized(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return (values - low) / (high - low) if high > low else torch.ones_like(values)


def _measure(read: Read, settings: Mapping[str, Any]) -> dict[Hashable, dict[str, float]]:
    return {model: limits._asdict() for model, limits in pcb_limits(read, settings["ratio"]).items()}


def _merge(group: TensorGroup, **parameters: Any) -> torch.Tensor:
    assert group.base is not None
    if parameters["scope"] is Scope.TENSOR:
        limits = list(pcb_limits(lambda: [group], parameters["ratio"]).values())
    else:
        given = zip(*(parameters[name].values_for(group.non_base) for name in Limits._fields), strict=True)
        limits = [Limits(*values) for values in given]
        if any(None in values for values in limits):
            wanted = ", ".join(f"`{name}`" for name in Limits._fields)
            raise missing_results("`pcb` with `scope: model`", wanted, group.metadata.name or "")
    return pcb(
        [entry.tensor for entry in group.non_base],
        group.base.tensor,
        ratio=parameters["ratio"],
        scale=parameters["lambda"],
        limits=limits,
    )


PCB_PASS = FirstPass(
    settings=("scope", "ratio"),
    results=Limits._fields,
    measure=_measure,
    needed=lambda settings: settings.get("scope") is not Scope.TENSOR,
)

pcb_merge = base_required_method(
    "pcb",
    "PCB-Merging",
    "https://arxiv.org/abs/2410.02396",
    parameters=(
        ParameterSpec("ratio", Ratio, ParameterScope.SHARED, default=0.1),
        ParameterSpec("lambda", Lambda, ParameterScope.SHARED, default=1.0),
        ParameterSpec("scope", ScopeParameter, ParameterScope.SHARED, default="tensor"),
        *(ParameterSpec(name, measured(name), ParameterScope.NON_BASE, default=None) for name in Limits._fields),
    ),
    merge=_merge,
)
