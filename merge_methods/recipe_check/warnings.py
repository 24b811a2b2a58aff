"""Warnings about likely mistakes in a recipe's models, from a few sampled values."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import get as get_method
from mergekit.merge_methods.base import BasePolicy
from mergekit.options import MergeOptions

from ordermerge.merge_methods.parameter_selection import NAMES
from ordermerge.merge_methods.recipe_check.check import recipe_fit
from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint, file_warnings, open_all, read_values
from ordermerge.merge_methods.recipe_check.companions import companion_warnings
from ordermerge.merge_methods.recipe_check.config_meaning import GLANCE, adapter_warnings
from ordermerge.weights import FLOATS, Stored

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
# Enough to tell related from unrelated tensors (the mean of so many products is known to 1 %), read in milliseconds.
PROBES, PROBE_VALUES = 16, 8192
# The mean cosine of unrelated updates is 0, give or take 1/sqrt(values times pairs): 4 times that is no chance. In a
# tensor of a few values, this much is taken for it.
_APART = 0.1
# Where model stock's denominator is this small, it keeps the base model.
_SINGULAR = 1e-6
_VOCABULARY = re.compile(r"embed|lm_head|wte|wpe|word_embeddings")


@dataclass(frozen=True)
class Sampled:
    """The sub-models of one recipe and their base, with values of the same places in each.

    Args:
        subs: The local sub-models.
        base: The base model, if the recipe has one and it is local.
        names: The tensors that all of them have alike.
        values: For each model, the values sampled of each probe.
    """

    subs: Sequence[Checkpoint]
    base: Checkpoint | None
    names: Sequence[str]
    values: Mapping[str, Sequence[torch.Tensor]]


def recipe_warnings(
    recipe: Mapping[str, Any],
    *,
    own_companions: bool = False,
    options: MergeOptions | None = None,
    by_name: bool | None = False,
) -> list[str]:
    """Return what is likely to be a mistake in a recipe that can be merged, one sentence each.

    Reads headers, a few values (some megabytes at most) and the small files beside the weights; of models that are
    here, as folders or in the Hugging Face cache.

    Args:
        recipe: The parsed YAML, without problems (see `check_recipe`).
        own_companions: Whether tokenizer, chat template and generation config are taken from the first sub-model, as
            `ordermerge merge` does, and not from the base model, as mergekit does.
        options: mergekit's options.
        by_name: Whether it is to be merged by tensor name; None if either way will do.
    """
    config = MergeConfiguration.model_validate(dict(recipe))
    models = dict(open_all(set(config.referenced_models())))
    warnings = [*recipe_fit(config, options).warnings, *(w for model in models.values() for w in file_warnings(model))]
    warnings += adapter_warnings(models)
    if config.merge_method == "passthrough":
        return list(dict.fromkeys(warnings))  # stacks layers of models that need not be related
    warnings += companion_warnings(config, own_companions=own_companions and bool(config.models))
    if config.models and (sampled := sample(config)):
        copies = _copy_warnings(sampled, _has_task_vectors(config))
        kinds = (_base_warnings, _model_stock_warnings, _dtype_warnings)
        warnings = [*copies, *(warning for kind in kinds for warning in kind(config, sampled)), *warnings]
    return list(dict.fromkeys(warnings))


def sample(config: MergeConfiguration) -> Sampled | None:
    """Read a few values of the local models of a recipe; None if fewer than two of them have tensors in common.

    Args:
        config: A recipe with a plain list of models.
    """
    listed = {entry.model for entry in config.models or ()}
    models = dict(open_all(listed | ({config.base_model} if config.base_model else set())))
    known: dict[ModelReference, Checkpoint] = {ref: m for ref, m in models.items() if _is_readable(m)}
    base = known.get(config.base_model) if config.base_model else None
    subs = [known[e.model] for e in config.models or () if e.model in known and e.model != config.base_model]
    everyone = [*subs, *([base] if base else [])]
    if len(everyone) < 2:
        return None
    names = [name for name in everyone[0].tensors or () if _alike([(m.tensors or {}).get(name) for m in everyone])]
    probes = _probes(names, everyone[0])
    values = {m.path: [read_values((m.tensors or {})[name], PROBE_VALUES) for name in probes] for m in everyone}
    return Sampled(subs, base, names, values) if probes else None


def _is_readable(model: Checkpoint) -> bool:
    tensors = (model.tensors or {}).values()
    return not model.problems and model.adapter is None and any(stored.offset is not None for stored in tensors)


def look_the_same(sampled: Sampled, one: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether two models agree in all probes and then, before it is said aloud, in a glance at every tensor.

    Args:
        sampled: What was read of the recipe's models.
        one: One of them.
        other: Another.
    """
    pairs = zip(sampled.values[one.path], sampled.values[other.path], strict=True)
    return all(_equal(a, b) for a, b in pairs) and all(
        # A fine-tuning that froze nearly everything is no copy.
        _equal(*(read_values((model.tensors or {})[name], GLANCE) for model in (one, other)))
        for name in sampled.names
    )


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
    origin, deltas = _task_vectors(sampled, sampled.base)
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


def _task_vectors(sampled: Sampled, base: Checkpoint) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Return the base model's values of each probe, and what each sub-model changed of them; float64."""
    origin = [values.double() for values in sampled.values[base.path]]
    return origin, [[v.double() - o for v, o in zip(sampled.values[s.path], origin, strict=True)] for s in sampled.subs]


def _model_stock_warnings(config: MergeConfiguration, sampled: Sampled) -> Iterator[str]:
    if config.merge_method != "model_stock" or sampled.base is None or len(sampled.subs) < 2:
        return
    count, (_, deltas) = len(sampled.subs), _task_vectors(sampled, sampled.base)
    cosines, margins = [], []
    for probes in zip(*deltas, strict=True):
        pairs = [torch.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(probes, 2)]
        cosines.append(float(torch.stack(pairs).mean()))
        margins.append(min(_APART, 4 / math.sqrt(len(pairs) * len(probes[0]))))
    if apart := [cosine for cosine, margin in zip(cosines, margins, strict=True) if cosine < -margin]:
        step = 1 + (count - 1) * min(apart)
        factor = f" ({count * min(apart) / step:.2f} times their mean)" if abs(step) > _SINGULAR else ""
        yield (
            f"in {len(apart)} of {len(cosines)} tensors sampled the sub-models' updates point apart (mean cosine down "
            f"to {min(apart):.2f}): there `model_stock` extrapolates, to the other side of the base model{factor}; use "
            "`linear`, or leave out the sub-model that differs"
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


def _alike(tensors: Sequence[Stored | None]) -> bool:
    plain = [tensor for tensor in tensors if tensor and tensor.dtype in FLOATS and tensor.offset is not None]
    shapes = {tensor.shape for tensor in plain} | ({None} if len(plain) < len(tensors) else set())
    return len(shapes) == 1 and None not in shapes and 0 not in (shapes.pop() or ())


def _probes(names: Sequence[str], model: Checkpoint) -> list[str]:
    """Return some tensors of every kind and depth; vectors (norms are all near 1) and vocabularies tell less."""
    shapes = {name: (model.tensors or {})[name].shape or () for name in names}
    matrices = [name for name in names if len(shapes[name]) > 1 and not _VOCABULARY.search(name)] or list(names)
    by_kind = sorted(matrices, key=lambda name: (re.sub(r"\d+", "#", name), len(name), name))
    number = min(PROBES, len(by_kind))
    return [by_kind[(2 * i + 1) * len(by_kind) // (2 * number)] for i in range(number)]


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
