"""Tensors that a model's config ties must stay equal, so they share one draw."""

import transformers
from mergekit.architecture import arch_info_for_config
from mergekit.architecture.base import ConfiguredModelArchitecture
from mergekit.common import ModelReference
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import TensorGroup


def draw_name(group: TensorGroup) -> str:
    """Return the name under which a tensor's values are drawn: its own, or that of the tensor it is tied to.

    A checkpoint may store both copies of a tied pair (the embedding and `lm_head`); drawn under two names they would
    come out different.

    Args:
        group: The tensor's inputs; ties are known only where their ids are mergekit model references.
    """
    name = group.metadata.name or ""
    if group.metadata.vocabulary_axis is None:
        return name
    models = (entry.id for entry in group.entries if isinstance(entry.id, ModelReference))
    return next(filter(None, (_tied_to(model, name) for model in models)), name)


def _tied_to(model: ModelReference, name: str) -> str | None:
    config = model.config(trust_remote_code=LoaderCache().trust_remote_code)
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return None
    architecture = arch_info_for_config(config)
    if architecture is None:  # none of mergekit's own: ask the model's class
        tied = getattr(getattr(transformers, config.architectures[0], None), "_tied_weights_keys", None)
        return tied.get(name) if isinstance(tied, dict) else None
    weights = ConfiguredModelArchitecture(info=architecture, config=config).all_weights()
    return next((weight.tied_names[0] for weight in weights if weight.name == name and weight.tied_names), None)
