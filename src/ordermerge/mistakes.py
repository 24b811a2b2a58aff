"""What pydantic finds wrong with values, in our words: place, what must stand there, what does, what to write."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ordermerge.errors import did_you_mean, quoted

LIST, MAPPING = "a list", "a mapping of keys"
_NUMBER, _WHOLE, _TRUTH = "a number", "a whole number", "true or false"
# By pydantic's name of an error, what the value must be; what is not listed is told by the end of pydantic's sentence.
_WANTED = {
    "string_type": "text",
    "string_pattern_mismatch": "a plain name (letters, digits, `.`, `_`, `-`)",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), _TRUTH),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"), MAPPING),
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "none_required": "left out",
}
_OWN = ("value_error", "assertion_error")  # a sentence of whoever wrote the check


class Mistake(NamedTuple):
    """One thing that is wrong.

    Attributes:
        keys: Keys and indices that lead to the value; of a key that is missing or unknown, to that key.
        kind: pydantic's name of the error, of the first of a union's.
        details: What pydantic says, for each alternative of a union.
        value: What stands there.
    """

    keys: tuple[int | str, ...]
    kind: str
    details: tuple[ErrorDetails, ...]
    value: Any

    @property
    def place(self) -> str:
        """The keys as messages write them: `models[0].weight`."""
        return place(self.keys)

    def must_be(self) -> str:
        """Return the sentence without its place: "must be a whole number; got 'four'"."""
        own = [str(detail["ctx"]["error"]) for detail in self.details if detail["type"] in _OWN]
        if own:
            return " ".join(own[0].split())
        wanted = dict.fromkeys(filter(None, map(_wanted, self.details)))
        if _NUMBER in wanted:
            wanted.pop(_WHOLE, None)
        return f"must be {', or '.join(wanted) or 'another value'}; got {quoted(self.value)}{self._remedy(wanted)}"

    def sentence(self) -> str:
        """Return the sentence."""
        return f"`{self.place}` {self.must_be()}" if self.keys else self.must_be()

    def is_kind(self, *wanted: str) -> bool:
        """Return whether something else should stand there.

        Args:
            wanted: `LIST` or `MAPPING`.
        """
        return any(_wanted(detail) in wanted for detail in self.details)

    def _remedy(self, wanted: Mapping[str, None]) -> str:
        """Return what to write, where the value tells what was meant."""
        scalar = isinstance(self.value, str | int | float) and not isinstance(self.value, bool)
        key = next((str(key) for key in reversed(self.keys) if isinstance(key, str)), "")
        if LIST in wanted and scalar:
            return f"; write `{shown({key: [self.value]})}`"
        if "text" in wanted and scalar and len(wanted) == 1:
            text = str(self.value)
            return f"; write it in quotes: `{shown({key: text} if self.keys[-1:] == (key,) else text)}`"
        options = self.details[0].get("ctx", {}).get("expected")
        if isinstance(options, str) and isinstance(self.value, str):
            near = did_you_mean(self.value, options.replace(" or ", ", ").replace("'", "").split(", "))
            return near if near.startswith(" (did you mean") else ""
        return ""


def mistakes(error: ValidationError, content: Any) -> list[Mistake]:
    """Return what is wrong with a value, the alternatives of a union as one.

    Args:
        error: pydantic's findings.
        content: What was validated.
    """
    found: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_keys(detail, content), []).append(detail)
    # Of a union, the alternative that was got into tells more than those that refused the whole.
    deepest = [keys for keys in found if not any(other[: len(keys)] == keys and other != keys for other in found)]
    return [Mistake(keys, found[keys][0]["type"], tuple(found[keys]), found[keys][0]["input"]) for keys in deepest]


def sentences(error: ValidationError, content: Any) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with a value.

    Args:
        error: pydantic's findings.
        content: What was validated.
    """
    for mistake in mistakes(error, content):
        if mistake.kind == "missing":
            yield f"key `{mistake.place}` is missing"
        elif mistake.kind == "extra_forbidden":
            yield f"unknown key `{mistake.place}`; remove it, or mend its name"
        else:
            yield mistake.sentence()


def place(keys: tuple[int | str, ...]) -> str:
    """Return keys and indices as messages write them.

    Args:
        keys: From the outermost on.
    """
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def shown(value: Any) -> str:
    """Return a value as it may stand in a line of YAML; of a mapping, its keys as they stand in one above.

    Args:
        value: Anything that YAML holds.
    """
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    text = text.removesuffix("...\n").strip()
    return text[1:-1] if isinstance(value, Mapping) else text


def _keys(detail: ErrorDetails, content: Any) -> tuple[int | str, ...]:
    """Return the keys that lead to an error, without the names that pydantic gives the alternatives of a union."""
    keys: list[int | str] = []
    absent = detail["loc"][-1:] if detail["type"] == "missing" else ()
    for part in detail["loc"][: len(detail["loc"]) - len(absent)]:
        if _holds(content, part):
            content = content[part]
            keys.append(part)
    return (*keys, *absent)


def _holds(content: Any, part: int | str) -> bool:
    of_list = isinstance(content, list | tuple) and isinstance(part, int) and part < len(content)
    return of_list or (isinstance(content, Mapping) and part in content)


def _wanted(detail: ErrorDetails) -> str:
    """Return what a value must be, as one alternative sees it."""
    context = detail.get("ctx", {})
    numbers = {key: f"{value:,}" if isinstance(value, int) else value for key, value in context.items()}
    if detail["type"] in _WANTED:
        return _WANTED[detail["type"]].format(**numbers)
    text = detail["msg"].partition(",")[0]
    return text.removeprefix("Input should be ") if text.startswith("Input should be ") else ""
