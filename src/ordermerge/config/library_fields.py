"""Sections whose keys are the fields of a library's configuration class, and keys that a schema does not know."""

import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ordermerge.errors import UserError, did_you_mean, quoted
from ordermerge.mistakes import mistakes


class Fields:
    """The fields of a configuration dataclass as the keys of a section of the experiment.

    Args:
        section: The section's name, for messages.
        config: The dataclass.
        owner: The library it is from, for messages.
        owned: Fields that cannot be set, and why.
        refused: Fields that cannot be set to anything but their default, and why.
        ours: Keys of the section that are no fields of the dataclass, and what they mean.
    """

    def __init__(
        self,
        section: str,
        config: type,
        owner: str,
        owned: Mapping[str, str],
        refused: Mapping[str, str],
        ours: Mapping[str, str] = MappingProxyType({}),
    ):
        self._section, self._config, self._owner = section, config, owner
        self._owned, self._refused, self._ours = owned, refused, ours

    def check(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the values that have their field's type, as that type, and a sentence for each problem.

        Args:
            given: The section.
        """
        values, problems = {}, []
        for name, value in given.items():
            try:
                values[name] = self.convert(name, value)
            except UserError as error:
                problems += error.problems
        return values, [problem for name in given if (problem := self._refusal(name, given[name]))] + problems

    def convert(self, name: str, value: Any) -> Any:
        """Return a value as the type of its field: YAML reads `1e-3` as text, and such classes check no types.

        Args:
            name: The field; the value of an unknown one is returned as it is.
            value: Its value as written.

        Raises:
            UserError: If the value cannot be one of that type.
        """
        hint = _hints(self._config).get(name, Any)
        choices = [kind for kind in _flatten(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
        try:
            if choices and isinstance(value, str):  # other text is of the type, and the library refuses it later
                TypeAdapter(choices[0]).validate_python(value)
            return _adapter(hint).validate_python(value)
        except ValidationError as error:
            found = [one._replace(keys=(self._section, name, *one.keys)) for one in mistakes(error, value)]
            raise UserError(one.sentence() for one in found) from None

    def described(self) -> Iterator[tuple[str, Any, Any, str]]:
        """Yield each field that can be set: name, type, default, and what its library says of it."""
        hints = _hints(self._config)
        for field in fields(self._config):
            if field.init and field.name not in self._owned and field.name not in self._refused:
                default = field.default_factory() if field.default_factory is not MISSING else field.default
                yield field.name, hints[field.name], default, " ".join(field.metadata.get("help", "").split())
        yield from ((name, Any, None, meaning) for name, meaning in self._ours.items())

    def _refusal(self, name: str, value: Any) -> str | None:
        known = {field.name: field.default for field in fields(self._config) if field.init}
        where = f"`{self._section}.{name}`"
        if name in self._owned or (name in self._refused and value != known.get(name, MISSING)):
            why = self._owned.get(name) or self._refused[name]
            return f"{where} cannot be set: {why}; got {quoted(value)}, remove it"
        if name in known or name in self._ours:
            return None
        from ordermerge.config.placement import where_it_belongs  # not at the top: it needs the schema

        # The whole list of some 150 would bury the problem.
        otherwise = f"; see {self._owner}'s documentation of {self._config.__name__}"
        meant = where_it_belongs(self._section, name, value)
        return f"{where}: {self._owner}'s {self._config.__name__} has no such field{meant or otherwise}"


def section_fields(config: type, owned: Collection[str]) -> dict[str, Any]:
    """Return the fields of a configuration dataclass as pydantic's `create_model` takes them.

    Args:
        config: The dataclass; all its fields have defaults.
        owned: The fields to leave out.

    Returns:
        Type and default by name.
    """
    hints, example = _hints(config), config()
    found = {}
    for field in fields(config):
        if field.name not in owned:
            default, meaning = getattr(example, field.name), field.metadata.get("help")
            found[field.name] = (hints[field.name], Field(default=default, description=meaning))
    return found


def unknown_keys(
    annotation: Any, value: Any, where: str = "", *, hint: Callable[[str, Sequence[str]], str] = did_you_mean
) -> Iterator[str]:
    """Yield a problem for each key, at any depth, that the pydantic types of a schema do not know.

    Args:
        annotation: The type that the value is to have.
        value: The value, as YAML gives it.
        where: Its place, as the problem is to name it.
        hint: Returns the end of the sentence, from the key and those that are known there.
    """
    kinds = [annotation, *_flatten(annotation)]
    if isinstance(value, Mapping):
        sections = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}
        if len(sections) == 1:
            fields = sections.pop().model_fields
            for key, item in value.items():
                place = f"{where}.{key}" if where else str(key)
                if key not in fields:
                    yield f"unknown key `{place}`{hint(str(key), list(fields))}"
                else:
                    yield from unknown_keys(fields[key].annotation, item, place, hint=hint)
        for kind in kinds:
            if typing.get_origin(kind) is dict:
                for key, item in value.items():
                    yield from unknown_keys(typing.get_args(kind)[1], item, f"{where}.{key}", hint=hint)
    elif isinstance(value, list):
        items = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is list]
        for index, item in enumerate(value):
            for kind in items:
                yield from unknown_keys(kind, item, f"{where}[{index}]", hint=hint)


def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))


@cache
def _hints(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a union, at any depth of nested unions."""
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        for part in typing.get_args(annotation):
            yield part
            yield from _flatten(part)
