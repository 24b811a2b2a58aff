"""The model card of a merge by one of our methods: what was drawn from how many models, and how."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods

from ordermerge.merge_methods.parameter_selection import NAMES, PAPER

CARD = "README.md"


def complete_card(merged: Path, config: MergeConfiguration) -> None:
    """Add to mergekit's model card how the values were drawn, if one of our methods drew them.

    Args:
        merged: The merged model.
        config: What it was merged by.
    """
    file = merged / CARD
    method = next(method for method in registered_methods() if method.spec.name == config.merge_method)
    if method.spec.name not in NAMES or not file.exists():
        return
    settings = {p.name: _setting(config, p.name, p.default) for p in method.spec.shared_parameters}
    lines = [
        "### Draw",
        "",
        f"Every value is, bit for bit, that of one of the sub-models: {method.spec.pretty_name}, from Ju et al., "
        f"[Mitigating Training Imbalance in LLM Fine-Tuning via Selective Parameter Merging]({PAPER}), EMNLP 2024.",
        "",
        *(f"- `{name}`: {value}" for name, value in settings.items()),
    ]
    if config.models:
        entries = [entry for entry in config.models if entry.model != config.base_model]
        weights = [(entry.parameters or {}).get("weight", _setting(config, "weight", 1)) for entry in entries]
        lines += [f"- sub-models: {len(entries)}", f"- `weight`: {', '.join(map(_plain, weights))}"]
    card = ModelCard.load(file)
    card.text = f"{card.text.rstrip()}\n\n" + "\n".join(lines) + "\n"
    card.data.tags = [*(card.data.tags or []), "ordermerge"]
    card.save(file)


def _setting(config: MergeConfiguration, name: str, default: Any) -> str:
    return _plain((config.parameters or {}).get(name, default))


def _plain(value: Any) -> str:
    """Write a setting as in a recipe: a value, a gradient, or filters."""
    return (
        value if isinstance(value, str) else json.dumps(value, default=lambda part: part.model_dump(exclude_none=True))
    )
