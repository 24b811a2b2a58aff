"""An ensemble: several models of one kind behind one, which gives the mean of their next-token probabilities."""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch


def combine(models: Sequence[Any]) -> Any:
    """Make the first of several models give, in place of its own logits, those of the models' mean probabilities.

    The mean is over the models' next-token distributions: the ensemble of Wortsman et al. (arXiv 2203.05482), who
    average logits, as a mixture. Generation works too: each model keeps a cache of its own beside the first one's.

    Args:
        models: Transformers models of one architecture and vocabulary, at least one, loaded for inference; of LoRA
            adapters with their base models. The first is changed.

    Returns:
        The first model, or the transformers model within it; its logits keep their dtype and shape.
    """
    members = [model.get_base_model() if hasattr(model, "get_base_model") else model for model in models]
    first, forwards = members[0], [member.forward for member in members]

    @functools.wraps(first.forward)  # generation looks at the arguments
    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        own = [None] * len(members) if past_key_values is None else _caches(past_key_values, len(members))
        outputs = [each(*args, past_key_values=cache, **kwargs) for each, cache in zip(forwards, own, strict=True)]
        # As a change of the first one's logits: of copies come its own bits, whatever their dtype.
        logits = outputs[0].logits
        alone = _log_probabilities(logits)
        change = torch.zeros_like(alone)
        for output in outputs[1:]:
            change = torch.logaddexp(change, _log_probabilities(output.logits) - alone)
        outputs[0].logits = (logits + (change - math.log(len(members)))).to(logits.dtype)
        return outputs[0]

    first.forward = forward
    return first


class _Reordered:
    """What a cache does with the others' caches that it holds when beams change places."""

    others: list[Any]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        for other in self.others:
            other.reorder_cache(beam_idx)


def _caches(cache: Any, count: int) -> list[Any]:
    """Return each model's cache: the first one's, and those that it holds for the others."""
    if not hasattr(cache, "others"):  # the empty one that generation begins with
        cache.others = [copy.deepcopy(cache) for _ in range(count - 1)]
        cache.__class__ = type(type(cache).__name__, (_Reordered, type(cache)), {})
    return [cache, *cache.others]


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return finite float32 log-probabilities: a token that no model can give is -inf in all of them."""
    return logits.float().log_softmax(dim=-1).clamp_min(torch.finfo(torch.float32).min)
