"""What each key of an experiment is, from the schema and its docstrings: type, default, meaning; and as JSON Schema."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from ordermerge.config.library_fields import Fields
from ordermerge.config.schema import Experiment, Section

_HEAD = """\
# Every key of an experiment file

Made from the schema by `python scripts/reference.py`; the fields of `sft` and `lora` are those of the installed TRL and
PEFT, in their words, less those that `ordermerge` sets itself. `ordermerge check --schema` prints the same as JSON
Schema, for editors: after `ordermerge check --schema > experiment.schema.json`, with the YAML extension of VS Code,
`yaml.schemas: {"experiment.schema.json": "experiment*.yml"}`. The keys of a recipe are mergekit's; the parameters of
our merge methods are in [merge_methods.md](merge_methods.md), `ingredients` and `weights` in
[training.md](training.md).
"""
_COLUMNS = ("| key | takes | default | meaning | example |", "|---|---|---|---|---|")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LIBRARIES = ("sft", "lora")
_MOST = 6  # values of an enumeration that are named
_ENTRY = re.compile(r"^(\w+): (.*(?:\n {2,}.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Key:
    """A key of an experiment.

    Attributes:
        section: The section that it is in, "" at the top.
        name: Its name there.
        type: What it takes, in words.
        required: Whether it must be given.
        default: What holds if it is not given.
        meaning: What it is for.
        example: A value.
        is_section: Whether it holds keys of its own.
    """

    section: str
    name: str
    type: str
    required: bool
    default: Any
    meaning: str
    example: Any
    is_section: bool

    @property
    def place(self) -> str:
        """The key with its section, such as `sft.learning_rate`."""
        return f"{self.section}.{self.name}" if self.section else self.name


def experiment_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the experiment file, for editors.

    The keys of `sft` and `lora` are those of the installed TRL and PEFT, less those that cannot be set.
    """
    found = Experiment.model_json_schema()
    for section in _sections(Section):
        part = found if section is Experiment else found["$defs"].get(section.__name__)
        if part is None:
            continue
        known = meanings(section)
        for name, property_ in part["properties"].items():
            if name in known:
                property_["description"] = known[name]
        part["description"] = inspect.getdoc(section).partition("\n")[0]  # type: ignore[union-attr]
    del found["properties"]["directory"]  # ours to fill in
    controls = found["properties"]["controls"]
    for name, runs in controls.get("patternProperties", {}).items():
        controls["patternProperties"][name] = {"anyOf": [runs, {"type": "boolean"}]}
    for name, library in library_sections().items():
        whole = library_schema(library)
        found["$defs"] |= whole.pop("$defs")
        whole["description"] = found["properties"][name].get("description", "")
        optional = found["properties"][name].get("default", {}) is None
        found["properties"][name] = {"anyOf": [whole, {"type": "null"}], "default": None} if optional else whole
    return {"$schema": DIALECT, **found}


def library_schema(library: Fields) -> dict[str, Any]:
    """Return the JSON Schema of a section whose keys are the fields of a library's configuration class.

    Args:
        library: The section.
    """
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for name, hint, default, meaning in library.described():
        try:
            of = TypeAdapter(hint).json_schema()
        except PydanticInvalidForJsonSchema:
            of = {}
        definitions |= of.pop("$defs", {})
        properties[name] = {**of, "description": meaning}
        if default is None or isinstance(default, (bool, int, float, str)):
            properties[name]["default"] = getattr(default, "value", default)
    return {"type": "object", "additionalProperties": False, "properties": properties, "$defs": definitions}


def keys(whole: Mapping[str, Any], section: str = "") -> Iterator[Key]:
    """Yield the keys of a schema, each section's after the key that it is under.

    Args:
        whole: From `experiment_schema`.
        section: The section to begin with.
    """
    yield from _keys(whole, whole, section)


def meanings(section: type) -> dict[str, str]:
    """Return what each attribute of a class means, from the `Attributes:` of its docstring and of its parents'.

    Args:
        section: The class.
    """
    found: dict[str, str] = {}
    for one in reversed(section.__mro__):
        text = inspect.getdoc(one) if "__doc__" in vars(one) else None
        listed = (text or "").partition("Attributes:\n")[2]
        listed = inspect.cleandoc("\n" + listed.partition("\n\n")[0])
        found |= {name: " ".join(meaning.split()) for name, meaning in _ENTRY.findall(listed)}
    return found


def library_sections() -> dict[str, Fields]:
    """Return the sections whose keys are the fields of a library's configuration class, by name."""
    from ordermerge.train.lora import FIELDS as LORA
    from ordermerge.train.sft_config import FIELDS as SFT

    return {"sft": SFT, "lora": LORA}


def _sections(of: type[Section]) -> Iterator[type[Section]]:
    for section in of.__subclasses__():
        yield section
        yield from _sections(section)


def _keys(whole: Mapping[str, Any], part: Mapping[str, Any], section: str) -> Iterator[Key]:
    for name, given in part.get("properties", {}).items():
        below = None if section in _LIBRARIES else _section(whole, given)
        meaning = given.get("description") or (below or {}).get("description", "")
        default, examples = given.get("default"), given.get("examples", ())
        examples = examples or next((one["examples"] for one in given.get("anyOf", ()) if "examples" in one), ())
        key = Key(
            section, name, "section" if below else type_in_words(whole, given), name in part.get("required", ()),
            default, meaning, examples[0] if examples else default, below is not None,
        )  # fmt: skip
        yield key
        if below:
            yield from _keys(whole, below, key.place)


def _section(whole: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of what a key holds, if that has named keys."""
    for one in (given, *given.get("anyOf", ())):
        target = whole["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        if "properties" in target:
            return target
    return None


def type_in_words(whole: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return what a key takes, in words.

    Args:
        whole: The schema, for its definitions.
        given: The key's part of it.
    """
    if "$ref" in given:
        return type_in_words(whole, whole.get("$defs", {}).get(given["$ref"].rpartition("/")[2], {}))
    if "enum" in given:
        shown = [f"`{one}`" for one in given["enum"][:_MOST]]
        return " or ".join(shown) + f" or {len(given['enum']) - _MOST} more" * (len(given["enum"]) > _MOST)
    if "anyOf" in given:
        parts = [type_in_words(whole, one) for one in given["anyOf"] if one.get("type") != "null"]
        # Sorted: typing remembers a union as it was first written, in whichever library was imported before.
        return " or ".join(sorted(set(parts)))
    if given.get("type") == "array":
        return f"list of {type_in_words(whole, given.get('items', {}))}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    word = words.get(str(given.get("type")), "mapping" if given.get("type") == "object" else "any")
    low, high = given.get("minimum"), given.get("maximum")
    above, below = given.get("exclusiveMinimum"), given.get("exclusiveMaximum")
    limits = [f"at least {low}" if low is not None else f"above {above}" if above is not None else "",
              f"at most {high}" if high is not None else f"below {below}" if below is not None else ""]  # fmt: skip
    return " ".join([word, ", ".join(filter(None, limits))]).strip()


def reference_page() -> str:
    """Return the page of all keys of an experiment, as Markdown."""
    found = list(keys(experiment_schema()))
    lines = [*_HEAD.splitlines(), "", *_COLUMNS, *(_row(key) for key in found if not (key.section or key.is_section))]
    for key in found:
        if key.is_section:
            lines += ["", f"## `{key.place}`", "", key.meaning, "", *_COLUMNS]
        elif key.section:
            lines.append(_row(key))
    return "\n".join(lines) + "\n"


def _row(key: Key) -> str:
    default = "required" if key.required else "" if key.default is None else f"`{json.dumps(key.default)}`"
    example = "" if key.example in (None, key.default) else f"`{json.dumps(key.example)}`"
    cells = (f"`{key.name}`", key.type, default, key.meaning.replace("|", "\\|"), example)
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")
