"""PCB-Merging: the example, and a plain implementation of the formula with sorted values.

Tolerance: weights are computed in float32 by both, in other orders of operations, so results agree to 1e-5.
"""

import math

import pytest
import torch
from mergekit.merge_methods import get
from mergekit.merge_methods.base import TensorGroup

from ordermerge.merge_methods import Limits, pcb, pcb_limits, task_vectors

BASE = [1, -1, 2, 0.5, 0, 3, -2, 1]
CHANGES = [
    [0.8, -0.1, 0.05, 0.4, -0.6, 0.02, 0.3, -0.2],
    [0.7, 0.2, -0.5, -0.3, 0.9, 0.01, -0.04, 0.6],
    [-0.9, 0.03, 0.1, 0.35, -0.25, 0.5, 0.15, -0.45],
]


def family(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, list[torch.Tensor]]:
    base = torch.tensor(BASE, dtype=dtype).view(2, 4)
    return base, [base + torch.tensor(change, dtype=dtype).view(2, 4) for change in CHANGES]


def siblings(seed: int, n: int, count: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator)
    common = torch.randn(n, generator=generator)
    return base, [base + (common + torch.randn(n, generator=generator)) * 0.1 for _ in range(count)]


def clamped(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    d, ranked = values.shape[1], values.sort(dim=1).values
    return values.clamp(ranked[:, [int(d * low)]], ranked[:, [int(d * (1 - high) - 1)]])


def norm(values: torch.Tensor) -> torch.Tensor:
    low, high = values.min(dim=1, keepdim=True).values, values.max(dim=1, keepdim=True).values
    return (values - low) / (high - low)


def by_sorting(models: list[torch.Tensor], base: torch.Tensor, ratio: float, scale: float) -> torch.Tensor:
    changes = torch.stack([model - base for model in models])
    sizes = clamped(changes.abs(), 1e-4, 1e-4)
    balance = torch.exp(len(models) * norm(sizes) ** 2) * torch.tanh(changes * changes.sum(0))
    weights = norm(clamped(balance, 1 - ratio, 0))
    return base + scale * (changes.sign() * sizes * weights).sum(0) / weights.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_example(dtype: torch.dtype) -> None:
    base, models = family(dtype)
    expected = [1.65, -1, 1.5, 0.869787, 0.7, 3.5, -1.7, 0.55]
    merged = pcb(models, base, ratio=0.5)
    assert merged.dtype == dtype
    assert merged.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [20, 500, 3000])
@pytest.mark.parametrize(("ratio", "scale"), [(0.1, 1.0), (0.5, 0.3), (1.0, 2.0)])
def test_formula_by_sorting_gives_the_same(n: int, ratio: float, scale: float) -> None:
    base, models = siblings(1, n)
    merged = pcb(models, base, ratio=ratio, scale=scale)
    assert torch.allclose(merged, by_sorting(models, base, ratio, scale), rtol=0, atol=1e-5)


def test_a_model_in_several_tensors_is_merged_as_one_flat_tensor() -> None:
    base, models = siblings(2, 900)
    parts = [slice(0, 300), slice(300, 310), slice(310, 900)]
    read = lambda: [TensorGroup.from_tensors([base[p], *(m[p] for m in models)], base_index=0) for p in parts]  # noqa: E731
    limits = list(pcb_limits(read, 0.2).values())
    merged = torch.cat([pcb([m[p] for m in models], base[p], limits=limits) for p in parts])
    assert torch.equal(merged, pcb(models, base, ratio=0.2))
    assert not torch.equal(merged, torch.cat([pcb([m[p] for m in models], base[p], ratio=0.2) for p in parts]))


def test_limits_are_values_at_sorted_places() -> None:
    base, models = family()
    limits = pcb_limits(lambda: [TensorGroup.from_tensors([base, *models], base_index=0)], 0.5)
    for change, limit in zip(CHANGES, limits.values(), strict=True):
        ranked = sorted(map(abs, change))
        assert limit.floor == pytest.approx(ranked[0])
        assert limit.ceiling == pytest.approx(ranked[6])  # int(8 (1 - 1e-4) - 1)


def test_a_share_of_the_values_has_a_weight() -> None:
    base, models = siblings(3, 1000, count=1)
    merged = pcb(models, base, ratio=0.1)
    assert int((merged != base).sum()) == 99  # those above the value at place 900 of 0 ... 999


def test_equal_sub_models_give_their_values_where_they_have_a_weight() -> None:
    base, models = siblings(4, 1000, count=1)
    one, many = (pcb(models * count, base, ratio=0.3) for count in (1, 4))
    assert torch.allclose(one, models[0]) is False
    moved = one != base
    largest = models[0].sub(base).abs() <= models[0].sub(base).abs().sort().values[998]  # not clamped
    assert torch.allclose(one[moved & largest], models[0][moved & largest], atol=1e-6)
    assert torch.allclose(one, many, atol=1e-6)


def test_nothing_changed_leaves_the_base_model() -> None:
    base = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(pcb([base, base], base), base)
    assert pcb([torch.ones(0)], torch.ones(0)).shape == (0,)
    assert pcb([torch.tensor(2.0)], torch.tensor(1.0)).item() == 2


def test_pieces_threads_and_layout_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = siblings(5, 6006)
    merged = [pcb(models, base)]
    before = torch.get_num_threads()
    for piece, threads in ((1000, 1), (1 << 17, 2)):
        monkeypatch.setattr(task_vectors, "PIECE", piece)
        torch.set_num_threads(threads)
        merged.append(pcb(models, base))
    torch.set_num_threads(before)
    assert torch.equal(merged[0], merged[1])
    assert torch.equal(merged[0], merged[2])
    turned = [tensor.view(6, 1001).T.contiguous().T for tensor in (base, *models)]
    assert torch.equal(pcb(turned[1:], turned[0]).flatten(), merged[0])


def test_values_that_are_no_numbers_are_refused_by_name() -> None:
    base, models = family()
    models[1][0, 0] = math.nan
    with pytest.raises(
        ValueError, match="the difference of sub-model 2 to its base model is infinite or NaN in places"
    ):
        pcb(models, base)


def test_kernel_of_the_whole_model_without_limits_says_what_to_run() -> None:
    base, models = family()
    group = TensorGroup.from_tensors([base, *models], base_index=0, name="q_proj")
    with pytest.raises(ValueError, match=r"`pcb` with `scope: model` needs `floor`, .* merge with `ordermerge merge`"):
        get("pcb")([group], parameters={"scope": "model"})
    limits = pcb_limits(lambda: [group], 0.5)
    given = {name: [getattr(limit, name) for limit in limits.values()] for name in Limits._fields}
    whole = get("pcb")([group], parameters={"scope": "model", "lambda": 0.5, **given})[0]
    assert torch.equal(whole, get("pcb")([group], parameters={"ratio": 0.5, "lambda": 0.5})[0])


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("ratio", 0, "a number above 0 and at most 1; got 0"),
        ("scope", "layer", "one of tensor, model; got 'layer'; lists"),
        ("lambda", math.inf, "a finite number; got inf"),
        ("ceiling", "high", "a finite number; got 'high'"),
    ],
)
def test_parameters_name_their_rules(name: str, value: object, rule: str) -> None:
    parameter = next(p for p in get("pcb").spec.parameters if p.name == name)
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}"):
        parameter.validate(value)
