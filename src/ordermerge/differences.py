"""Where two JSON-like values differ, in the user's words: what an edit has changed."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_DIGESTS = re.compile("[0-9a-f]{64}")
_PLAIN = re.compile(r"[\w./@+-]+")  # text that needs no quotation marks
_SHOWN = 60  # characters of a value


def changes(before: Any, now: Any, keys: Mapping[str, str] | None = None) -> list[str]:
    """Return one phrase for each place where two JSON-like values differ; of digests, only that they do.

    Args:
        before: A value.
        now: The other.
        keys: How the user knows the places: what each beginning of a key stands for. One without a dot at its end
            stands for all that is below it.
    """
    return list(dict.fromkeys(_phrase(*place, keys or {}) for place in _differences(before, now)))


def _differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each place where two values differ, with both."""
    if isinstance(before, dict | None) and isinstance(now, dict | None) and (before or now):
        old, new = before or {}, now or {}
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield where, before, now


def _phrase(where: str, before: Any, now: Any, keys: Mapping[str, str]) -> str:
    known = [key for key in keys if where == key or where.startswith(key if key.endswith(".") else f"{key}.")]
    if known:
        key = max(known, key=len)
        where = keys[key] + (where[len(key) :] if key.endswith(".") else "")
    old, new = _text(before), _text(now)
    if _DIGESTS.search(old) or _DIGESTS.search(new):
        return f"{where}: {'is new' if before is None else 'is gone' if now is None else 'its content has changed'}"
    alike = next((i for i, pair in enumerate(zip(old, new, strict=False)) if len(set(pair)) > 1), 0)
    return f"{where}: {_short(old, alike)}, now {_short(new, alike)}"


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _short(text: str, alike: int) -> str:
    """Return a part of a text that shows where it differs from another, which begins alike."""
    begin = max(0, alike - _SHOWN // 4) if len(text) > _SHOWN else 0
    part = text[begin : begin + _SHOWN]
    return f"{'...' if begin else ''}{part}{'...' if begin + _SHOWN < len(text) else ''}"
