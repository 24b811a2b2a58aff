"""Weights of a merge's models from their validation losses."""

import math

import pytest

from ordermerge.commands.recipes import loss_weights
from ordermerge.errors import UserError


def test_loss_weights_of_the_published_example() -> None:
    expected = [0.252225, 0.278752, 0.262519, 0.206504]
    assert loss_weights([2.0, 1.5, 1.8, 3.0], 5) == pytest.approx(expected, abs=1e-6)


def test_loss_weights_at_the_ends_of_the_temperature() -> None:
    assert loss_weights([2.0, 1.5, 800.0], 1e-3) == pytest.approx([0, 1, 0], abs=1e-12)
    assert loss_weights([2.0, 1.5, 3.0], 1e9) == pytest.approx([1 / 3] * 3, abs=1e-8)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_loss_weights_refuse_a_temperature_that_is_none(temperature: float) -> None:
    with pytest.raises(UserError, match=r"`weights\.validation_loss` is a temperature, a number above 0; got"):
        loss_weights([1.0, 2.0], temperature)


def test_loss_weights_refuse_a_diverged_model() -> None:
    with pytest.raises(UserError, match="needs a finite validation loss of every model; got nan"):
        loss_weights([1.0, math.nan], 1)
