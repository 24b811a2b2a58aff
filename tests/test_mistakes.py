"""Sentences about wrong values: every error of pydantic's that has a form has one of ours."""

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ordermerge.mistakes import sentences


class _Colour(Enum):
    RED = "red"


_Short = Annotated[str, Field(max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (int, "four", "`k` must be a whole number; got 'four'"),
        (int, 2.5, "`k` must be a whole number; got 2.5"),
        (float, "fast", "`k` must be a number; got 'fast'"),
        (bool, "maybe", "`k` must be true or false; got 'maybe'"),
        (str, 2024, "`k` must be text; got 2024; write it in quotes: `k: '2024'`"),
        (str, [1], "`k` must be text; got [1]"),
        (list[str], "gsm8k", "`k` must be a list; got 'gsm8k'; write `k: [gsm8k]`"),
        (list[str], "a, b", "`k` must be a list; got 'a, b'; write `k: ['a, b']`"),
        (list[str], ["a", None], "`k[1]` must be text; got None"),
        (dict[str, int], "a", "`k` must be a mapping of keys; got 'a'"),
        (_Part, 3, "`k` must be a mapping of keys; got 3"),
        (_Part, {}, "key `k.size` is missing"),
        (_Part, {"size": 1, "sise": 2}, "unknown key `k.sise`; remove it, or mend its name"),
        (Annotated[int, Field(gt=0)], 0, "`k` must be a number above 0; got 0"),
        (Annotated[int, Field(le=1000)], 2000, "`k` must be a number of at most 1,000; got 2000"),
        (Annotated[list[int], Field(min_length=2)], [1], "`k` must be a list of at least 2; got [1]"),
        (Literal["random", "file"], "randm", "`k` must be 'random' or 'file'; got 'randm' (did you mean 'random'?)"),
        (_Colour, "blue", "`k` must be 'red'; got 'blue'"),
        (int | float, "x", "`k` must be a number; got 'x'"),
        (str | Annotated[float, Field(lt=1)], 20, "`k` must be text, or a number below 1.0; got 20"),
        (str | list[str], [1], "`k[0]` must be text; got 1; write it in quotes: `'1'`"),
        (dict[_Short, int], {"long": 1}, "`k.long` must be text of at most 3 characters; got 'long'"),
    ],
)  # fmt: skip
def test_each_kind_of_mistake_has_a_sentence(kind: Any, value: Any, sentence: str) -> None:
    content = {"k": value}
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, kind]).validate_python(content)
    assert list(sentences(caught.value, content)) == [sentence]
