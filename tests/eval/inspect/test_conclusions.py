"""Conclusions in plain words: which is said, and on which side of each line."""

import math

import numpy as np
import pytest

from ordermerge.eval.inspect.changes import Totals
from ordermerge.eval.inspect.conclusions import conclusions
from ordermerge.eval.inspect.summary import split_name, summarise
from ordermerge.eval.inspect.tables import percent, short_names


def overall(cosines: list[float], changed_by: list[int], *, norm: float = 0.1, not_finite: int = 0) -> dict:
    """Return the summary of K models of equal length, with these cosines for the pairs 01, 02, ..., 12, ..."""
    count = len(changed_by) - 1
    products = np.eye(count + 1)
    products[np.triu_indices(count, 1)] = cosines
    products = np.triu(products) + np.triu(products, 1).T
    products[:count, :count] *= norm**2
    share = sum(changers * number for changers, number in enumerate(changed_by)) // count
    return summarise(
        Totals(
            values=sum(changed_by),
            changed_by=np.array(changed_by),
            changed=np.array([share] * count),
            shared=sum(changed_by[2:]),
            agreeing=0,
            changes=0,
            majority=0,
            products=products,
            sizes=np.ones(count + 1),
            not_finite=not_finite,
            probed=0,
            fine=np.zeros(count + 1, np.int64),
        ),
        [f"order_{k}" for k in range(count)],
    )


@pytest.mark.parametrize(
    ("cosines", "sentence"),
    [
        ([0.02, 0.01, 0.03], "Cosine 0.02: these do not look like siblings."),
        ([-0.001, 0.0, 0.0], "Cosine 0.00: these do not look like siblings."),
        ([0.09, 0.09, 0.09], "Cosine 0.09: these do not look like siblings."),
        ([0.11, 0.2, 0.3], "Cosine 0.11 to 0.30: the sub-models look like siblings, each with traces of its own."),
        ([0.97, 0.97, 0.97], "Cosine 0.97: the sub-models look like siblings"),
        ([0.985, 0.99, 0.995], "Cosine 0.990: the sub-models are nearly the same; the order made next to no"),
        ([1, 1, 1], "Cosine 1.00: these are copies of one model; merging them changes nothing."),
        ([0.5, 0.05, 0.5], "order_0 and order_2: no siblings, as far as this tells (cosine 0.05)."),
        ([0.5, 1, 0.5], "order_0 and order_2: copies of each other (cosine 1.00)."),
    ],
)
def test_cosines_say_whether_they_are_siblings(cosines: list[float], sentence: str) -> None:
    lines = conclusions(overall(cosines, [0, 0, 0, 100]))
    assert [line for line in lines if line.startswith(sentence)], lines


@pytest.mark.parametrize(
    ("changed_by", "sentence"),
    [
        ([0, 3, 0, 97], "2.0 % of the sub-models' values are unchanged: resampling will hardly matter."),
        (
            [0, 30, 0, 70],
            "20.0 % of the sub-models' values are unchanged: resampling can matter. Selection leaves 20.0 % of the "
            "merged values at the base's, `resample: 1` 13.3 %, `resample: full` 0.0 %.",
        ),
        (
            [60, 0, 3, 37],
            "61.0 % of the sub-models' values are unchanged, and 60.0 % are so in all of the models, where no draw "
            "helps: resampling will hardly matter.",
        ),
    ],
)
def test_reach_of_resampling_decides(changed_by: list[int], sentence: str) -> None:
    assert conclusions(overall([0.5, 0.5, 0.5], changed_by))[-1] == sentence


def test_wrong_base_and_broken_models_are_named() -> None:
    lines = conclusions(overall([0.5], [0, 0, 100], norm=1.4, not_finite=3))
    assert lines[0].startswith("This does not look like the base model of order_0 (1.40), order_1 (1.40): the diff")
    assert lines[-1].startswith("3 values are infinite or NaN in some model")
    assert not conclusions(overall([0.5], [0, 0, 100], norm=0.8))[0].startswith("This does not")


def test_models_that_equal_the_base_are_named() -> None:
    lines = conclusions(overall([math.nan], [100, 0, 0], norm=0))
    assert [line.split(" in ")[0] for line in lines] == [
        "order_0 equals the base model",
        "order_1 equals the base model",
    ]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0"), (0.0004, "<0.1"), (0.0006, "0.1"), (0.9994, "99.9"), (0.9996, ">99.9"), (1, "100.0"), (None, "-")],
)
def test_what_is_nearly_nothing_or_all_does_not_look_so(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("model.layers.3", "mlp.up_proj")),
        ("model.layers.3.mlp.experts.7.w1.weight", ("model.layers.3", "mlp.experts.7.w1")),
        ("h.0.attn.c_attn.bias", ("h.0", "attn.c_attn.bias")),
        ("0.weight", ("0", "")),
        ("model.norm.weight", ("model.norm", "")),
        ("lm_head", ("lm_head", "")),
    ],
)
def test_tensors_are_told_by_layer(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_layers_of_two_stacks_keep_their_whole_names() -> None:
    names = ["vision.layers.0", "text.layers.0", "text.norm"]
    assert list(short_names(names).values()) == ["vision.layers.0", "text.layers.0", "norm"]
