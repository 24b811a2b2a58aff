"""Tensors that a model's config ties must stay equal, so they share one draw; so do a tensor's two names."""

import os
from collections.abc import Mapping
from functools import cache

import torch
import transformers
from mergekit.architecture import arch_info_for_config
from mergekit.architecture.base import ConfiguredModelArchitecture
from mergekit.common import ModelReference, get_auto_cls
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import TensorGroup
from transformers.initialization import no_init_weights


def draw_name(group: TensorGroup) -> str:
    """Return the name under which a tensor's values are drawn: its own, or that of the tensor it is tied to.

    A checkpoint may store both copies of a tied pair (the embedding and `lm_head`); drawn under two names they would
    come out different. Of the names that mergekit's table of an architecture has for a tensor, the first one counts.

    Args:
        group: The tensor's inputs; ties are known only where their ids are mergekit model references.
    """
    name = group.metadata.name or ""
    models = (entry.id for entry in group.entries if isinstance(entry.id, ModelReference))
    return next((drawn for model in models if (drawn := _drawn_as(model).get(name))), name)


def find_ties(config: transformers.PreTrainedConfig, *, trust_remote_code: bool = False) -> dict[str, str]:
    """Return the tensors that a model's class ties, and what each is tied to, by the names that the class has for them.

    Args:
        config: The model's configuration.
        trust_remote_code: Whether code beside the model may be run.
    """
    if '"tie_word_embeddings": true' not in config.to_json_string(use_diff=False):
        return {}
    name = (config.architectures or [""])[0]
    known = getattr(transformers, name, None)
    with torch.device("meta"), no_init_weights():
        try:
            if known is not None:
                model = known._from_config(config)
            else:
                model = get_auto_cls(name).from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[call-arg]
        except Exception:  # a class that cannot be made here: nothing is known of its ties
            return {}
    return dict(model.get_expanded_tied_weights_keys(all_submodels=True))


def _drawn_as(model: ModelReference) -> Mapping[str, str]:
    file = os.path.join(model.model.path, "config.json")
    written = os.stat(file).st_mtime_ns if os.path.isfile(file) else 0
    return _names(model, LoaderCache().trust_remote_code, written)


@cache
def _names(model: ModelReference, trust: bool, _written: int) -> Mapping[str, str]:
    """Return the names of tensors that are drawn under another, and that one."""
    config = model.config(trust_remote_code=trust)
    architecture = arch_info_for_config(config)
    if architecture is None:  # none of mergekit's own: ask the model's class
        return find_ties(config, trust_remote_code=trust)
    names: dict[str, str] = {}
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    try:
        weights = ConfiguredModelArchitecture(info=architecture, config=config).all_weights()
    except RuntimeError:  # the table looks for a field that this configuration has elsewhere
        return find_ties(config, trust_remote_code=trust)
    for weight in weights:
        own = weight.tied_names[0] if tied and weight.tied_names else weight.name
        names |= dict.fromkeys((weight.name, *(weight.aliases or ())), own)
    return {name: own for name, own in names.items() if name != own}
