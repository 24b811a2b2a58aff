"""Templates over a record's fields, such as "Question: {question} Answer:"; `{{` and `}}` stand for braces."""

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ordermerge.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        name: The experiment's key, for messages.
        text: As written.
        parts: Pairs of literal text and the field that follows it (None at the end).
    """

    name: str
    text: str
    parts: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> list[str]:
        """The fields it names."""
        return [field for _, field in self.parts if field is not None]

    @classmethod
    def parse(cls, name: str, text: str) -> "Template":
        """Parse a template.

        Only plain field names are taken: `str.format` would also follow `{a.b}` and `{a[0]}` into Python objects.

        Args:
            name: The experiment's key, for messages.
            text: The template.

        Raises:
            UserError: If braces do not match, or a field is not a plain name.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(
                f"`{name}`: template {text!r} has unmatched braces ({error}); "
                "write {{ and }} for braces in the text"
            ) from None
        for _, field, spec, conversion in parsed:
            if field is not None and (spec or conversion or not field.strip() or set(field) & set(".[]")):
                whole = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise UserError(
                    f"`{name}`: template {text!r} may name plain fields only, such as {{question}}; got {{{whole}}} "
                    "(write {{ and }} for braces in the text)"
                )
        return cls(name, text, tuple((literal, field) for literal, field, _, _ in parsed))

    def fill(self, record: Mapping[str, Any], where: str) -> str:
        """Return the template filled with a record's values; numbers are written as Python writes them.

        Args:
            record: Field names and values.
            where: The record's place, for messages.

        Raises:
            UserError: If the record lacks a field, or its value is neither text nor a number.
        """
        return "".join(
            literal if field is None else literal + self._value(record, field, where) for literal, field in self.parts
        )

    def _value(self, record: Mapping[str, Any], field: str, where: str) -> str:
        if field not in record:
            raise UserError(
                f"{where} has no field `{field}`, which `{self.name}: {self.text!r}` names"
                f"{did_you_mean(field, list(record))}"
            )
        value = record[field]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(
                f"{where}: field `{field}`, which `{self.name}: {self.text!r}` names, must be text or a number; "
                f"got {type(value).__name__} {str(value)[:60]}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(
                f"{where}: field `{field}`, which `{self.name}: {self.text!r}` names, is {value}: a missing value, as "
                'pandas writes it, or no number; write text or a number there ("" for nothing), or leave the record out'
            )
        return str(value)
