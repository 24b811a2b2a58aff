"""Options that hold several values in one text, as lm-eval's command takes them."""

import re
from typing import Any

import yaml

from ordermerge.errors import UserError


def read_pairs(name: str, text: str) -> dict[str, Any]:
    """Read `key=value,key=value`, where commas within brackets belong to a value, or a JSON object.

    Args:
        name: What the text is, for the message.
        text: The text; values are numbers, booleans, lists or text.

    Raises:
        UserError: If it is neither.
    """
    try:
        if text.lstrip().startswith("{"):
            return dict(yaml.safe_load(text))  # JSON is YAML
        pairs = [pair.partition("=") for pair in re.split(r",(?![^\[{]*[\]}])", text)]
        if bad := [key for key, equals, _ in pairs if not equals]:
            raise UserError(f"{name}: must be key=value,key=value; got {bad[0]!r} in {text!r}")
        return {key.strip(): _value(value) for key, _, value in pairs}
    except yaml.YAMLError:
        raise UserError(f"{name}: must be key=value,key=value or a JSON object; got {text!r}") from None


def _value(text: str) -> Any:
    # YAML 1.1 takes 1e-5 for text.
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text) else yaml.safe_load(text)
