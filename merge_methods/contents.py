"""What a recipe's models hold that lets a merge run and come out wrong: warnings, from a few sampled values."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import get as get_method
from mergekit.merge_methods.base import BasePolicy

from ordermerge.merge_methods.companions import companion_warnings
from ordermerge.merge_methods.parameter_selection import NAMES
from ordermerge.merge_methods.sampling import Sampled, look_the_same, sample

# Between a model and one that is unrelated to it, ||theta_k - base|| / ||base|| is at least 1 (it is the square root of
# 1 + the squared ratio of their norms: 1.4 for models alike in size), while fine-tuning moves weights by a small part
# of their norm (0.15 in the quickstart, whose learning rate is high). 0.9 leaves 10 % for what a sample says less
# exactly, and for what all models have much alike.
UNRELATED = 0.9
# Sub-models of the right base differ in what their orders changed. Where their distance from each other is under 1/5
# of their distance to the base (a cosine of their task vectors over 0.98; 0.33 in the quickstart), they share a parent
# that this base is not, or the orders made next to no difference: either is worth knowing before a merge.
CLOSE = 0.2
# These blend models with each other: their `base_model` is one of the models, not what they were fine-tuned from.
_BLENDS = ("slerp", "nearswap", "arcee_fusion")


def recipe_warnings(recipe: Mapping[str, Any], *, dressed: bool = False) -> list[str]:
    """Return what is likely to be a mistake in a recipe that can be merged, one sentence each.

    Reads headers, a few values (some megabytes at most) and the small files beside the weights; local models only.

    Args:
        recipe: The parsed YAML, without problems (see `check_recipe`).
        dressed: Whether tokenizer, chat template and generation config are taken from the first sub-model, as
            `ordermerge merge` does, and not from the base model, as mergekit does.
    """
    config = MergeConfiguration.model_validate(dict(recipe))
    if config.merge_method == "passthrough":
        return []  # stacks layers of models that need not be related
    warnings = companion_warnings(config, dressed=dressed and bool(config.models))
    if config.models and (sampled := sample(config)):
        copies = _copy_warnings(sampled, _has_task_vectors(config))
        warnings = [*copies, *_base_warnings(config, sampled), *_dtype_warnings(config, sampled), *warnings]
    return warnings


def _has_task_vectors(config: MergeConfiguration) -> bool:
    """Tell whether the method merges differences to the base model."""
    policy = get_method(config.merge_method).spec.contract.base
    if config.base_model is None or config.merge_method in _BLENDS:
        return False
    if config.merge_method in NAMES:
        return bool(_resample(config))
    return policy in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL)


def _resample(config: MergeConfiguration) -> Any:
    default = "full" if config.merge_method == "parameter_selection_resample" else 0
    return (config.parameters or {}).get("resample", default) if config.merge_method in NAMES else 0


def _copy_warnings(sampled: Sampled, task_vectors: bool) -> Iterator[str]:
    copied: set[str] = set()
    for first, second in itertools.combinations(sampled.subs, 2):
        if second.path not in copied and look_the_same(sampled, first, second):
            copied.add(second.path)
            yield (
                f"{second.path} looks like a copy of {first.path} (every value sampled is the same): "
                f"it adds nothing to the merge but its weight; check that both are what you mean"
            )
    for sub in sampled.subs if task_vectors and sampled.base else ():
        if sampled.base and look_the_same(sampled, sampled.base, sub):
            yield (
                f"{sub.path} looks like a copy of the base model {sampled.base.path} (every value sampled is the "
                f"same): it changes nothing; check that it was fine-tuned"
            )


def _base_warnings(config: MergeConfiguration, sampled: Sampled) -> Iterator[str]:
    if sampled.base is None or not sampled.subs or not _has_task_vectors(config):
        return
    origin = [values.double() for values in sampled.values[sampled.base.path]]
    deltas = [[v.double() - o for v, o in zip(sampled.values[s.path], origin, strict=True)] for s in sampled.subs]
    far = []
    for sub, delta in zip(sampled.subs, deltas, strict=True):
        ratios = [float(d.norm() / o.norm()) for d, o in zip(delta, origin, strict=True) if o.norm() > 0]
        if ratios and (ratio := torch.tensor(ratios).median().item()) >= UNRELATED:
            far.append(f"{sub.path} ({ratio:.2f})")
    if far:
        yield (
            f"{sampled.base.path} does not look like the base model of {', '.join(far)}: the difference is as large as "
            f"the weights themselves (in brackets, relative; unrelated models are over 1, fine-tuned ones far below); "
            f"name the model that they were fine-tuned from as `base_model`"
        )
        return
    joined = [torch.cat(delta) for delta in deltas]
    # Copies are told of elsewhere, and say nothing of the base.
    ratio = max((r for a, b in itertools.combinations(joined, 2) if (r := _closeness(a, b))), default=1.0)
    if ratio < CLOSE:
        yield (
            f"the sub-models are at least {1 / ratio:.0f} times closer to each other than to {sampled.base.path}: if "
            f"they were fine-tuned from another model, name that as `base_model`; if not, their training differed so "
            f"little that the merge will hardly differ from any of them"
        )


def _closeness(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the distance of two sub-models, relative to that of the nearer one to the base."""
    nearer = min(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / nearer if nearer else 1.0


def _dtype_warnings(config: MergeConfiguration, sampled: Sampled) -> Iterator[str]:
    if not _resample(config) or sampled.base is None or not sampled.subs:
        return
    stored = [values[0].dtype for values in sampled.values.values()]
    compared = (config.dtype or "").removeprefix("torch.") or str(_promoted(stored)).removeprefix("torch.")
    if compared != "float32":
        return
    shares = {path: _bfloat16_share(values) for path, values in sampled.values.items()}
    base = shares[sampled.base.path]
    for sub in sampled.subs:
        coarse, fine = max(base, shares[sub.path]), min(base, shares[sub.path])
        if coarse == 1 and fine < 0.5:
            rounded, exact = (sampled.base, sub) if base == 1 else (sub, sampled.base)
            yield (
                f"the values of {rounded.path} are bfloat16 numbers and those of {exact.path} are not: compared in "
                f"float32 nothing looks unchanged, and nothing is resampled; say `dtype: bfloat16`"
            )
            return


def _promoted(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def _bfloat16_share(probes: Sequence[torch.Tensor]) -> float:
    """Return the share of values that bfloat16 holds exactly."""
    values = torch.cat([probe.float() for probe in probes])
    return float((values.bfloat16().float() == values).float().mean())
