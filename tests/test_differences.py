import pytest

from ordermerge.differences import changes

OLD, NEW = "0" * 64, "1" * 64


@pytest.mark.parametrize(
    ("before", "now", "phrase"),
    [
        ({"sft": {"rate": 0.1}}, {"sft": {"rate": 0.2}}, "sft.rate: 0.1, now 0.2"),
        ({"a": {"b": True}}, {"a": {}}, "a.b: true, now not set"),
        ({"lora": None}, {"lora": {"r": 2}}, "lora.r: not set, now 2"),
        ({"prompt": "{q}"}, {"prompt": "{q} "}, 'prompt: "{q}", now "{q} "'),
        ({"kind": "random"}, {"kind": "rotate"}, "kind: random, now rotate"),
        ({"file": OLD}, {"file": NEW}, "file: its content has changed"),
        ({"files": {}}, {"files": {"b": NEW}}, "files.b: is new"),
        ({"files": {"b": OLD}}, {"files": {}}, "files.b: is gone"),
    ],
)
def test_what_differs_is_said_with_both_values(before: object, now: object, phrase: str) -> None:
    assert changes(before, now) == [phrase]


def test_long_values_show_where_they_differ() -> None:
    before = [*range(200)]
    (phrase,) = changes({"a": before}, {"a": [*before[:150], 7, *before[151:]]})
    old, new = phrase.removeprefix("a: ").split(", now ")
    assert "150" in old
    assert "149, 7, 151" in new
    assert len(phrase) < 150


def test_places_are_named_as_the_user_knows_them() -> None:
    keys = {"recipe.": "merges.mean.", "model": "model.path", "model.dtype": "model.dtype"}
    before = {"recipe": {"weight": 1}, "model": {"a": OLD, "b": OLD, "dtype": "float32"}}
    now = {"recipe": {"weight": 2}, "model": {"a": NEW, "b": NEW, "dtype": "float16"}}
    assert changes(before, now, keys) == [
        "merges.mean.weight: 1, now 2",
        "model.path: its content has changed",
        "model.dtype: float32, now float16",
    ]
