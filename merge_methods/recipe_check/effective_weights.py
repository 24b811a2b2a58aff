"""What a merge really multiplies its models with: a recipe's weights after `normalize`, filters and gradients."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mergekit.common import ModelReference

Weights = Mapping[ModelReference, float]
Settings = Mapping[str, Any]
# From the shared parameters, those of each model, and the base model.
Weigh = Callable[[Settings, Mapping[ModelReference, Settings], ModelReference | None], dict[ModelReference, float]]
_NO_SUM = 1e-8  # a smaller sum of weights divides nothing in mergekit's task arithmetic


class Meaning(NamedTuple):
    """What the effective weights of a merge method are.

    Args:
        weigh: Returns them, for one tensor.
        unit: What they are: `VALUES`, `CHANGES` or `DRAWN`.
        notes: Returns what else decides, one sentence each, of the settings for one tensor.
    """

    weigh: Weigh
    unit: str
    notes: Callable[[Settings, Sequence[Settings]], list[str]] = lambda shared, models: []


VALUES, CHANGES, DRAWN = "factor of its values", "factor of its change", "probability of its values"


def effective_weights(task: Any) -> dict[ModelReference, float]:
    """Return what each model's part of one tensor is multiplied with, or its probability.

    Args:
        task: mergekit's plan of the tensor (`ExecuteMergeMethodTask`), of a method that `MEANINGS` has.
    """
    inputs = {model: dict(task.input_parameters[model]) for model in task.model_order}
    return MEANINGS[task.method_name].weigh(dict(task.parameters), inputs, task.base_model)


def effective_notes(task: Any) -> list[str]:
    """Return what else than its weights decides a tensor, one sentence each.

    Args:
        task: As of `effective_weights`.
    """
    models = [dict(given) for model, given in task.input_parameters.items() if model != task.base_model]
    return MEANINGS[task.method_name].notes(dict(task.parameters), models)


def _linear(parameters: Settings, inputs: Mapping[ModelReference, Settings], _: Any) -> dict[ModelReference, float]:
    divisor = sum(given["weight"] for given in inputs.values()) if parameters["normalize"] else 1.0
    return {model: given["weight"] / divisor if divisor else math.nan for model, given in inputs.items()}


def _task_arithmetic(
    parameters: Settings, inputs: Mapping[ModelReference, Settings], base: ModelReference | None
) -> dict[ModelReference, float]:
    weights = {model: given["weight"] for model, given in inputs.items() if model != base}
    divisor = sum(weights.values()) if parameters["normalize"] else 1.0
    factor = parameters["lambda"] / (divisor if abs(divisor) >= _NO_SUM else 1.0)
    return {model: weight * factor for model, weight in weights.items()}


def _selection(
    _: Settings, inputs: Mapping[ModelReference, Settings], base: ModelReference | None
) -> dict[ModelReference, float]:
    weights = {model: given["weight"] for model, given in inputs.items() if model != base}
    return {model: weight / sum(weights.values()) for model, weight in weights.items()}


def _half_reset(
    parameters: Settings, inputs: Mapping[ModelReference, Settings], base: ModelReference | None
) -> dict[ModelReference, float]:
    share = parameters["base_share"]
    drawn = {model: (1 - share) * p for model, p in _selection(parameters, inputs, base).items()}
    return {**({base: share} if base else {}), **drawn}


def _graft(
    parameters: Settings, inputs: Mapping[ModelReference, Settings], base: ModelReference | None
) -> dict[ModelReference, float]:
    return {model: parameters["lambda"] for model in inputs if model != base}


def _slerp(
    parameters: Settings, inputs: Mapping[ModelReference, Settings], base: ModelReference | None
) -> dict[ModelReference, float]:
    return {model: 1 - parameters["t"] if model == base else parameters["t"] for model in inputs}


def _sparse_notes(kept: str, *, by_sign: bool) -> Callable[[Settings, Sequence[Settings]], list[str]]:
    def notes(shared: Settings, models: Sequence[Settings]) -> list[str]:
        found = []
        if any(given["density"] < 1 for given in models):
            more = (
                ", and these are scaled up to the L1 norm of the whole change (`rescale`)" if shared["rescale"] else ""
            )
            found.append(f"of each change only the share `density` of the values is kept, {kept}{more}")
        if by_sign and shared["normalize"]:
            found.append(
                "`normalize` divides by the weights of those whose changes agree in sign, by place: these are the "
                "factors where all agree; where fewer do, theirs are larger, and that of one alone is `lambda`"
            )
        elif by_sign:
            found.append("a change is left out where its sign is not that of the sum")
        return found

    return notes


def _resample_notes(shared: Settings, _: Sequence[Settings]) -> list[str]:
    again = "from those that changed it" if shared["resample"] == math.inf else f"up to {shared['resample']:g} times"
    return [f"a value that equals the base model's is drawn again, {again} (`resample`)"] if shared["resample"] else []


def _graft_notes(_: Settings, __: Sequence[Settings]) -> list[str]:
    return ["of each change only the largest values of the whole model are kept (`density`)"]


def _slerp_notes(_: Settings, __: Sequence[Settings]) -> list[str]:
    return ["where two tensors are far from parallel, both factors are larger: the way is an arc"]


_LARGEST, _RANDOM = "the largest", "drawn at random"
_MIDDLE, _OFTEN = "the largest below the outliers (`gamma`)", "drawn at random, large ones more often"

MEANINGS: Mapping[str, Meaning] = {
    "linear": Meaning(_linear, VALUES),
    "task_arithmetic": Meaning(_task_arithmetic, CHANGES),
    "ties": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_LARGEST, by_sign=True)),
    "dare_linear": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_RANDOM, by_sign=False)),
    "dare_ties": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_RANDOM, by_sign=True)),
    "della_linear": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_OFTEN, by_sign=False)),
    "della": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_OFTEN, by_sign=True)),
    "breadcrumbs": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_MIDDLE, by_sign=False)),
    "breadcrumbs_ties": Meaning(_task_arithmetic, CHANGES, _sparse_notes(_MIDDLE, by_sign=True)),
    "parameter_selection": Meaning(_selection, DRAWN, _resample_notes),
    "parameter_selection_resample": Meaning(_selection, DRAWN, _resample_notes),
    "half_reset": Meaning(_half_reset, DRAWN),
    "graft": Meaning(_graft, CHANGES, _graft_notes),
    "slerp": Meaning(_slerp, VALUES, _slerp_notes),
}
