"""Laws of parameter selection that hold for any input: shapes, dtypes, layouts, special values, weights, names.

The examples are derandomised: every run tries the same ones. Values come from small pools, so that sub-models often
agree with the base model and with each other; `changed` and `expected` say in plain floating-point comparisons and
fractions what the code does on integer lanes. Pieces are mostly a few elements long, so most examples have several.
Both implementations are tried.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordermerge import compiled
from ordermerge.counter import random_words, stream_key
from ordermerge.merge_methods import Granularity, parameter_selection
from ordermerge.merge_methods import selection as selection_module

Tensor = torch.Tensor
INT16, INT32, INT64 = torch.int16, torch.int32, torch.int64
LANES = {torch.float16: INT16, torch.bfloat16: INT16, torch.float32: INT32, torch.float64: INT64}
REAL_CHUNK = compiled.SPAN
FULL = math.inf

pytestmark = pytest.mark.usefixtures("implementation")


def laws(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


@dataclass(frozen=True)
class Case:
    """One merge: the arguments of `parameter_selection`, and the size of the pieces that it works in."""

    models: list[Tensor]
    weights: list[float]
    base: Tensor
    resample: float
    seed: int
    name: str
    chunk: int

    def merge(self, granularity: Granularity = Granularity.ELEMENT, **changes: Any) -> Tensor:
        case = replace(self, **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(selection_module, "_CHUNK", case.chunk)
            patch.setattr(compiled, "SPAN", case.chunk)
            return parameter_selection(
                case.models,
                case.weights,
                base=case.base,
                resample=case.resample,
                seed=case.seed,
                name=case.name,
                granularity=granularity,
            )

    @property
    def positive(self) -> list[Tensor]:
        return [model for model, weight in zip(self.models, self.weights, strict=True) if weight > 0]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(LANES[tensor.dtype])


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(bits(first), bits(second))


def changed(tensor: Tensor, base: Tensor) -> Tensor:
    return ~((tensor == base) | (bits(tensor) == bits(base)))


def anywhere(masks: list[Tensor]) -> Tensor:
    return torch.stack(masks).any(0)


def special_values(dtype: torch.dtype) -> list[int]:
    """Return bits: zeros, infinities, NaNs of three payloads and both signs, subnormals, and plain numbers."""
    finfo = torch.finfo(dtype)
    numbers = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, finfo.tiny, finfo.max]
    zero, minus, one, _, inf, minus_inf, nan, tiny, largest = bits(torch.tensor(numbers, dtype=dtype)).tolist()
    subnormals = [1, minus + 1, tiny - 1]
    return [zero, minus, one, one + 1, inf, minus_inf, nan, nan + 1, inf + 1, minus_inf + 1, largest, *subnormals]


weight_lists = st.one_of(
    st.integers(1, 20).map(lambda count: [1.0] * count),
    st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 0.3]), min_size=1, max_size=20),
    st.lists(st.floats(0, 1e150) | st.sampled_from([0.0, 1e-150, 1e150]), min_size=1, max_size=8).map(
        lambda weights: [weight if weight > 1e-150 else 0.0 if weight == 0 else 1e-150 for weight in weights]
    ),
).filter(any)
plain_weight_lists = st.one_of(
    st.integers(1, 20).map(lambda count: [1.0] * count),
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 0.1, 1 / 3, 1e-3, 1e3]), min_size=1, max_size=8).filter(any),
    st.lists(st.integers(1, 20_000).map(float), min_size=1, max_size=8),
)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.tuples(st.integers(0, 200))
row_shapes = st.tuples(st.integers(0, 60), st.integers(0, 4))
names = st.text(st.characters(), max_size=6) | st.sampled_from(["", " w", "w ", "model.norm.weight"])
resamples = st.sampled_from([0, 1, 2, 7, FULL])
dtypes = st.sampled_from(list(LANES))


@st.composite
def cases(
    draw: st.DrawFn,
    weights: st.SearchStrategy[list[float]] = weight_lists,
    shape: st.SearchStrategy[tuple[int, ...]] = shapes,
    resample: st.SearchStrategy[float] = resamples,
) -> Case:
    dtype, size, chosen = draw(dtypes), draw(shape), draw(weights)
    lanes = LANES[dtype]
    info = torch.iinfo(lanes)
    value = st.sampled_from(special_values(dtype)) | st.integers(info.min, info.max)
    pool = torch.tensor(draw(st.lists(value, min_size=1, max_size=6)), dtype=lanes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))

    def fill() -> Tensor:
        return pool[torch.randint(len(pool), size, generator=generator)]

    base = fill()
    models = [torch.where(torch.rand(size, generator=generator) < share, fill(), base) for _ in chosen]
    return Case(
        [model.view(dtype) for model in models],
        chosen,
        base.view(dtype),
        draw(resample),
        draw(st.integers()),
        draw(names),
        draw(st.sampled_from([4, 8, 64, REAL_CHUNK])),
    )


@laws(200)
@given(cases())
def test_each_value_is_a_positive_weight_models_value_bit_for_bit(case: Case) -> None:
    merged = case.merge()
    assert merged.shape == case.base.shape
    assert merged.dtype == case.base.dtype
    assert merged.is_contiguous()
    assert anywhere([bits(merged) == bits(model) for model in case.positive]).all()


@laws(60)
@given(cases(resample=st.just(0)), st.sampled_from([Granularity.ROW, Granularity.TENSOR]))
def test_rows_and_tensors_are_one_models_bit_for_bit(case: Case, granularity: Granularity) -> None:
    merged = case.merge(granularity)
    assert merged.shape == case.base.shape
    if merged.numel():
        rows = 1 if granularity is Granularity.TENSOR else max(1, merged.numel() // (merged.shape or (1,))[-1])
        matches = [(bits(merged) == bits(model)).reshape(rows, -1).all(1) for model in case.positive]
        assert anywhere(matches).all()


@laws(60)
@given(cases(), st.sampled_from(Granularity))
def test_inputs_are_not_modified(case: Case, granularity: Granularity) -> None:
    before = [tensor.clone() for tensor in (*case.models, case.base)]
    merged = case.merge(granularity, resample=0 if granularity else case.resample)
    merged.zero_()  # nor is the result a view of one
    assert all(same_bits(*pair) for pair in zip((*case.models, case.base), before, strict=True))


@laws(60)
@given(cases(), st.sampled_from(Granularity))
def test_equal_models_give_that_model(case: Case, granularity: Granularity) -> None:
    first = case.models[0]
    resample = 0 if granularity else case.resample
    merged = case.merge(granularity, models=[first.clone() for _ in case.models], resample=resample)
    assert same_bits(merged, first)


@laws(40)
@given(cases(), st.sampled_from(Granularity))
def test_a_single_model_is_the_result(case: Case, granularity: Granularity) -> None:
    resample = 0 if granularity else case.resample
    merged = case.merge(granularity, models=case.models[:1], weights=[1e-9], resample=resample)
    assert same_bits(merged, case.models[0])


@laws(60)
@given(cases(), st.sampled_from(Granularity))
def test_models_of_weight_zero_might_as_well_not_be_listed(case: Case, granularity: Granularity) -> None:
    case = replace(case, resample=0 if granularity else case.resample)
    without = case.merge(granularity, models=case.positive, weights=[weight for weight in case.weights if weight])
    assert same_bits(case.merge(granularity), without)


@laws(40)
@given(cases(), st.integers(-100, 100))
def test_only_proportions_of_weights_count(case: Case, exponent: int) -> None:
    scaled = [math.ldexp(weight, exponent) for weight in case.weights]
    assert same_bits(case.merge(), case.merge(weights=scaled))


@laws(80)
@given(cases())
def test_where_no_model_changed_the_result_equals_base(case: Case) -> None:
    """Also where the sub-models differ from the base in the sign of a zero, which does not count."""
    models = [
        torch.where(case.base == 0, model.abs() if index % 2 else -model.abs(), case.base)
        for index, model in enumerate([torch.zeros_like(case.base)] * len(case.models))
    ]
    assert not changed(case.merge(models=models), case.base).any()


@laws(200)
@given(cases(resample=st.just(FULL)))
def test_full_changes_exactly_what_a_positive_weight_model_changed(case: Case) -> None:
    moved = anywhere([changed(model, case.base) for model in case.positive])
    assert torch.equal(changed(case.merge(), case.base), moved)


def test_full_reaches_a_change_of_vanishing_weight() -> None:
    merged = parameter_selection([torch.ones(4), torch.zeros(4)], [1e-20, 1e308], base=torch.zeros(4), resample=FULL)
    assert torch.equal(merged, torch.ones(4))


@laws(100)
@given(cases(), st.integers(0, 6))
def test_one_more_round_leaves_what_was_changed(case: Case, rounds: int) -> None:
    fewer, more = case.merge(resample=rounds), case.merge(resample=rounds + 1)
    done = changed(fewer, case.base)
    assert torch.equal(bits(more)[done], bits(fewer)[done])


@laws(60)
@given(cases(plain_weight_lists))
def test_each_model_is_taken_where_the_draw_falls_into_its_share(case: Case) -> None:
    """An independent, slow selection, element by element; draws on the border between two models are left out."""
    merged = bits(case.merge()).reshape(-1).tolist()
    models = [bits(model).reshape(-1).tolist() for model in case.models]
    moved = [changed(model, case.base).reshape(-1).tolist() for model in case.models]
    for i, value in enumerate(merged):
        model = expected(case, [column[i] for column in moved], i)
        if model == NONE_CHANGED:
            assert not any(flag[i] for flag, weight in zip(moved, case.weights, strict=True) if weight)
        elif model != BORDER:
            assert value == models[model][i], f"element {i} is not model {model}'s"


BORDER, NONE_CHANGED = -1, -2


def expected(case: Case, moved: list[bool], i: int) -> int:
    """Return the index of the model whose value element i takes; `moved` says which models changed it."""
    weights = [Fraction(weight) for weight in case.weights]
    if case.resample == FULL:
        weights = [weight * flag for weight, flag in zip(weights, moved, strict=True)]
        return pick(weights, draw_of(case, 0, i)) if any(weights) else NONE_CHANGED
    if not any(flag for flag, weight in zip(moved, weights, strict=True) if weight):
        return NONE_CHANGED
    model = pick(weights, draw_of(case, 0, i))
    for number in range(1, int(case.resample) + 1):
        if model == BORDER or moved[model]:
            break
        model = pick(weights, draw_of(case, number, i))
    return model


def draw_of(case: Case, number: int, i: int) -> Fraction:
    """Return the draw of element i in a round, on (0, 1): four of 16 bits a word, from the lowest up."""
    word = int(random_words(stream_key(case.seed, case.name, number), i // 4, 1)) % 2**64
    signed = (word >> 16 * (i % 4)) % 2**16
    return (Fraction((signed + 2**15) % 2**16) + Fraction(1, 2)) / 2**16


def pick(weights: list[Fraction], draw: Fraction) -> int:
    mark, total = draw * sum(weights), Fraction(0)
    for index, weight in enumerate(weights):
        total += weight
        if weight and abs(total - mark) <= Fraction(1, 10**6) * sum(weights):
            return BORDER
        if total > mark:
            return index
    raise AssertionError("the draw is below 1")


BORDER_WEIGHTS = [
    [1, 1],
    [3, 1],
    [1, 1, 1],
    [2, 0, 1, 4],
    [1] * 20,
    [0.1, 0.7],
    [21845, 1, 43690],
    [12000, 11000, 12001],
]


@pytest.mark.parametrize("dtype", LANES, ids=str)
@pytest.mark.parametrize("weights", BORDER_WEIGHTS, ids=lambda weights: f"{len(weights)}_models_{weights[0]}")
@pytest.mark.parametrize("resample", [0, 1, FULL])
def test_border_between_two_models_lies_exactly_between_two_draws(
    dtype: torch.dtype, weights: list[float], resample: float
) -> None:
    """With so many elements nearly each of the 2^16 draws occurs, and so do those at the borders."""
    n = 1 << 18
    models = [torch.full((n,), float(k), dtype=dtype) for k in range(len(weights))]
    merged = Case(models, weights, torch.full((n,), -1.0, dtype=dtype), resample, 1, "w", REAL_CHUNK).merge()
    words = random_words(stream_key(1, "w", 0), 0, n // 4).view(torch.int16)
    draws = (words.double() + 2**15 + 0.5) / 2**16
    borders = torch.tensor(weights, dtype=torch.float64).cumsum(0) / sum(weights)
    assert torch.equal(merged.long(), torch.bucketize(draws, borders, right=True))


@laws(60)
@given(cases(), st.sampled_from([4, 12, 256, REAL_CHUNK]), st.sampled_from(Granularity))
def test_pieces_and_repetition_do_not_matter(case: Case, chunk: int, granularity: Granularity) -> None:
    case = replace(case, resample=0 if granularity else case.resample)
    merged = case.merge(granularity)
    assert same_bits(merged, case.merge(granularity))
    assert same_bits(merged, case.merge(granularity, chunk=chunk))


@laws(60)
@given(cases(shape=row_shapes, resample=st.just(0)))
def test_pieces_do_not_matter_to_rows(case: Case) -> None:
    assert same_bits(case.merge(Granularity.ROW, chunk=4), case.merge(Granularity.ROW, chunk=REAL_CHUNK))


@pytest.mark.parametrize("dtype", LANES, ids=str)
@pytest.mark.parametrize("resample", [0, 3, FULL])
def test_threads_do_not_matter_beyond_one_real_piece(dtype: torch.dtype, resample: float) -> None:
    n = 2 * REAL_CHUNK + 3
    generator = torch.Generator().manual_seed(0)
    pool = torch.tensor([0.0, -0.0, 1.0, math.nan], dtype=dtype)
    base, *models = (pool[torch.randint(4, (n,), generator=generator)] for _ in range(4))
    case = Case(models, [1, 2, 0.5], base, resample, 3, "w", REAL_CHUNK)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(case.merge())
    finally:
        torch.set_num_threads(before)
    results.append(case.merge(chunk=1 << 12))
    assert all(same_bits(results[0], other) for other in results[1:])
    assert anywhere([bits(results[0]) == bits(model) for model in models]).all()


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim else tensor


def strided(tensor: Tensor) -> Tensor:
    wide = torch.stack([tensor, torch.full_like(tensor, 77)], -1)
    return wide[..., 0]


def offset(tensor: Tensor) -> Tensor:
    return torch.cat([torch.full((3,), 77, dtype=tensor.dtype), tensor.reshape(-1)])[3:].view(tensor.shape)


LAYOUTS = [transposed, strided, offset]


@laws(80)
@given(cases(), st.data(), st.sampled_from(Granularity))
def test_layout_of_the_inputs_does_not_matter(case: Case, data: st.DataObject, granularity: Granularity) -> None:
    case = replace(case, resample=0 if granularity else case.resample)
    before = case.merge(granularity)

    def lay_out(tensor: Tensor) -> Tensor:
        layout: Callable[[Tensor], Tensor] = data.draw(st.sampled_from(LAYOUTS))
        laid = layout(tensor)
        assert same_bits(laid, tensor)
        return laid

    after = case.merge(granularity, models=[lay_out(model) for model in case.models], base=lay_out(case.base))
    assert after.is_contiguous()
    assert same_bits(before, after)


@laws(40)
@given(cases(shape=st.tuples(st.integers(0, 40))), st.integers(1, 5))
def test_expanded_inputs_are_drawn_for_each_element(case: Case, rows: int) -> None:
    models = [model.expand(rows, -1) for model in case.models]
    base = case.base.expand(rows, -1)
    whole = case.merge(models=[model.contiguous() for model in models], base=base.contiguous())
    assert same_bits(case.merge(models=models, base=base), whole)


@laws(80)
@given(cases(shape=st.tuples(st.integers(0, 200))), st.integers(0, 200))
def test_a_longer_tensor_begins_with_the_shorter_ones_result(case: Case, length: int) -> None:
    whole = case.merge()
    part = case.merge(models=[model[:length] for model in case.models], base=case.base[:length])
    assert same_bits(whole[:length], part)


@laws(30)
@given(cases(shape=row_shapes, resample=st.just(0)), st.integers(0, 60))
def test_more_rows_begin_with_the_fewer_rows_result(case: Case, count: int) -> None:
    whole = case.merge(Granularity.ROW)
    assert same_bits(whole[:count], case.merge(Granularity.ROW, models=[model[:count] for model in case.models]))


N = 20_000
few_weights = st.lists(st.sampled_from([0.0, 1.0, 2.0, 0.3, 5.0]), min_size=2, max_size=8)


@laws(25)
@given(few_weights, st.data(), st.integers(), resamples)
def test_listing_models_in_another_order_keeps_their_shares(
    weights: list[float], data: st.DataObject, seed: int, resample: float
) -> None:
    """Half of the sub-models leave everything unchanged; the tolerance is six standard errors of a difference."""
    weights = [*weights, 1.0]
    models = [torch.full((N,), float(k) if k % 2 else 0.0) for k in range(len(weights))]
    order = data.draw(st.permutations(range(len(weights))))
    case = Case(models, weights, torch.zeros(N), resample, seed, "", REAL_CHUNK)
    merged = [case.merge(), case.merge(models=[models[k] for k in order], weights=[weights[k] for k in order])]
    for value in {float(model[0]) for model in models}:
        first, second = ((result == value).double().mean().item() for result in merged)
        p = (first + second) / 2
        assert abs(first - second) <= 6 * math.sqrt(2 * p * (1 - p) / N) + 2 * len(weights) * 2**-16, value
