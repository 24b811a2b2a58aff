"""Readers of YAML and JSON files: one sentence for what is wrong with a file, limits for what only a trap holds."""

import functools
import math
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ordermerge.errors import UserError, quoted
from ordermerge.mistakes import sentences

# Far above any recipe or experiment, and read in a second or two.
_MOST_BYTES = 500_000
_MOST_DEPTH = 50
_MOST_VALUES, _MOST_CHARACTERS = 100_000, 4_000_000  # with every alias replaced by what it stands for
_MOST_BITS = 256
_TAG = "tag:yaml.org,2002:"
_TEXT, _MERGE = f"{_TAG}str", f"{_TAG}merge"
_TAKEN = [_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")]
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


class _Refused(yaml.MarkedYAMLError):
    """Something that is YAML, but in no file of ours."""

    def __init__(self, problem: str, mark: yaml.Mark):
        super().__init__(problem=problem, problem_mark=mark)


class _Size(NamedTuple):
    values: int
    characters: int


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits: a key is text and stands once, a number is finite, a date is text.

    What a file comes to with its aliases replaced is counted while it is read: a few lines of nested aliases would
    otherwise be gigabytes in the first message that shows them.
    """

    def __init__(self, stream: str):
        super().__init__(stream)
        self._sizes: dict[int, _Size] = {}
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise _Refused(f"more than {_MOST_DEPTH} levels deep", mark)
        node = cast(yaml.Node, super().compose_node(parent, index))
        self._depth -= 1
        if node.end_mark is None:
            raise _Refused("an alias stands within what it stands for", mark)
        if id(node) not in self._sizes:
            self._sizes[id(node)] = self._measured(node)
        if self._sizes[id(node)].values > _MOST_VALUES or self._sizes[id(node)].characters > _MOST_CHARACTERS:
            raise _Refused(f"more than {_MOST_VALUES:,} values, or {_MOST_CHARACTERS:,} characters", mark)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if _NO_TEXT.search(node.value):
            raise _Refused(f"{quoted(node.value)} holds what is no character", node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (_TEXT, _MERGE):
                kind = key.tag.rpartition(":")[2]
                what = quoted(key.value) if isinstance(key, yaml.ScalarNode) else "this"
                raise _Refused(f"a key must be text, and {what} is read as {kind}; quote it", key.start_mark)
            if key.value in lines and key.tag == _TEXT:
                first = lines[key.value]
                raise _Refused(
                    f"key {quoted(key.value)} stands twice, first in line {first}; remove one", key.start_mark
                )
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in (*_TAKEN, _MERGE):
            raise _Refused(f"the tag {node.tag.replace(_TAG, '!!')} is not taken here; leave it out", node.start_mark)
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError):
            text = quoted(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            raise _Refused(f"{text} is no {node.tag.rpartition(':')[2]}", node.start_mark) from None
        large = isinstance(value, int) and value.bit_length() > _MOST_BITS
        if large or (isinstance(value, float) and not math.isfinite(value)):
            raise _Refused(f"{quoted(node.value)} is no number that a setting can have", node.start_mark)
        return value

    def _measured(self, node: yaml.Node) -> _Size:
        if isinstance(node, yaml.ScalarNode):
            return _Size(1, len(node.value))
        flat = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        parts = [self._sizes[id(part)] for part in flat]
        return _Size(1 + sum(part.values for part in parts), sum(part.characters for part in parts))


# Without timestamps: `revision: 2024-01-01` is text, and so is the 13th month.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != f"{_TAG}timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose root is a mapping.

    Args:
        path: The file.

    Raises:
        UserError: If it is missing, unreadable, not YAML, beyond any measure, or its root is something else.
    """
    content = parse_yaml(_text(path), path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a YAML mapping (`key: value` lines); got {type(content).__name__}")
    return content


def parse_yaml(text: str, where: object) -> Any:
    """Return what a text in YAML, or JSON, holds.

    Args:
        text: The text.
        where: What it is, for the message.

    Raises:
        UserError: If it is not YAML, or beyond any measure; the message names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "its end"
        if error.problem == "but found another document":
            raise UserError(
                f"{where}: a second document begins in {line}; give each a file of its own (several "
                "in one are for `mergekit-multi`)"
            ) from None
        phrase = ", ".join(part for part in (error.context, error.problem) if part)
        if isinstance(error, _Refused):
            raise UserError(f"{where}: {line}: {phrase}") from None
        raise UserError(f"{where}: not valid YAML: {phrase}, in {line}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def read_json(path: Path, kind: Any, *, remedy: str) -> Any:
    """Read a JSON file that must have a certain form.

    Args:
        path: The file.
        kind: The form, as a type that pydantic knows.
        remedy: What to do where it is missing or damaged.

    Returns:
        Its content, as that type.

    Raises:
        UserError: If it is missing, unreadable, cut short, no JSON, nested without end, or of another form.
    """
    text = b""
    try:
        text = path.read_bytes()
        return _adapter(kind).validate_json(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    except ValidationError as error:
        raise UserError(f"{path}: damaged ({_damage(error, text)}); {remedy}") from None


def _damage(error: ValidationError, text: bytes) -> str:
    """Return the first thing that is wrong with a text in JSON."""
    detail = error.errors(include_url=False)[0]
    if detail["type"] == "json_invalid":
        return f"not valid JSON: {detail['ctx']['error']}"
    return next(sentences(error, from_json(text)))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe that nobody writes to, or that never ends
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no plain file"
            raise UserError(f"{path}: is {kind}; give a YAML file")
        if status.st_size > _MOST_BYTES:
            raise UserError(f"{path}: {status.st_size:,} bytes are more than any recipe or experiment has")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (looked in {path.resolve().parent})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); give a YAML file") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # a ValueError of a path: a null character in it
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
