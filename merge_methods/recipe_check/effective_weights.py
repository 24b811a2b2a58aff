"""What a merge really multiplies its models with: a recipe's weights after `normalize`, filters and gradients."""

from collections.abc import Callable, Mapping
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
        unit: What they are, for a heading.
        notes: What else decides, one sentence each.
    """

    weigh: Weigh
    unit: str
    notes: tuple[str, ...] = ()


def effective_weights(task: Any) -> dict[ModelReference, float]:
    """Return what each model's part of one tensor is multiplied with, or its probability.

    Args:
        task: mergekit's plan of the tensor (`ExecuteMergeMethodTask`), of a method that `MEANINGS` has.
    """
    inputs = {model: dict(task.input_parameters[model]) for model in task.model_order}
    return MEANINGS[task.method_name].weigh(dict(task.parameters), inputs, task.base_model)


def _linear(parameters: Settings, inputs: Mapping[ModelReference, Settings], _: Any) -> dict[ModelReference, float]:
    divisor = sum(given["weight"] for given in inputs.values()) if parameters["normalize"] else 1.0
    return {model: given["weight"] / divisor for model, given in inputs.items()}


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


_VALUES, _CHANGES, _DRAWN = "factor of its values", "factor of its change", "probability of its values"
_DIVIDED = (
    "`normalize` divides by the sum of the weights of those that agree in sign at a place: these are the factors where "
    "all agree; where fewer do, theirs are larger, and one alone has `lambda`"
)
_AGREE = "without `normalize`: a change that does not agree in sign with the sum of all is left out"
_KEPT = "of each change, the share `density` of the values is kept, {}; the rest is 0"
_SCALED = "a value that is kept is divided by its chance of being kept (`rescale`), so that the mean change stays"


def _sparse(kept: str) -> Meaning:
    return Meaning(_task_arithmetic, _CHANGES, (_KEPT.format(kept),))


MEANINGS: Mapping[str, Meaning] = {
    "linear": Meaning(_linear, _VALUES),
    "task_arithmetic": Meaning(_task_arithmetic, _CHANGES),
    "ties": _sparse("the largest"),
    "dare_linear": _sparse("drawn at random"),
    "dare_ties": _sparse("drawn at random"),
    "della_linear": _sparse("drawn at random, large ones more often"),
    "della": _sparse("drawn at random, large ones more often"),
    "breadcrumbs": _sparse("the largest below the share `gamma` of outliers"),
    "breadcrumbs_ties": _sparse("the largest below the share `gamma` of outliers"),
    "parameter_selection": Meaning(_selection, _DRAWN),
    "parameter_selection_resample": Meaning(_selection, _DRAWN),
    "half_reset": Meaning(_half_reset, _DRAWN),
    "graft": Meaning(
        _graft, _CHANGES, ("of each change, the share `density` of the whole model is kept, the largest",)
    ),
    "slerp": Meaning(_slerp, _VALUES, ("between vectors that are not nearly parallel both are larger (an arc)",)),
}
