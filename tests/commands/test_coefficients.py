"""Weights of a merge's models: along the training, and from their validation losses."""

import math

import pytest

from ordermerge.commands.coefficients import ALONG_TRAINING, exponential_moving_average, loss_weights
from ordermerge.errors import UserError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", [0.25, 0.25, 0.25, 0.25]),
        ("linear", [0.25, 0.25, 0.25, 0.25]),
        ("minus-sqrt", [0.5, 0.207107, 0.158919, 0.133975]),
        ("wma", [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_weights_along_the_training_of_the_published_examples(name: str, expected: list[float]) -> None:
    assert ALONG_TRAINING[name](4) == pytest.approx(expected, abs=1e-6)


def test_exponential_moving_average_is_what_the_recursion_amounts_to() -> None:
    assert exponential_moving_average(4, 0.2) == pytest.approx([0.512, 0.128, 0.16, 0.2], abs=1e-12)
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    mean = values[0]
    for value in values[1:]:
        mean = 0.7 * mean + 0.3 * value
    weighted = zip(exponential_moving_average(5, 0.3), values, strict=True)
    assert math.fsum(weight * value for weight, value in weighted) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_weights_along_the_training_are_shares(count: int) -> None:
    for of in (*ALONG_TRAINING.values(), lambda n: exponential_moving_average(n, 0.1)):
        assert math.fsum(of(count)) == pytest.approx(1, abs=1e-12)
        assert min(of(count)) > 0


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
