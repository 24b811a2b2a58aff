"""`--set KEY=VALUE`: changes of an experiment's keys from the command line."""

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, quoted
from ordermerge.yaml_json import parse_yaml

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # a number, which YAML 1.1 takes for text: 1e-4


def change(content: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return the content of an experiment file with some keys set.

    A value is read as YAML and then as the key's type wants it: where that is text, it is the text as written; where it
    is a list, commas part its entries.

    Args:
        content: What the file holds.
        changes: `KEY=VALUE` each, the key with its sections, such as `sft.learning_rate=1e-4`; later ones win.

    Raises:
        UserError: If one is not of this form, or its key lies in something that holds no keys. Whether a key exists and
            its value is possible is for the schema to say.
    """
    for one in changes:
        key, equals, text = one.partition("=")
        if not equals or not all(part for part in key.split(".")):
            raise UserError(f"`--set {one}`: must be KEY=VALUE, such as `--set sft.learning_rate=1e-4`")
        content = _with(content, key, _value(text, key, one), one)
    return dict(content)


def described(path: Path, changes: Sequence[str]) -> str:
    """Return the name of a changed experiment file, for messages.

    Args:
        path: The file.
        changes: As for `change`.
    """
    return " ".join([str(path), *(f"--set {one}" for one in changes)])


def _with(content: Any, key: str, value: Any, one: str) -> dict[str, Any]:
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise UserError(f"`--set {one}`: there is {quoted(content)}, which holds no keys; set that as a whole")
    head = _head(key, content)
    rest = key[len(head) + 1 :]
    return {**content, head: _with(content.get(head), rest, value, one) if rest else value}


def _head(key: str, known: Mapping[str, Any]) -> str:
    """Return the first part of a dotted key: the longest one that is known, as a merge's name may hold dots."""
    return max((name for name in known if f"{key}.".startswith(f"{name}.")), key=len, default=key.partition(".")[0])


def _value(text: str, key: str, one: str) -> Any:
    kind = _type(key)
    try:
        value = parse_yaml(text, f"`--set {one}`")
    except UserError:
        if kind is Any or _refusals(kind, text):
            raise
        return text  # such as a template: `Q: {question}`
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    refusals = _refusals(kind, value)
    if refusals == {"string_type"}:
        return text
    return parse_yaml(f"[{text}]", f"`--set {one}`") if refusals == {"list_type"} else value


def _refusals(kind: Any, value: Any) -> set[str]:
    """Return why a type does not take a value, in pydantic's names for it."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        return {detail["type"] for detail in error.errors()}
    return set()


def _type(key: str) -> Any:
    """Return the type of a dotted key; Any where the schema does not say."""
    section: Any = Experiment
    for part in key.split("."):
        parts = [section, *typing.get_args(section)]
        models = [one for one in parts if isinstance(one, type) and issubclass(one, BaseModel)]
        if not models or part not in models[0].model_fields:
            return Any
        field = models[0].model_fields[part]
        section = field.annotation
        whole = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return whole
