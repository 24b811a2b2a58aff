"""From sums over values to shares and cosines, per tensor, layer and model."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ordermerge.eval.inspect.changes import Totals

ROUNDS: Mapping[str, float] = {"0": 0, "1": 1, "3": 3, "full": math.inf}
Summary = dict[str, Any]
_LAYER = re.compile(r"^(?P<layer>(?:.*?\.)?\d+)\.(?P<kind>.+)$")
_FIRST = re.compile(r"embed|wte|wpe")


def summarise(totals: Totals, names: Sequence[str]) -> Summary:
    """Return what sums over values say, as JSON-like values; None where a number does not exist.

    Args:
        totals: The sums, of one tensor or many.
        names: The sub-models' names, in order.

    Returns:
        values: Number of values of one model.
        unchanged: Share of the sub-models' values that equal the base's.
        unchanged_by_model: The same for each.
        changed_by: How many values were changed by 0, 1, ..., K of the sub-models.
        still_base: Expected share of a merged model's values that equal the base's, by rounds of resampling.
        agreement: Of values that two or more changed: their number, the share that all moved in the same direction,
            that share if directions were tossed coins, and the share of the changes that go with the majority.
        norm, base_norm, relative_norm: Lengths of the task vectors, of the base, and their ratios.
        l1, l1_of_sum, l1_of_mean: Sums of the sizes of the values of each task vector, of their sum and of their mean.
        cosine: Between task vectors: mean, lowest and highest of the pairs, and the matrix; None for one model.
        angle: The same in degrees, 0 to 180.
        not_finite: Values that are infinite or NaN in some model.
    """
    count = len(names)
    norms = np.sqrt(np.diag(totals.products))
    cosines = _cosine_matrix(totals.products[:-1, :-1])
    changes = np.arange(count + 1)
    chance = float((totals.changed_by[2:] * 0.5 ** (changes[2:] - 1)).sum())
    return {
        "values": totals.values,
        "unchanged": still_base(totals.changed_by, 0),
        "unchanged_by_model": dict(zip(names, (1 - totals.changed / totals.values).tolist(), strict=True)),
        "changed_by": totals.changed_by.tolist(),
        "still_base": {name: still_base(totals.changed_by, rounds) for name, rounds in ROUNDS.items()},
        "agreement": {
            "values": totals.shared,
            "same_direction": _ratio(totals.agreeing, totals.shared),
            "same_direction_by_chance": _ratio(chance, int(totals.changed_by[2:].sum())),
            "with_majority": _ratio(totals.majority, totals.changes),
        },
        "norm": dict(zip(names, map(_number, norms[:-1]), strict=True)),
        "base_norm": _number(norms[-1]),
        "relative_norm": {name: _ratio(norm, norms[-1]) for name, norm in zip(names, norms[:-1], strict=True)},
        "l1": dict(zip(names, map(_number, totals.sizes[:-1]), strict=True)),
        "l1_of_sum": _number(totals.sizes[-1]),
        "l1_of_mean": _number(totals.sizes[-1] / count),
        "cosine": _pairs(cosines) if count > 1 else None,
        "angle": _pairs(np.degrees(np.arccos(cosines))) if count > 1 else None,
        "not_finite": totals.not_finite,
    }


def still_base(changed_by: np.ndarray, rounds: float) -> float:
    """Return the expected share of values that a merge with equal weights leaves at the base's.

    A value that z of K sub-models left unchanged stays so with probability (z / K) ** (rounds + 1).

    Args:
        changed_by: How many values were changed by 0, 1, ..., K of the sub-models, shape [K + 1].
        rounds: Rounds of resampling; `math.inf` for `full`.
    """
    most = len(changed_by) - 1
    unchanged = (most - np.arange(most + 1)) / most
    return float((changed_by * unchanged ** (rounds + 1)).sum() / changed_by.sum())


def by_layer(tensors: Mapping[str, Totals]) -> dict[str, Totals]:
    """Return the sums of each layer, and of what belongs to no layer; embeddings first, then layers in their order.

    Args:
        tensors: The sums of each tensor.
    """
    layers: dict[str, Totals] = {}
    for name, totals in tensors.items():
        layer, _ = split_name(name)
        layers[layer] = layers[layer] + totals if layer in layers else totals
    return {layer: layers[layer] for layer in sorted(layers, key=_place)}


def split_name(name: str) -> tuple[str, str]:
    """Return the layer of a tensor ("model.layers.3") and its name there ("mlp.up_proj").

    Of a tensor that is in no layer: its module ("model.norm") and "".

    Args:
        name: The tensor's name.
    """
    bare = name.removesuffix(".weight")
    found = _LAYER.match(bare)
    return (found["layer"], found["kind"]) if found else (bare, "")


def _place(layer: str) -> tuple[Any, ...]:
    parts = layer.split(".")
    numbered = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
    return (1 if parts[-1].isdigit() else 0 if _FIRST.search(layer) else 2, numbered)


def _cosine_matrix(products: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.clip(products / np.outer(norms, norms), -1, 1)
    matrix[np.diag(np.isfinite(np.diag(matrix)))] = 1  # not less by rounding: an angle of 0
    return matrix


def _pairs(matrix: np.ndarray) -> Summary:
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    pairs = pairs[np.isfinite(pairs)]
    ends = {"mean": pairs.mean(), "lowest": pairs.min(), "highest": pairs.max()} if len(pairs) else {}
    known = {name: float(ends[name]) if ends else None for name in ("mean", "lowest", "highest")}
    return {**known, "matrix": [[_number(value) for value in row] for row in matrix]}


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ratio(part: float, whole: float) -> float | None:
    return _number(part / whole) if whole else None
