"""Keys that a pydantic schema does not know; the schemas of mergekit pass over them in silence."""

import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ordermerge.errors import did_you_mean


def unknown_keys(annotation: Any, value: Any, where: str = "") -> Iterator[str]:
    """Yield a problem for each key, at any depth, that the pydantic types of a schema do not know.

    Args:
        annotation: The type that the value is to have.
        value: The value, as YAML gives it.
        where: Its place, as the problem is to name it.
    """
    kinds = [annotation, *_flatten(annotation)]
    if isinstance(value, Mapping):
        sections = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}
        if len(sections) == 1:
            fields = sections.pop().model_fields
            for key, item in value.items():
                place = f"{where}.{key}" if where else str(key)
                if key not in fields:
                    yield f"unknown key `{place}`{did_you_mean(str(key), list(fields))}"
                else:
                    yield from unknown_keys(fields[key].annotation, item, place)
        for kind in kinds:
            if typing.get_origin(kind) is dict:
                for key, item in value.items():
                    yield from unknown_keys(typing.get_args(kind)[1], item, f"{where}.{key}")
    elif isinstance(value, list):
        items = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is list]
        for index, item in enumerate(value):
            for kind in items:
                yield from unknown_keys(kind, item, f"{where}[{index}]")


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a union, at any depth of nested unions."""
    if typing.get_origin(annotation) is typing.Union:
        for part in typing.get_args(annotation):
            yield part
            yield from _flatten(part)
