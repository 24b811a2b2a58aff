"""The laws of the draw, on tensors in memory (design: section "The merge methods"), for both implementations.

Tolerances: frequencies over n independent draws may be off by 5 standard errors, sqrt(p (1 - p) / n); with fixed
seeds the tests cannot flicker, and a wrong law is off by far more.
"""

import hashlib
import math
from itertools import pairwise

import pytest
import torch

from ordermerge import compiled
from ordermerge.merge_methods import Granularity, parameter_selection
from ordermerge.merge_methods import selection as selection_module
from ordermerge.merge_methods.selection import _select_changed
from ordermerge.merge_methods.shares import share_draws, whole_weights
from ordermerge.unchanged import changed

pytestmark = pytest.mark.usefixtures("implementation")
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
N = 200_000


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(BITS[tensor.element_size()])


def numbered(count: int, n: int = N, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """K constant models: the merged values say which was chosen."""
    return [torch.full((n,), float(k + 1), dtype=dtype) for k in range(count)]


def close(share: float, p: float, n: int = N) -> bool:
    return abs(share - p) <= 5 * math.sqrt(p * (1 - p) / n) + 2**-16


def family(count: int, unchanged: int, n: int = N) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base of zeros, and `count` models of which the first `unchanged` equal it everywhere."""
    models = numbered(count, n)
    for model in models[:unchanged]:
        model.zero_()
    return torch.zeros(n), models


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("resample", [0, 1, 3, math.inf])
def test_every_value_is_one_of_the_models_bit_for_bit(dtype: torch.dtype, resample: float) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(999, generator=generator).to(dtype)
    models = [base.clone() for _ in range(5)]
    for model in models:
        change = torch.rand(999, generator=generator) < 0.5
        model[change] = torch.randn(int(change.sum()), generator=generator).to(dtype)
        model[5:9] = torch.tensor([math.nan, math.inf, -math.inf, -0.0], dtype=dtype)
    before = [model.clone() for model in models]
    merged = parameter_selection(models, base=base, resample=resample)
    assert merged.dtype == dtype
    assert torch.stack([bits(merged) == bits(model) for model in models]).any(0).all()
    assert all(torch.equal(bits(model), bits(copy)) for model, copy in zip(models, before, strict=True))


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [1, 2, 5], [0.2, 0, 0.8], [1e-300, 1e-300, 3e-300], [1e308] * 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_models_are_chosen_in_proportion_to_weight(weights: list[float] | None, dtype: torch.dtype) -> None:
    merged = parameter_selection(numbered(3, dtype=dtype), weights)
    shares = [weight / max(weights or [1]) for weight in weights or [1, 1, 1]]
    for k, share in enumerate(shares):
        p = share / sum(shares)
        assert close((merged == k + 1).float().mean().item(), p), f"model {k}"
        assert p > 0 or not (merged == k + 1).any()


@pytest.mark.parametrize("count", range(1, 21))
def test_selection_probability_is_exact_to_16_bits(count: int) -> None:
    weights = (torch.rand(count, generator=torch.Generator().manual_seed(count)) ** 4).tolist()
    models, marks = share_draws(range(count), whole_weights(weights))
    assert marks[0] == -(2**15)
    shares = dict(zip(models, (high - low for low, high in pairwise([*marks, 2**15])), strict=True))
    for k, weight in enumerate(weights):
        assert abs(shares.get(k, 0) / 2**16 - weight / sum(weights)) <= 2**-16


@pytest.mark.parametrize("weights", [[1.0] * 5, [1.0, 2.0, 3.0, 0.001, 7.0], [0.3, 0.3, 0.1, 0.2, 0.1]])
@pytest.mark.parametrize("pattern", range(1, 32))
def test_full_resampling_probability_is_exact_to_16_bits(weights: list[float], pattern: int) -> None:
    draws = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    moved = [pattern >> k & 1 for k in range(5)]
    models = [torch.full_like(draws, (k + 1) * flag) for k, flag in enumerate(moved)]
    out = _select_changed(models, whole_weights(weights), torch.zeros_like(draws), draws)
    total = sum(weight for weight, flag in zip(weights, moved, strict=True) if flag)
    for k, (weight, flag) in enumerate(zip(weights, moved, strict=True)):
        share = int((out == k + 1).sum()) / 2**16
        assert abs(share - flag * weight / total) <= 2**-16 + 1e-6, f"model {k} of {moved}"


@pytest.mark.parametrize("unchanged", range(5))
@pytest.mark.parametrize("rounds", [0, 1, 3, 8])
def test_share_still_base_follows_the_law_of_n_rounds(unchanged: int, rounds: int) -> None:
    base, models = family(4, unchanged)
    merged = parameter_selection(models, base=base, resample=rounds)
    assert close((merged == 0).float().mean().item(), (unchanged / 4) ** (rounds + 1))


def test_full_is_base_only_where_no_model_changed_it() -> None:
    for unchanged in range(5):
        base, models = family(4, unchanged)
        merged = parameter_selection(models, base=base, resample=math.inf)
        assert (merged == 0).all() == (merged == 0).any() == (unchanged == 4)
        for k in range(unchanged, 4):
            assert close((merged == k + 1).float().mean().item(), 1 / (4 - unchanged))


def test_full_is_the_limit_of_many_rounds() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.zeros(N)
    models = [torch.where(torch.rand(N, generator=generator) < 0.3, k + 1.0, 0.0) for k in range(4)]
    merged = [parameter_selection(models, base=base, resample=rounds, seed=1) for rounds in (10**9, math.inf)]
    for k in range(5):
        shares = [(result == k).float().mean().item() for result in merged]
        assert abs(shares[0] - shares[1]) <= 5 * math.sqrt(2 * 0.25 / N)


def test_unchanged_models_of_weight_zero_do_not_count() -> None:
    base, models = family(3, 1)
    assert (parameter_selection(models, [1, 0, 0], base=base, resample=math.inf) == 0).all()
    assert (parameter_selection(models, [1, 1e-200, 0], base=base, resample=math.inf) == 2).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_base_is_equality_of_values_or_of_nan_bits(dtype: torch.dtype) -> None:
    quiet = torch.tensor([math.nan], dtype=dtype)
    other = (bits(quiet) ^ 1).view(dtype)
    assert other.isnan().all()
    pairs = [(0.0, -0.0, True), (-0.0, 0.0, True), (1.0, 1.0, True), (0.0, 1.0, False), (1.0, -1.0, False)]
    pairs += [(quiet, quiet, True), (quiet, other, False), (quiet, 1.0, False), (0.0, quiet, False)]
    for before, after, same in pairs:
        lanes = [bits(torch.as_tensor(x, dtype=dtype).reshape(1)) for x in (before, after)]
        assert bool(changed(lanes[1], lanes[0])) is not same, (before, after)
        base, moved = (torch.as_tensor(x, dtype=dtype).reshape(1).repeat(64) for x in (before, after))
        merged = parameter_selection([moved, torch.full_like(moved, 5)], base=base, resample=math.inf)
        assert (merged == 5).all() == same


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8])
def test_neighbouring_elements_are_independent(lag: int) -> None:
    choice = parameter_selection(numbered(2)) * 2 - 3
    assert abs((choice[lag:] * choice[:-lag]).mean().item()) <= 5 / math.sqrt(N)


@pytest.mark.parametrize(
    ("first", "second"),
    [({"name": "a"}, {"name": "b"}), ({"seed": 0}, {"seed": 1}), ({"name": "a", "seed": 1}, {"name": "a1", "seed": 0})],
)
def test_tensors_and_seeds_are_independent(first: dict, second: dict) -> None:
    choices = [parameter_selection(numbered(2), **which) * 2 - 3 for which in (first, second)]
    assert abs((choices[0] * choices[1]).mean().item()) <= 5 / math.sqrt(N)
    # ... and not one a shifted copy of the other, as streams of neighbouring counters would be
    for shift in (1, 4, 16):
        assert abs((choices[0][shift:] * choices[1][:-shift]).mean().item()) <= 5 / math.sqrt(N)


def test_rounds_are_independent_of_the_first_draw() -> None:
    base, models = family(4, 2)
    for lag in (0, 1):
        first = parameter_selection(models)
        again = parameter_selection(models, base=base, resample=1)
        moved = (first == 0)[: N - lag] & (again != 0)[lag:]
        assert close((again[lag:][moved] == 3).float().mean().item(), 0.5, int(moved.sum()))


def test_resampling_leaves_what_the_selection_changed() -> None:
    base, models = family(4, 2)
    first, again = (parameter_selection(models, base=base, resample=rounds) for rounds in (0, 3))
    assert torch.equal(again[first != 0], first[first != 0])


@pytest.mark.parametrize("resample", [0, 2, math.inf])
def test_pieces_and_threads_do_not_matter(monkeypatch: pytest.MonkeyPatch, resample: float) -> None:
    base, models = family(3, 1, 10_001)
    results = []
    for chunk, threads in ((4, 1), (1024, 2), (1 << 20, 1)):
        monkeypatch.setattr(selection_module, "_CHUNK", chunk)
        monkeypatch.setattr(compiled, "SPAN", chunk)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(parameter_selection(models, base=base, resample=resample))
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_draw_of_an_element_depends_on_its_index_alone() -> None:
    short, long = (parameter_selection(numbered(5, n)) for n in (1001, 5000))
    assert torch.equal(short, long[:1001])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (0, 4), (5, 7, 3)])
@pytest.mark.parametrize("granularity", Granularity)
def test_any_shape_is_kept(shape: tuple[int, ...], granularity: Granularity) -> None:
    models = [torch.full(shape, float(k)) for k in range(3)]
    merged = parameter_selection(models, granularity=granularity)
    assert merged.shape == shape
    assert merged.numel() == 0 or merged.max() <= 2


def test_inputs_need_not_be_contiguous() -> None:
    tensors = [torch.randn(31, 17, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    merged = parameter_selection([tensor.T for tensor in tensors])
    assert torch.equal(merged, parameter_selection([tensor.T.contiguous() for tensor in tensors]))


def test_rows_are_taken_whole() -> None:
    merged = parameter_selection(
        [torch.full((20_000, 3), float(k)) for k in range(4)], [1, 1, 2, 0], granularity=Granularity.ROW
    )
    assert torch.equal(merged, merged[:, :1].expand(-1, 3))
    for k, p in enumerate((0.25, 0.25, 0.5, 0)):
        assert close((merged[:, 0] == k).float().mean().item(), p, 20_000)


def test_tensors_are_taken_whole() -> None:
    chosen = [
        parameter_selection(numbered(2, 8), [1, 3], name=str(i), granularity=Granularity.TENSOR) for i in range(2000)
    ]
    assert all((tensor == tensor[0]).all() for tensor in chosen)
    assert close(sum(tensor[0].item() == 2 for tensor in chosen) / 2000, 0.75, 2000)


def test_golden_digest() -> None:
    """The draw must not change by accident: the same recipe and seed gave these bytes in version 0.1."""
    generator = torch.Generator().manual_seed(11)
    base = torch.randint(-4, 4, (40_000,), generator=generator).to(torch.bfloat16)
    models = [torch.randint(-4, 4, (40_000,), generator=generator).to(torch.bfloat16) for _ in range(5)]
    digest = hashlib.sha256()
    for weights in (None, [1, 2, 3, 4, 5]):
        for resample in (0, 2, math.inf):
            merged = parameter_selection(models, weights, base=base, resample=resample, seed=5, name="golden")
            digest.update(bits(merged).numpy().tobytes())
    assert digest.hexdigest() == "0fd14a544f65a50ee576c7c5aaaccaa923099c31547e1115c0cf0768e32ba0e7"


class TestErrors:
    @pytest.mark.parametrize("weights", [[-1, 1], [math.nan, 1], [math.inf, 1], [0, 0]])
    def test_bad_weights_are_named_with_the_tensor(self, weights: list[float]) -> None:
        with pytest.raises(ValueError, match=r"`weight` must be >= 0 and finite .* got \[.*\] for tensor 'q_proj'"):
            parameter_selection(numbered(2, 4), weights, name="q_proj")

    def test_resampling_without_base_names_the_remedy(self) -> None:
        with pytest.raises(ValueError, match=r"`resample` needs `base_model`, and tensor 'q_proj' has none"):
            parameter_selection(numbered(2, 4), resample=1, name="q_proj")

    def test_resampling_of_rows_names_the_remedy(self) -> None:
        with pytest.raises(ValueError, match=r"`granularity: element` only; got row for tensor 'q'.* `resample: 0`"):
            parameter_selection(numbered(2, 4), base=torch.zeros(4), resample=1, granularity=Granularity.ROW, name="q")

    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32], ids=str)
    def test_unsupported_dtype_names_the_remedy(self, dtype: torch.dtype) -> None:
        with pytest.raises(ValueError, match=rf"{dtype} is not supported; set `dtype: bfloat16`"):
            parameter_selection([torch.zeros(4, dtype=dtype)])
