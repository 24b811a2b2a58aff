"""An experiment file with a line for every usual key, live or as a comment: made from the schema."""

from collections.abc import Mapping
from typing import Any

import yaml

from ordermerge.config.reference import Key, experiment_schema, keys

# Of the libraries' fields, those that are set most often; the others are in the reference.
USUAL = {
    "sft": (
        *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "bf16"),
        *("activation_checkpointing", "completion_only_loss", "assistant_only_loss", "eval_strategy"),
        *("logging_steps", "report_to"),
    ),
    "lora": ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "save_as"),
}
_COLUMN = 44  # where the meanings begin


def commented_experiment(values: Mapping[str, Any]) -> str:
    """Return an experiment file: the keys that are given, all others as comments, each with its meaning.

    Args:
        values: By dotted key, such as `sft.learning_rate`; a section without keys of its own as a whole (`merges`).
    """
    lines: list[str] = []
    for key in keys(experiment_schema()):
        if key.section in USUAL and key.name not in USUAL[key.section] and key.place not in values:
            continue
        if not key.section and lines:
            lines.append("")
        lines += _lines(key, values)
    return "\n".join(lines) + "\n"


def _lines(key: Key, values: Mapping[str, Any]) -> list[str]:
    indent = "  " * key.place.count(".")
    if key.is_section:
        live = key.required or any(place.startswith(f"{key.place}.") for place in values)
        return [_with_meaning(f"{'' if live else '# '}{indent}{key.name}:", key)]
    whole = values.get(key.place)
    if isinstance(whole, Mapping) and not key.section:
        body = yaml.safe_dump(dict(whole), sort_keys=False, default_flow_style=None).splitlines()
        return [_with_meaning(f"{key.name}:", key), *(f"  {line}" for line in body)]
    if key.place in values:
        return [_with_meaning(f"{indent}{key.name}: {_flow(whole)}", key)]
    # Within a section that is a comment itself, so that all of it can be uncommented as one.
    return [_with_meaning(f"# {indent}{key.name}: {_flow(key.example)}", key)]


def _with_meaning(line: str, key: Key) -> str:
    meaning = key.meaning.partition(". ")[0].rstrip(".")
    return f"{line + ' ':{_COLUMN}}# {meaning}" if meaning else line  # YAML has a comment only after a space


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
