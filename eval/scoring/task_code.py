"""The Python code that a local task calls: its files, and the data files that it names, found without running it."""

import ast
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST, _MOST_FILES = 200, 1000
_LEVELS = 3  # code often reads from the folder above its own
# Calls that read something, by their last name: open(), Path.read_text(), pandas.read_csv(), json.load(), ...
_READS = ("open", "load", "load_dataset", "load_from_disk", "glob", "rglob", "iglob", "iterdir", "listdir", "urlopen")


@dataclass(frozen=True)
class Code:
    """What a task's functions come down to.

    Attributes:
        files: The modules they are in, and those that these import from beside them.
        reads: Files that are there and that a text in the code names, or matches.
        untold: Modules that read something, though no such file is named in them.
    """

    files: frozenset[Path]
    reads: frozenset[Path]
    untold: frozenset[Path]


def task_code(configuration: Any) -> Code:
    """Return what the functions of a task's configuration come down to.

    Args:
        configuration: As lm-eval's index holds it: a function is the text "/FOLDER/module.function".
    """
    todo, files = set(_modules(configuration)), set()
    while todo:
        module = todo.pop()
        files.add(module)
        todo |= set(_parsed(module, *_state(module)).imports) - files
    parsed = {module: _parsed(module, *_state(module)) for module in files}
    reads = {path for found in parsed.values() for path in found.reads}
    untold = {module for module, found in parsed.items() if found.is_reading and not found.reads}
    return Code(frozenset(files), frozenset(reads), frozenset(untold))


@dataclass(frozen=True)
class _Module:
    imports: tuple[Path, ...]
    reads: tuple[Path, ...]
    is_reading: bool


def _modules(node: Any) -> Iterator[Path]:
    if isinstance(node, Mapping):
        for item in node.values():
            yield from _modules(item)
    elif isinstance(node, list):
        for item in node:
            yield from _modules(item)
    elif isinstance(node, str) and node.startswith("/") and len(node) < 4096:
        path = Path(node)
        module = path.with_name(f"{path.name.rpartition('.')[0]}.py")
        if module.name != ".py" and _is_file(module):
            yield module.resolve()


def _state(module: Path) -> tuple[int, int, Path]:
    status = module.stat()
    return status.st_mtime_ns, status.st_size, Path.cwd()


@functools.lru_cache(maxsize=1000)
def _parsed(module: Path, _modified: int, _size: int, _directory: Path) -> _Module:
    try:
        tree = ast.parse(module.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return _Module((), (), is_reading=True)
    nodes = list(ast.walk(tree))
    imported = {path for node in nodes for name in _imported(node) for path in _beside(module, name)}
    texts = {text for node in nodes if (text := _text(node))}
    reads = {path for text in texts for path in _named(module, text)}
    calls = [_last_name(node.func) for node in nodes if isinstance(node, ast.Call)]
    is_reading = any(name in _READS or name.startswith(("read_", "from_")) for name in calls)
    return _Module(tuple(imported), tuple(reads), is_reading)


def _text(node: ast.AST) -> str:
    """Return a text of the code; of one with parts to fill in the pattern, such as "*.jsonl"."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "*" for part in node.values]
        text = "".join(map(str, parts))
        return text if "." in text or "/" in text else ""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module] if node.module else [alias.name for alias in node.names]
    return []


def _beside(module: Path, name: str) -> Iterator[Path]:
    """Yield the modules of an import that are there beside a module: a file, or all of a package."""
    place = module.parent / name.partition(".")[0]
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py").resolve()
    elif place.is_dir():
        yield from (path.resolve() for path in place.rglob("*.py"))


def _named(module: Path, text: str) -> list[Path]:
    """Return the files that a text in a module names: from its folder, those above, or the working directory."""
    if not text.strip("./ ") or len(text) > _LONGEST or "\n" in text or "\0" in text:
        return []
    for folder in (*module.parents[:_LEVELS], Path.cwd()):
        if _is_file(folder / text):
            return [(folder / text).resolve()]
    if any(sign in text for sign in "*?[") and not text.startswith("/") and ".." not in text:
        return _matching(module.parent, text)
    return _matching(module.parent / text, "**/*") if (module.parent / text).is_dir() else []


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        found = sorted(path.resolve() for path in folder.glob(pattern) if path.is_file())
    except (ValueError, OSError, NotImplementedError):  # a text with a star that is no pattern
        return []
    return found if len(found) <= _MOST_FILES else []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
