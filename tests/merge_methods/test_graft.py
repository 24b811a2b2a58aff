"""Grafting: which changes are kept, exactly, and what becomes of them."""

import math

import pytest
import torch
from mergekit.merge_methods import get
from mergekit.merge_methods.base import TensorGroup

from ordermerge.merge_methods import graft, graft_thresholds, task_vectors

# Two tensors of one model, and the four largest changes of both.
A, B = torch.tensor([0.5, 0.4, 0.3, 0.2]), torch.tensor([0.05, 0.04, 0.9, 0.01])


def group(base: torch.Tensor, *models: torch.Tensor) -> TensorGroup:
    return TensorGroup.from_tensors([base, *models], base_index=0)


def random_model(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_changes_of_the_whole_model_are_kept(dtype: torch.dtype) -> None:
    model, zero = [A.to(dtype), B.to(dtype)], torch.zeros(4, dtype=dtype)
    threshold = graft_thresholds(lambda: [group(zero, part) for part in model], {1: 4 / 8})[1]
    assert threshold == torch.tensor(0.3).item()
    kept = [graft([part], zero, [threshold]) for part in model]
    assert torch.equal(kept[0], torch.tensor([0.5, 0.4, 0.3, 0]).to(model[0]) * (model[0] != 0.2))
    assert kept[1].tolist() == [0, 0, model[1][2].item(), 0]
    strictly = [graft([part], zero, [threshold], strict=True) for part in model]
    assert strictly[0].tolist() == [*model[0][:2].tolist(), 0, 0]
    assert strictly[1].tolist() == kept[1].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("density", [1e-9, 0.1, 0.5, 1.0])
def test_threshold_is_the_kth_largest_change(dtype: torch.dtype, density: float) -> None:
    shapes = [(50, 70), (3,), (), (1001,), (0, 5)]
    base, first, second = (random_model(seed, dtype, *shapes) for seed in range(3))
    read = lambda: [group(*tensors) for tensors in zip(base, first, second, strict=True)]  # noqa: E731
    found = graft_thresholds(read, {1: density, 2: 0.3})
    for index, (model, share) in enumerate(((first, density), (second, 0.3)), 1):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        changes = [(m.to(wide) - b.to(wide)).abs().float().flatten() for m, b in zip(model, base, strict=True)]
        ranked = torch.cat(changes).sort(descending=True).values
        assert found[index] == ranked[max(1, int(share * len(ranked))) - 1].item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_sub_model_gives_its_own_values_or_the_base_models(dtype: torch.dtype) -> None:
    """A difference of 16-bit numbers of like size is exact in float32, so that adding it gives the number again."""
    base, noise = (tensor[0] for tensor in (random_model(seed, torch.float32, (5000,)) for seed in range(2)))
    base, model = base.to(dtype), (base + noise.clamp(-1, 1) * base.abs() / 2).to(dtype)
    threshold = graft_thresholds(lambda: [group(base, model)], {1: 0.25})[1]
    merged = graft([model], base, [threshold])
    kept = (model.float() - base.float()).abs() >= threshold
    assert torch.equal(merged, torch.where(kept, model, base))
    assert int(kept.sum()) >= 1250


def test_kept_changes_of_all_sub_models_are_added_up_and_scaled() -> None:
    base = torch.tensor([1.0, 1, 1, 1])
    models = [base + torch.tensor([1.0, 0.5, 0, -2]), base + torch.tensor([1.0, 0.25, 4, 2])]
    assert graft(models, base, [0.5, 1]).tolist() == [3, 1.5, 5, 1]
    assert graft(models, base, [0.5, 1], scale=0.5).tolist() == [2, 1.25, 3, 1]


def test_sizes_do_not_matter_to_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    base, model = (random_model(seed, torch.float32, (77, 13))[0] for seed in range(2))
    merged, found = [], []
    for piece in (10, 1 << 17):
        monkeypatch.setattr(task_vectors, "PIECE", piece)
        found.append(graft_thresholds(lambda: [group(base, model)], {1: 0.2})[1])
        merged.append(graft([model.T], base.T, [found[-1]]))
    assert found[0] == found[1]
    assert torch.equal(*merged)
    assert merged[0].shape == (13, 77)


def test_a_nan_is_larger_than_any_threshold_and_is_kept() -> None:
    base, model = torch.zeros(4), torch.tensor([math.nan, 3, 2, 1])
    found = graft_thresholds(lambda: [group(base, model)], {1: 0.5})
    assert found == {1: 3.0}
    assert graft([model], base, [found[1]]).nan_to_num(nan=7).tolist() == [7, 3, 0, 0]
    with pytest.raises(ValueError, match="sub-model 1 to its base model is infinite or NaN in places: one of the two"):
        graft_thresholds(lambda: [group(base, model)], {1: 0.25})


def test_inputs_are_not_modified() -> None:
    base, model = torch.ones(5), torch.arange(5.0)
    graft([model], base, [1.0])
    assert base.tolist() == [1] * 5
    assert model.tolist() == [0, 1, 2, 3, 4]


def test_kernel_without_threshold_says_what_to_run() -> None:
    named = TensorGroup.from_tensors([A, B], base_index=0, name="q_proj")
    with pytest.raises(
        ValueError, match="`graft` needs a `threshold` for every sub-model, and tensor 'q_proj' has none"
    ):
        get("graft")([named])
    done = get("graft")([named], parameters={"threshold": 0.1, "lambda": 2.0, "strict": True})[0]
    assert torch.allclose(done, torch.tensor([-0.4, -0.32, 1.5, -0.18]))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("density", 0, "a number above 0 and at most 1; got 0"),
        ("density", 1.5, "a number above 0 and at most 1; got 1.5"),
        ("threshold", math.nan, "a finite number; got nan"),
        ("lambda", "much", "a finite number; got 'much'"),
    ],
)
def test_parameters_name_their_rules(name: str, value: object, rule: str) -> None:
    parameter = next(p for p in get("graft").spec.parameters if p.name == name)
    with pytest.raises(ValueError, match=f"`{name}` must be {rule}"):
        parameter.validate(value)
