"""The small files beside the weights: tokenizers, chat templates, special tokens, end-of-text tokens.

mergekit copies them from the base model, or from one of the models if there is none, whatever the others have.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from pydantic_core import from_json

from ordermerge.files import user_path

_VOCABULARY_FILES = ("tokenizer.model", "vocab.json", "vocab.txt")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class Kind(NamedTuple):
    """One thing that the models of a merge should have alike."""

    name: str
    find: Callable[[ModelReference], Any]
    remedy: str


def companion_warnings(config: MergeConfiguration, *, own_companions: bool = False) -> list[str]:
    """Return where the local models of a recipe differ in what the merged model gets from only one of them.

    Args:
        config: A recipe that mergekit's schema accepts.
        own_companions: Whether the merged model gets these from the first sub-model instead of the base model.
    """
    inputs = [entry.model for entry in config.models or ()] or sorted(config.referenced_models(), key=str)
    subs = [model for model in dict.fromkeys(inputs) if model != config.base_model]
    ordered = [model for model in [*subs, *([config.base_model] if config.base_model else [])] if _folder(model)]
    if config.models and own_companions:
        ordered = [model for model in ordered if model != config.base_model] or ordered
    donor = (
        "the first sub-model's"
        if own_companions
        else "the base model's"
        if config.base_model
        else "that of one of them"
    )
    return [text for kind in _kinds(config) if (text := _difference(kind, ordered, donor))]


def _kinds(config: MergeConfiguration) -> list[Kind]:
    kinds = [
        Kind("end-of-text token for generation", _end_tokens, "correct generation_config.json in the merged model"),
    ]
    if not config.tokenizer and not config.tokenizer_source:
        kinds += [
            Kind(
                "vocabulary", _find_vocabularies(), "say which it is to be: `tokenizer: {source: MODEL}`, base or union"
            ),
            Kind("special tokens", _special_tokens, "correct tokenizer_config.json in the merged model"),
        ]
    if not config.chat_template:
        kinds.append(Kind("chat template", _chat_template, "say which it is to be with `chat_template`"))
    return kinds


def _difference(kind: Kind, models: list[ModelReference], donor: str) -> str | None:
    found = [(model, value) for model in models if (value := kind.find(model)) is not None]
    if not found:
        return None
    first, expected = found[0]
    if others := [str(model) for model, value in found[1:] if value != expected]:
        return (
            f"not the same {kind.name} in {first} as in {', '.join(others)}: "
            f"the merged model gets {donor}; {kind.remedy}"
        )
    return None


def _folder(model: ModelReference) -> Path | None:
    """Return where a model's tokenizer is: beside its adapter, if that has one."""
    folders = [user_path(part.path) for part in (model.lora, model.model) if part]
    return next((f for f in folders if (f / "tokenizer_config.json").is_file()), None) or next(
        (f for f in folders if (f / "config.json").is_file()), None
    )


def _json(folder: Path | None, name: str) -> Mapping[str, Any]:
    try:
        content = from_json((folder / name).read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _find_vocabularies() -> Callable[[ModelReference], object]:
    """Return what finds a model's vocabulary, to be compared; files are large, so equal ones are parsed once."""
    parsed: dict[bytes, object] = {}

    def find(model: ModelReference) -> object:
        folder = _folder(model)
        if folder is None:
            return None
        if not (folder / "tokenizer.json").is_file():
            return next(((folder / name).read_bytes() for name in _VOCABULARY_FILES if (folder / name).is_file()), None)
        content = (folder / "tokenizer.json").read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest not in parsed:
            parsed[digest] = _token_ids(content, otherwise=digest)
        return parsed[digest]

    return find


def _token_ids(content: bytes, *, otherwise: object) -> object:
    """Return a hash of the tokens and their ids, the same for files that say the same in other words."""
    try:
        tokenizer = from_json(content)
        vocabulary = tokenizer["model"]["vocab"]
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {t: i for i, (t, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError):
        return otherwise
    return hash(frozenset((ids | added).items()))


def _special_tokens(model: ModelReference) -> object:
    folder = _folder(model)
    named = {**_json(folder, "tokenizer_config.json"), **_json(folder, "special_tokens_map.json")}
    tokens = {name: named.get(name) for name in _SPECIAL}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return texts if named else None


def _chat_template(model: ModelReference) -> object:
    folder = _folder(model)
    settings = _json(folder, "tokenizer_config.json")
    if folder is None or not settings:
        return None
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8").strip()
    template = settings.get("chat_template") or _json(folder, "chat_template.json").get("chat_template") or ""
    return template.strip() if isinstance(template, str) else template


def _end_tokens(model: ModelReference) -> object:
    folder = user_path(model.model.path)
    value = _json(folder, "generation_config.json").get("eos_token_id")
    value = _json(folder, "config.json").get("eos_token_id") if value is None else value
    return None if value is None else sorted(value) if isinstance(value, list) else [value]
