"""Values as a command line gives them: `key=value,key=value` or JSON, by lm-eval's own parser, and switches."""

from typing import Annotated, Any

from lm_eval._cli.utils import key_val_to_dict, try_parse_json
from pydantic import BeforeValidator

from ordermerge.errors import quoted


def read_pairs(value: object) -> object:
    """Read `key=value,key=value` or a JSON object as lm-eval's command does.

    Args:
        value: Text, or anything else, which is returned as it is.

    Raises:
        ValueError: If text is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return try_parse_json(value) if value.lstrip().startswith("{") else key_val_to_dict(value)
    except ValueError:
        raise ValueError(f"must be key=value,key=value or a JSON object; got {quoted(value)}") from None


def read_switch(value: object) -> object:
    """Take the words of a command line for what they say; other text is the name of a chat template.

    Args:
        value: Text, or anything else, which is returned as it is.
    """
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


Pairs = Annotated[dict[str, Any], BeforeValidator(read_pairs)]
