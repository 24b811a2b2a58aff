"""The recipes of the field's other methods, by the stock command, on models that hold each method's worked example.

A model here is a Llama of a few values: the example's tensors are some of its own, and all else is 0 in every model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file, save_file

from ordermerge.cli import main
from ordermerge.merge_methods import pcb
from ordermerge.yaml_json import read_yaml

pytestmark = pytest.mark.integration
FIELD = Path(__file__).resolve().parents[1] / "recipes" / "field"
MATRIX = "model.layers.0.mlp.gate_proj.weight"  # [2, hidden size]
VECTOR = "model.layers.0.input_layernorm.weight"
OTHER = "model.layers.0.post_attention_layernorm.weight"
Tensors = Mapping[str, Sequence[Any]]

BASE = [1, -1, 2, 0.5, 0, 3, -2, 1]
UPDATES = [
    [0.8, -0.1, 0.05, 0.4, -0.6, 0.02, 0.3, -0.2],
    [0.7, 0.2, -0.5, -0.3, 0.9, 0.01, -0.04, 0.6],
    [-0.9, 0.03, 0.1, 0.35, -0.25, 0.5, 0.15, -0.45],
]
TUNED = [[b + u for b, u in zip(BASE, update, strict=True)] for update in UPDATES]
MEAN = [1.2, -0.956667, 1.883333, 0.65, 0.016667, 3.176667, -1.863333, 0.983333]


def write_model(folder: Path, tensors: Tensors, hidden: int = 4, layers: int = 1, dtype: str = "float64") -> str:
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=2,
        hidden_size=hidden,
        head_dim=hidden,
        intermediate_size=2,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items()}
    state = {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape in shapes.items()}
    for name, values in tensors.items():
        state[name] = torch.as_tensor(values, dtype=getattr(torch, dtype)).view(shapes[name])
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Return a function that merges models by a recipe of `recipes/field/`, its settings changed."""

    def run(name: str, base: str | None, models: Sequence[str | dict[str, Any]], **settings: Any) -> Any:
        recipe = read_yaml(FIELD / f"{name}.yml")
        assert ("base_model" in recipe) == (base is not None)
        recipe |= {"base_model": base} if base else {}
        recipe["models"] = [model if isinstance(model, dict) else {"model": model} for model in models]
        recipe["parameters"] = {**(recipe.get("parameters") or {}), **settings}
        recipe["dtype"] = transformers.AutoConfig.from_pretrained(recipe["models"][0]["model"]).dtype
        recipe["dtype"] = str(recipe["dtype"]).removeprefix("torch.")
        path, out = tmp_path / f"{name}.yml", tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        path.write_text(yaml.safe_dump(recipe))
        arguments = [str(path), str(out), "--quiet", "--no-copy-tokenizer", "--random-seed", "0"]
        stock = "#   mergekit-yaml " in (FIELD / f"{name}.yml").read_text()
        command, first = (mergekit_yaml, []) if stock else (main, ["merge"])
        done = CliRunner().invoke(command, [*first, *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return load_file(out / "model.safetensors")

    return run


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """Return a base model whose matrix holds the shared example, and its three sub-models."""
    folder = tmp_path_factory.mktemp("example")
    models = [write_model(folder / str(k), {MATRIX: values}) for k, values in enumerate([BASE, *TUNED])]
    return models[0], models[1:]


def close(tensor: torch.Tensor, expected: Sequence[float] | torch.Tensor) -> bool:
    return tensor.flatten().tolist() == pytest.approx(torch.as_tensor(expected).tolist(), abs=1e-6)


def largest(values: torch.Tensor, skipped: int, kept: int) -> torch.Tensor:
    """Keep of a flat tensor so many of the largest values that follow the first ones; 0 elsewhere."""
    places = values.abs().argsort(descending=True)[skipped : skipped + kept]
    return torch.zeros_like(values).index_copy(0, places, values[places])


def test_uniform_soup(merge: Callable[..., Any], example: Any) -> None:
    assert close(merge("uniform_soup", None, example[1])[MATRIX], MEAN)


def test_breadcrumbs_by_tensor_and_what_the_reference_gives_by_row(merge: Callable[..., Any], example: Any) -> None:
    merged = merge("breadcrumbs", *example, density=0.5, gamma=0.25, weight=0.5)
    assert close(merged[MATRIX], [1, -0.95, 1.75, 0.725, -0.125, 3, -1.775, 0.975])
    by_row = torch.tensor(BASE).view(2, 4)
    for update in torch.tensor(UPDATES).view(3, 2, 4):
        by_row = by_row + 0.5 * torch.stack([largest(row, int(4 * 0.25), int(4 * 0.5)) for row in update])
    assert close(by_row, [1, -1.05, 1.8, 0.725, -0.125, 3, -1.87, 0.975])


def ties_update(updates: torch.Tensor, kept: int) -> torch.Tensor:
    trimmed = torch.stack([largest(update, 0, kept) for update in updates])
    agrees = trimmed.sign() == trimmed.sum(0).sign()
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def test_ties_and_what_the_reference_gives(merge: Callable[..., Any], example: Any) -> None:
    merged = merge("ties", *example, density=0.5)
    assert close(merged[MATRIX], [1.75, -1, 1.5, 0.875, 0.9, 3.5, -1.7, 1.6])
    updates, base = torch.tensor(UPDATES), torch.tensor(BASE)
    assert close(base + ties_update(updates, 4), merged[MATRIX].flatten().tolist())
    # The reference keeps one value more, of the whole model, which the matrix is here.
    assert (base + ties_update(updates, 4 + 1))[-1].item() == pytest.approx(0.675)


def test_pcb_by_tensor(merge: Callable[..., Any], example: Any) -> None:
    merged = merge("pcb", *example, ratio=0.5)
    assert close(merged[MATRIX], [1.65, -1, 1.5, 0.869787, 0.7, 3.5, -1.7, 0.55])


def test_pcb_of_the_whole_model_is_that_of_one_flat_tensor(merge: Callable[..., Any], tmp_path: Path) -> None:
    parts = {MATRIX: slice(8), VECTOR: slice(8, 12), OTHER: slice(12, 16)}
    flat = [torch.tensor([*values, *values], dtype=torch.float64) for values in (BASE, *TUNED)]
    rest = 116 - 16  # what is 0 in all models
    models = [write_model(tmp_path / str(k), {n: v[part] for n, part in parts.items()}) for k, v in enumerate(flat)]
    base, *tuned = (torch.cat([values, torch.zeros(rest)]) for values in flat)
    expected = pcb(tuned, base, ratio=0.05)
    merged = merge("pcb_whole_model", models[0], models[1:], ratio=0.05)
    assert sum(tensor.numel() for tensor in merged.values()) == len(expected)
    for name, part in parts.items():
        assert torch.equal(merged[name].flatten(), expected[part]), name


def test_lines_scales_by_layer(merge: Callable[..., Any], tmp_path: Path) -> None:
    names = [MATRIX.replace(".0.", f".{layer}.") for layer in range(4)]
    rest = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    sizes = {"model.norm.weight": 4}
    ones = {name: [1.0] * sizes.get(name, 8) for name in (*names, *rest)}
    base, tuned = write_model(tmp_path / "base", {}, layers=4), write_model(tmp_path / "tuned", ones, layers=4)
    merged = merge("lines", base, [tuned], weight=1, **{"lambda": [0.2, 0.2 + 0.8]})
    for name, scale in zip(names, (0.2, 0.466667, 0.733333, 1), strict=True):
        assert close(merged[name], [scale] * 8), name
    for name in rest:
        assert close(merged[name], [0.2] * sizes.get(name, 8)), name


def test_alpha_of_lines_from_two_merges(merge: Callable[..., Any], example: Any) -> None:
    """(L1 of the sum of the updates / L1 of the merged update) / N is L1 of their mean / L1 of the merged update."""
    base = torch.tensor(BASE, dtype=torch.float64).view(2, 4)
    ties = merge("ties", *example, density=0.5)[MATRIX] - base
    mean = merge("uniform_soup", None, example[1])[MATRIX] - base
    assert float(ties.abs().sum()) == pytest.approx(3.925)
    assert float(3 * mean.abs().sum()) == pytest.approx(2.57)
    assert float(mean.abs().sum() / ties.abs().sum()) == pytest.approx(0.218259, abs=1e-6)


def test_fine_tuning_transfer(merge: Callable[..., Any], tmp_path: Path) -> None:
    values = {"base": [1, 2, 3, 4], "tuned": [1.5, 2, 2, 4.25], "target": [1.1, 2.1, 3.1, 3.9]}
    models = {name: write_model(tmp_path / name, {MATRIX: value}, hidden=2) for name, value in values.items()}
    shipped = read_yaml(FIELD / "fine_tuning_transfer.yml")
    assert [entry["parameters"]["weight"] for entry in shipped["models"]] == [1, -1]
    entries = [{"model": models[name], "parameters": {"weight": w}} for name, w in (("tuned", 1), ("base", -1))]
    merged = merge("fine_tuning_transfer", models["target"], entries)
    assert close(merged[MATRIX], [1.6, 2.1, 2.1, 4.15])


def test_slerp(merge: Callable[..., Any], tmp_path: Path) -> None:
    models = [write_model(tmp_path / str(k), {VECTOR: v}, hidden=3) for k, v in enumerate([(1, 0, 0), (1, 1, 0)])]
    assert close(merge("slerp", models[0], models)[VECTOR], [1.082392, 0.541196, 0])


def test_slerp_of_siblings_is_linear(merge: Callable[..., Any], tmp_path: Path) -> None:
    noise = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    models = [write_model(tmp_path / str(k), {MATRIX: torch.tensor(BASE) + noise[k]}) for k in range(2)]
    merged, mean = merge("slerp", models[0], models), merge("uniform_soup", None, models)
    assert torch.allclose(merged[MATRIX], mean[MATRIX], rtol=0, atol=1e-12)


def test_model_stock(merge: Callable[..., Any], tmp_path: Path) -> None:
    base, updates = (
        torch.tensor([1.0, 2, 3, 4]),
        torch.tensor([[1, 0, 0.5, 0], [0.8, 0.2, 0.4, 0.1], [0.9, -0.1, 0.6, -0.1]]),
    )
    models = [write_model(tmp_path / str(k), {VECTOR: base + u}) for k, u in enumerate([torch.zeros(4), *updates])]
    merged = merge("model_stock", models[0], models[1:])[VECTOR]
    assert close(merged, [1.887539, 2.032872, 3.493077, 4])
    assert float((merged - base)[0] / updates.mean(0)[0]) == pytest.approx(0.986154, abs=1e-6)


def test_model_stock_extrapolates_where_updates_point_apart(merge: Callable[..., Any], example: Any) -> None:
    merged = merge("model_stock", *example)[MATRIX].flatten()
    base, mean = torch.tensor(BASE, dtype=torch.float64), torch.tensor(UPDATES, dtype=torch.float64).mean(0)
    t = float((merged - base) @ mean / (mean @ mean))
    assert t == pytest.approx(-4.22, abs=0.005)
    assert torch.allclose(merged, base + t * mean)


def test_grafts_of_the_whole_model(merge: Callable[..., Any], tmp_path: Path) -> None:
    a, b = [0.5, 0.4, 0.3, 0.2], [0.05, 0.04, 0.9, 0.01]
    base, tuned = write_model(tmp_path / "base", {}), write_model(tmp_path / "tuned", {VECTOR: a, OTHER: b})
    values = sum(tensor.numel() for tensor in load_file(tmp_path / "base" / "model.safetensors").values())
    settings: dict[str, Any] = {"density": 4.5 / values, "lambda": 1}
    kept = merge("graft", base, [tuned], **settings)
    assert close(kept[VECTOR], [0.5, 0.4, 0.3, 0])
    assert close(kept[OTHER], [0, 0, 0.9, 0])
    strictly = merge("graft", base, [tuned], **settings, strict=True)
    assert close(strictly[VECTOR], [0.5, 0.4, 0, 0])
    assert close(strictly[OTHER], [0, 0, 0.9, 0])


def test_grafts_by_tensor(merge: Callable[..., Any], example: Any) -> None:
    merged = merge("graft_per_tensor", *example, density=0.5, weight=1)[MATRIX]
    updates = torch.tensor(UPDATES, dtype=torch.float64)
    assert close(merged, torch.tensor(BASE) + sum(largest(update, 0, 4) for update in updates))


def test_dare_restores_the_l1_norm_and_keeps_half(merge: Callable[..., Any], trained: tuple[str, str]) -> None:
    merged = merge("dare_linear", trained[0], [trained[1]], weight=1)
    base, tuned = (load_file(Path(folder) / "model.safetensors") for folder in trained)
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (tensors[name].double() - base[name].double() for tensors in (tuned, merged))
    # to the rounding of bfloat16, which has 8 bits
    assert float(after.abs().sum()) == pytest.approx(float(before.abs().sum()), rel=2**-8)
    kept = int((after[before != 0] != 0).sum())
    changed = int((before != 0).sum())
    assert abs(kept / changed - 0.5) <= 4 * (0.25 / changed) ** 0.5


def test_della_keeps_larger_changes_more_often(merge: Callable[..., Any], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"]
    updates = {name: torch.randn(N, N, generator=generator) for name in names}
    models = [write_model(tmp_path / str(k), tensors, N, dtype="float32") for k, tensors in enumerate(({}, updates))]
    merged = merge("della", models[0], models[1:])
    sizes = torch.cat([updates[name].abs() for name in names])
    kept = torch.cat([merged[name] != 0 for name in names])
    upper = sizes > sizes.median(dim=1, keepdim=True).values
    for half, expected in ((upper, 0.575), (~upper, 0.425)):  # from .5 - .15 to .5 + .15, in equal steps
        assert abs(float(kept[half].double().mean()) - expected) <= 4 * (0.25 / int(half.sum())) ** 0.5


def test_every_recipe_is_on_the_page() -> None:
    page = (FIELD.parents[1] / "docs" / "methods_of_the_field.md").read_text(encoding="utf-8")
    assert {path.name for path in FIELD.glob("*.yml")} == set(re.findall(r"recipes/field/(\w+\.yml)\)", page))


N = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return a bfloat16 base model and a sub-model with matrices of 64 columns, half of whose values have changed."""
    folder, generator = tmp_path_factory.mktemp("trained"), torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(4) for p in "qkvo"]
    base = {name: (torch.randn(N, N, generator=generator) * 0.02).bfloat16() for name in names}
    tuned = {}
    for name, values in base.items():
        changed = torch.rand(N, N, generator=generator) < 0.5
        tuned[name] = torch.where(changed, values + torch.randn(N, N, generator=generator) * 0.002, values).bfloat16()
    kwargs: dict[str, Any] = {"hidden": N, "layers": 4, "dtype": "bfloat16"}
    return write_model(folder / "base", base, **kwargs), write_model(folder / "tuned", tuned, **kwargs)


@pytest.mark.parametrize("name", ["half_reset", "half_reset_nearly"])
def test_half_reset(name: str, merge: Callable[..., Any], trained: tuple[str, str]) -> None:
    merged = merge(name, trained[0], [trained[1]])
    stored = (load_file(Path(folder) / "model.safetensors") for folder in trained)
    got, base, tuned = (torch.cat([t[key].flatten() for key in sorted(merged)]) for t in (merged, *stored))
    changed = base != tuned
    share = float((got[changed] == base[changed]).double().mean())
    assert abs(share - 0.5) <= 4 * (0.25 / int(changed.sum())) ** 0.5
    neither = float(((got != base) & (got != tuned)).double().mean())
    assert neither == 0 if name == "half_reset" else 0.0001 < neither < 0.01
