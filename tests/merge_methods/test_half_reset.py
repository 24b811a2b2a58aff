"""Half-Reset: whose each value is, and how often.

Tolerances: a share over n independent draws may be off by 5 standard errors, sqrt(p (1 - p) / n), and 2^-16, to which
probabilities are exact; seeds are fixed.
"""

import math

import pytest
import torch
from mergekit.merge_methods import get

from ordermerge.merge_methods import half_reset, parameter_selection

N = 200_000


def close(share: float, p: float) -> bool:
    return abs(share - p) <= 5 * math.sqrt(p * (1 - p) / N) + 2**-16


def constant(value: float) -> torch.Tensor:
    return torch.full((N,), float(value))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_every_value_is_the_base_models_or_a_sub_models_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *models = torch.randn(4, 999, generator=generator).to(dtype)
    merged = half_reset(models, base)
    assert merged.dtype == dtype
    sources = [
        (merged.view(torch.uint8) == source.view(torch.uint8)).view(999, -1).all(1) for source in (base, *models)
    ]
    assert torch.stack(sources).any(0).all()
    assert all(source.any() for source in sources)


@pytest.mark.parametrize("base_share", [0, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 5], [0, 1, 0], [1e-300, 1e-300, 2e-300]])
def test_shares_are_as_asked_for(base_share: float, weights: list[float]) -> None:
    merged = half_reset([constant(k + 1) for k in range(3)], constant(0), weights, base_share=base_share)
    assert close((merged == 0).float().mean().item(), base_share)
    for k, weight in enumerate(weights):
        expected = (1 - base_share) * weight / sum(weights)
        assert close((merged == k + 1).float().mean().item(), expected), f"model {k}"
        assert expected > 0 or not (merged == k + 1).any()


def test_share_of_the_base_over_changed_values_is_half_by_default() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(N, generator=generator)
    tuned = torch.where(torch.rand(N, generator=generator) < 0.8, base + 1, base)
    changed = tuned != base
    share = (half_reset([tuned], base)[changed] == base[changed]).float().mean().item()
    assert abs(share - 0.5) <= 4 * math.sqrt(0.25 / int(changed.sum()))


def test_nothing_reset_is_parameter_selection() -> None:
    models = [constant(1), constant(2)]
    for weights in (None, [1, 3]):
        merged = half_reset(models, constant(0), weights, base_share=0, seed=3, name="x")
        assert torch.equal(merged, parameter_selection(models, weights, seed=3, name="x"))


def test_what_a_share_resets_a_larger_one_resets_too() -> None:
    resets = [half_reset([constant(1), constant(2)], constant(0), base_share=share) == 0 for share in (0.2, 0.5, 0.8)]
    assert not (resets[0] & ~resets[1]).any()
    assert not (resets[1] & ~resets[2]).any()


def test_seeds_and_names_draw_anew_and_elements_depend_on_their_index_alone() -> None:
    first = half_reset([constant(1)], constant(0))
    for other in (half_reset([constant(1)], constant(0), seed=1), half_reset([constant(1)], constant(0), name="b")):
        assert abs((first == other).float().mean().item() - 0.5) <= 5 * math.sqrt(0.25 / N)
    assert torch.equal(half_reset([constant(1)[:999]], constant(0)[:999]), first[:999])


def test_threads_do_not_matter_and_inputs_stay_as_they_are() -> None:
    base, model = constant(0), constant(1)
    before = torch.get_num_threads()
    merged = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        merged.append(half_reset([model], base))
    torch.set_num_threads(before)
    assert torch.equal(*merged)
    assert (base == 0).all()
    assert (model == 1).all()


@pytest.mark.parametrize("base_share", [-0.1, 1.5, math.nan])
def test_a_share_out_of_range_is_named_with_the_tensor(base_share: float) -> None:
    with pytest.raises(ValueError, match=r"`base_share` must be a number from 0 to 1; got .* for tensor 'q_proj'"):
        half_reset([constant(1)], constant(0), base_share=base_share, name="q_proj")


@pytest.mark.parametrize("weights", [[0, 0], [-1, -1], [math.inf, 1], [math.nan, 1]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="`weight` must be >= 0 and finite for every sub-model, and not 0 for all"):
        half_reset([constant(1), constant(2)], constant(0), weights)


@pytest.mark.parametrize("value", [-0.1, 1.1, "half", None])
def test_the_parameter_names_its_rule(value: object) -> None:
    parameter = next(p for p in get("half_reset").spec.parameters if p.name == "base_share")
    with pytest.raises(ValueError, match="`base_share` must be a number from 0 to 1; got"):
        parameter.validate(value)
