"""`ordermerge inspect` on checkpoints made by hand, whose numbers are worked out on paper, and on merged ones."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file, save_file

from ordermerge.cli import main
from ordermerge.eval.inspect import stream
from ordermerge.eval.inspect.changes import Totals, measure
from ordermerge.eval.inspect.family import open_family
from ordermerge.eval.inspect.inspection import inspect_models
from ordermerge.eval.inspect.stream import inspect_family

Family = Callable[..., list[Path]]
BASE = [[1, 2, 3], [4, 0, -8]]
# Task vectors: [0 .5 .5; 0 0 1], [0 1 0; 1 0 -1], [0 -1 1; 0 0 -1]; the second writes 0 as -0.
SUBS = [[[1, 2.5, 3.5], [4, 0, -7]], [[1, 3, 3], [5, -0.0, -9]], [[1, 1, 4], [4, 0, -9]]]
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
NAME = "model.layers.0.mlp.up_proj.weight"


def write(folder: Path, tensors: dict[str, Any], dtype: torch.dtype = torch.bfloat16, **config: Any) -> Path:
    folder.mkdir(parents=True)
    made = {name: torch.as_tensor(values).to(dtype).contiguous() for name, values in tensors.items()}
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_shards(folder: Path, source: Path, parts: int) -> Path:
    folder.mkdir()
    tensors = sorted(load_file(source / "model.safetensors").items())
    places = {name: f"model-{index % parts}.safetensors" for index, (name, _) in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.fixture(params=DTYPES, ids=str)
def by_hand(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    values = {"base": BASE, **{f"order_{k}": sub for k, sub in enumerate(SUBS)}}
    return [write(tmp_path / name, {NAME: value}, request.param) for name, value in values.items()]


def run(base: Path, *arguments: Any, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["inspect", "--base", str(base), *map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def inspected(tmp_path: Path, base: Path, *arguments: Any) -> dict[str, Any]:
    run(base, *arguments, "--out", tmp_path / "found")
    return json.loads((tmp_path / "found" / "inspect.json").read_text())


def inspect_in_memory(base: Path, subs: list[Path]) -> Totals:
    sides = [load_file(folder / "model.safetensors") for folder in [*subs, base]]
    return measure(torch.stack([torch.cat([side[name].view(-1) for name in sorted(side)]) for side in sides]))


def test_numbers_worked_out_by_hand(by_hand: list[Path], tmp_path: Path) -> None:
    found = inspected(tmp_path, *by_hand)
    for summary in (found["overall"], found["layers"]["model.layers.0"], found["tensors"][NAME]):
        assert summary["values"] == 6
        assert summary["changed_by"] == [2, 1, 1, 2]
        assert summary["unchanged"] == pytest.approx(1 / 2)
        assert summary["unchanged_by_model"] == pytest.approx({f"order_{k}": 1 / 2 for k in range(3)})
        law = {"0": 1 / 2, "1": (2 + 4 / 9 + 1 / 9) / 6, "3": (2 + 16 / 81 + 1 / 81) / 6, "full": 1 / 3}
        assert summary["still_base"] == pytest.approx(law)
        agreement = {"values": 3, "same_direction": 1 / 3, "same_direction_by_chance": 1 / 3, "with_majority": 3 / 4}
        assert summary["agreement"] == pytest.approx(agreement)
        norms = {"order_0": math.sqrt(1.5), "order_1": math.sqrt(3), "order_2": math.sqrt(3)}
        assert summary["norm"] == pytest.approx(norms)
        assert summary["base_norm"] == pytest.approx(math.sqrt(94))
        assert summary["relative_norm"] == pytest.approx({name: n / math.sqrt(94) for name, n in norms.items()})
        low = -1 / math.sqrt(4.5)
        matrix = [[1, low / 2, low], [low / 2, 1, 0], [low, 0, 1]]
        assert torch.tensor(summary["cosine"]["matrix"]).allclose(torch.tensor(matrix))
        assert summary["cosine"]["mean"] == pytest.approx(low / 2)
        assert (summary["cosine"]["lowest"], summary["cosine"]["highest"]) == (pytest.approx(low), 0)
        degrees = [[math.degrees(math.acos(value)) for value in row] for row in matrix]
        assert torch.tensor(summary["angle"]["matrix"]).allclose(torch.tensor(degrees), atol=1e-4)
        assert summary["angle"]["mean"] == pytest.approx((degrees[0][1] + degrees[0][2] + degrees[1][2]) / 3)
        assert summary["l1"] == pytest.approx({"order_0": 2, "order_1": 3, "order_2": 3})
        assert summary["l1_of_sum"] == pytest.approx(0.5 + 1.5 + 1 + 1)  # [0 .5 1.5; 1 0 -1]
        assert summary["l1_of_mean"] == pytest.approx(4 / 3)
        assert summary["not_finite"] == 0
    assert list(found["models"].values()) == [str(folder) for folder in by_hand[1:]]
    assert found["warnings"] == []


def test_updates_that_point_apart_are_told_of_before_model_stock(tmp_path: Path) -> None:
    one, other = torch.tensor([1.0, 1.0]).repeat(50), torch.tensor([1.0, -3.0]).repeat(50)  # cosine -2 / sqrt(20)
    layers = {name: torch.zeros(2, 50) for name in (NAME, NAME.replace("0", "1"))}
    base = write(tmp_path / "base", layers, torch.float32)
    apart, other_layer = list(layers)
    subs = [
        write(tmp_path / str(k), {apart: update.view(2, 50), other_layer: one.view(2, 50).clone()}, torch.float32)
        for k, update in enumerate((one, other))
    ]
    (warning,) = inspected(tmp_path, base, *subs)["warnings"]
    assert f"in 1 of 2 tensors the sub-models' updates point apart (mean cosine down to -0.45, in {apart})" in warning
    assert "`model_stock` would extrapolate, to the other side of the base model (-1.62 times their mean)" in warning
    assert f"warning: {warning}" in " ".join(run(base, *subs).split())


def test_l1_norms_give_the_alpha_of_lines(tmp_path: Path) -> None:
    base, *updates = torch.tensor(
        [
            [1, -1, 2, 0.5, 0, 3, -2, 1],
            [0.8, -0.1, 0.05, 0.4, -0.6, 0.02, 0.3, -0.2],
            [0.7, 0.2, -0.5, -0.3, 0.9, 0.01, -0.04, 0.6],
            [-0.9, 0.03, 0.1, 0.35, -0.25, 0.5, 0.15, -0.45],
        ],
        dtype=torch.float64,
    )
    by_ties = torch.tensor([1.75, -1, 1.5, 0.875, 0.9, 3.5, -1.7, 1.6], dtype=torch.float64)
    made = {"base": base, **{str(k): base + update for k, update in enumerate(updates)}, "ties": by_ties}
    folders = {name: write(tmp_path / name, {NAME: values.view(2, 4)}, torch.float64) for name, values in made.items()}
    found = inspected(tmp_path, folders["base"], *(folders[str(k)] for k in range(3)))["overall"]
    merged = inspected(tmp_path, folders["base"], folders["ties"])["overall"]["l1"]["ties"]
    assert found["l1_of_sum"] == pytest.approx(2.57)
    assert merged == pytest.approx(3.925)
    assert found["l1_of_sum"] / merged / 3 == pytest.approx(0.218259, abs=1e-6)
    table = run(folders["base"], *(folders[str(k)] for k in range(3)))
    assert re.search(r"their sum +2\.57 ", table)
    assert re.search(r"1 0 +2\.47 +0\.0 +\d+\.\d +\d+\.\d", table)


def test_layers_are_sums_of_their_tensors(tmp_path: Path) -> None:
    names = ["lm_head.weight", "model.embed_tokens.weight", NAME, "model.norm.weight"]
    names += [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (10, 2, 0)]
    base = write(tmp_path / "base", {name: BASE for name in names})
    subs = [
        write(tmp_path / str(k), {name: sub if "layers.0" in name else BASE for name in names})
        for k, sub in enumerate(SUBS)
    ]
    found = inspected(tmp_path, base, *subs)
    shares = {name: summary["unchanged"] for name, summary in found["layers"].items()}
    assert list(shares) == [
        "model.embed_tokens",
        *(f"model.layers.{layer}" for layer in (0, 2, 10)),
        "lm_head",
        "model.norm",
    ]
    assert {name for name, share in shares.items() if share == 0.5} == {"model.layers.0"}
    assert found["layers"]["model.layers.0"]["changed_by"] == [4, 2, 2, 4]
    assert found["overall"]["changed_by"] == [5 * 6 + 4, 2, 2, 4]
    assert found["layers"]["lm_head"]["cosine"]["mean"] is None  # nothing changed: no direction


@pytest.mark.integration
@pytest.mark.parametrize("resample", [0, 1, 3, "full"])
def test_law_predicts_what_a_real_merge_leaves_at_the_base(
    resample: int | str, make_family: Family, tmp_path: Path
) -> None:
    base, *subs = make_family(count=3)
    recipe = {"merge_method": "parameter_selection", "base_model": str(base), "dtype": "bfloat16"}
    recipe |= {"models": [{"model": str(sub)} for sub in subs], "parameters": {"resample": resample}}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(mergekit_yaml, [str(tmp_path / "recipe.yml"), str(tmp_path / "merged"), "--quiet"])
    assert done.exit_code == 0, done.exception
    expected = inspected(tmp_path, base, *subs)["overall"]["still_base"][str(resample)]
    merged = inspect_models(str(base), [str(tmp_path / "merged")])["overall"]
    values = merged["values"]
    # Draws are independent: the share lies within 5 standard deviations of a binomial one, at most, of its mean.
    tolerance = 5 * math.sqrt(expected * (1 - expected) / values) if resample != "full" else 1e-12
    assert merged["unchanged"] == pytest.approx(expected, abs=tolerance)
    assert values > 20_000
    assert 0.1 < expected < 0.6


@pytest.mark.parametrize("piece_values", [4, 28, 1000, stream.PIECE_VALUES])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.usefixtures("implementation")
def test_pieces_do_not_show(
    piece_values: int, dtype: torch.dtype, make_family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *subs = make_family("llama", count=3, dtype=dtype)
    sizes = []

    def watched(rows: torch.Tensor) -> Totals:
        sizes.append(rows.numel())
        return measure(rows)

    monkeypatch.setattr(stream, "measure", watched)
    family = open_family(str(base), [str(sub) for sub in subs])
    if piece_values < 1000:  # the smallest tensors will do
        family = type(family)(family.base, family.names, [g for g in family.groups if g.values <= 32])
        names = [group.name for group in family.groups]
        sides = [load_file(folder / "model.safetensors") for folder in [*subs, base]]
        whole = measure(torch.stack([torch.cat([side[name].view(-1) for name in names]) for side in sides]))
    else:
        whole = inspect_in_memory(base, subs)
    parts = [totals for _, totals in inspect_family(family, piece_values=piece_values)]
    total = sum(parts[1:], start=parts[0])
    assert max(sizes) <= piece_values
    for field in ("values", "shared", "agreeing", "changes", "majority", "not_finite"):
        assert getattr(total, field) == getattr(whole, field), field
    assert total.changed_by.tolist() == whole.changed_by.tolist()
    assert total.changed.tolist() == whole.changed.tolist()
    assert torch.tensor(total.products).allclose(torch.tensor(whole.products), rtol=1e-5, atol=1e-3)
    assert total.sizes.tolist() == pytest.approx(whole.sizes.tolist(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.usefixtures("implementation")
def test_products_and_sizes_of_any_number_of_models(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count + 1, 3001, generator=generator, dtype=torch.float64).to(dtype)
    for broken in (False, True):
        if broken:
            rows[0, 7], rows[count, 2000] = torch.inf, torch.nan
        tasks = rows.double().clone()
        tasks[:-1] -= tasks[-1]
        tasks = tasks[:, tasks.isfinite().all(0)]
        found = measure(rows)
        assert found.sizes[:-1].tolist() == pytest.approx(tasks[:-1].abs().sum(1).tolist(), rel=1e-6)
        assert found.sizes[-1] == pytest.approx(float(tasks[:-1].sum(0).abs().sum()), rel=1e-6)
        scale = (tasks @ tasks.T).diagonal().sqrt()
        error = torch.tensor(found.products) - tasks @ tasks.T
        assert (error.abs() / scale.outer(scale)).max() < 1e-5


@pytest.mark.usefixtures("implementation")
def test_products_are_those_of_float64_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200_000, generator=generator).mul_(0.02).bfloat16()
    common = torch.randn(200_000, generator=generator)
    subs = [(base + 1e-3 * (common + torch.randn(200_000, generator=generator))).bfloat16() for _ in range(20)]
    rows = torch.stack([*subs, base])
    exact = rows.double()
    exact[:-1] -= exact[-1]
    expected = exact @ exact.T
    found = torch.tensor(measure(rows).products)
    scale = expected.diagonal().sqrt()
    assert ((found - expected).abs() / scale.outer(scale)).max() < 1e-5  # what docs/inspect.md states


@pytest.mark.usefixtures("implementation")
def test_counts_are_those_of_a_plain_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(-2, 3, (6, 997), generator=generator).to(torch.float16)
    totals = measure(rows)
    moved = (rows[:-1] - rows[-1]).sign()
    count = (moved != 0).sum(0)
    shared = count >= 2
    assert totals.changed_by.tolist() == [int((count == c).sum()) for c in range(6)]
    assert totals.changed.tolist() == (moved != 0).sum(1).tolist()
    assert totals.shared == int(shared.sum())
    assert totals.agreeing == int((moved.sum(0).abs() == count)[shared].sum())
    most = torch.maximum((moved > 0).sum(0), (moved < 0).sum(0)).double()
    most[(moved > 0).sum(0) == (moved < 0).sum(0)] = count[(moved > 0).sum(0) == (moved < 0).sum(0)].double() / 2
    assert totals.changes == int(count[shared].sum())
    assert totals.majority == float(most[shared].sum())


@pytest.mark.usefixtures("implementation")
def test_counts_of_more_values_than_16_bits_hold() -> None:
    rows = torch.ones(3, 300_001).bfloat16()
    rows[-1] = 0
    totals = measure(rows)
    assert (totals.changed_by.tolist(), totals.changed.tolist()) == ([0, 0, 300_001], [300_001] * 2)
    assert (totals.agreeing, totals.majority) == (300_001, 600_002)


@pytest.mark.parametrize("parts", [1, 3])
def test_sharded_and_single_files_say_the_same(parts: int, make_family: Family, tmp_path: Path) -> None:
    base, *subs = make_family(count=2)
    sharded = [write_shards(tmp_path / folder.name, folder, parts) for folder in [base, *subs]]
    one, other = (inspect_models(str(b), [str(s) for s in rest]) for b, *rest in ([base, *subs], sharded))
    for part in ("overall", "layers", "tensors", "conclusions", "dtypes"):
        assert one[part] == other[part]
    assert other["warnings"] == []


def test_results_do_not_depend_on_the_number_of_threads(make_family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *subs = map(str, make_family(count=3))
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        parts = inspect_family(open_family(base, subs), piece_values=128)
        found.append([(group.name, totals.changed.tolist(), totals.products.tobytes()) for group, totals in parts])
    assert found[0] == found[1]
    assert len(found[0]) == len(open_family(base, subs).groups)


@pytest.mark.usefixtures("implementation")
def test_one_model_has_no_cosines(by_hand: list[Path], tmp_path: Path) -> None:
    found = inspected(tmp_path, *by_hand[:2])
    assert found["overall"]["cosine"] is None
    assert found["overall"]["changed_by"] == [3, 3]
    assert found["overall"]["agreement"]["same_direction"] is None
    assert "One model: nothing to compare it with but the base" in run(*by_hand[:2])


@pytest.mark.usefixtures("implementation")
def test_nan_equals_its_own_bits_only_and_has_no_direction(tmp_path: Path) -> None:
    nan, inf = math.nan, math.inf
    base = write(tmp_path / "base", {NAME: [nan, 1, 1, 1, 1, 0]})
    subs = [
        write(tmp_path / "a", {NAME: [nan, nan, 2, inf, 2, -0.0]}),
        write(tmp_path / "b", {NAME: [nan, 2, 2, 1, 0, 0]}),
    ]
    found = inspected(tmp_path, base, *subs)["overall"]
    assert found["changed_by"] == [2, 1, 3]
    assert found["not_finite"] == 3
    assert found["agreement"]["values"] == 2  # of the three, one has a NaN
    assert found["agreement"]["same_direction"] == 1 / 2
    assert found["cosine"]["mean"] == pytest.approx(0)
    assert found["norm"] == pytest.approx({"a": math.sqrt(2), "b": math.sqrt(2)})
    assert "3 values are infinite or NaN in some model" in run(base, *subs)


@pytest.mark.usefixtures("implementation")
def test_values_whose_squares_overflow_float32_are_counted(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: [0.0, 1]}, torch.float32)
    sub = write(tmp_path / "sub", {NAME: [1e30, 1]}, torch.float32)
    found = inspected(tmp_path, base, sub)["overall"]
    assert found["norm"]["sub"] == pytest.approx(1e30)
    assert found["not_finite"] == 0


@pytest.mark.parametrize("alone", [False, True])
def test_tied_embeddings_count_once_under_either_name(alone: bool, make_family: Family, tmp_path: Path) -> None:
    base, *subs = make_family("llama_tied", count=2)
    expected = inspect_models(str(base), [str(sub) for sub in subs])
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight") if alone else tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": embedding}, folder / "model.safetensors", {"format": "pt"})
    found = inspect_models(str(folder), [str(sub) for sub in subs])
    assert (found["overall"], found["warnings"]) == (expected["overall"], [])


def test_dtypes_that_differ_are_compared_as_the_models_are_stored(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: [1.0, 1.001, 2]}, torch.float32)
    sub = write(tmp_path / "sub", {NAME: [1.0, 1.001, 2.5]}, torch.bfloat16)  # 1.001 is 1 in bfloat16
    found = inspected(tmp_path, base, sub)
    assert found["overall"]["changed_by"] == [2, 1]
    assert found["dtypes"] == ["bfloat16"]
    assert found["warnings"] == [
        f"`{NAME}`: stored as BF16 in the models and F32 in the base model; compared in bfloat16, as a recipe with "
        f"`dtype: bfloat16` does"
    ]
    found = inspected(tmp_path, base, sub, "--dtype", "float32")
    assert found["overall"]["changed_by"] == [1, 2]
    assert any("compared in float32, as `--dtype` says" in text for text in found["warnings"])


def test_models_trained_in_float32_from_a_bfloat16_base_are_pointed_out(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: [1.0, 2, 3, 4]}, torch.float32)
    sub = write(tmp_path / "sub", {NAME: [1.001, 2.001, 3.001, 8]}, torch.float32)
    found = inspected(tmp_path, base, sub)
    assert found["overall"]["changed_by"] == [0, 4]
    assert found["warnings"] == [
        f"the values of {base} are bfloat16 numbers and those of sub are not: compared in float32 nothing looks "
        f"unchanged; `--dtype bfloat16` compares as a recipe with `dtype: bfloat16` does"
    ]
    found = inspected(tmp_path, base, sub, "--dtype", "bfloat16")
    assert found["overall"]["changed_by"] == [3, 1]
    assert found["warnings"][0].endswith("compared in bfloat16, as `--dtype` says")


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: BASE, "head": BASE, "only.base": BASE})
    sub = write(tmp_path / "sub", {NAME: SUBS[0], "head": SUBS[0][:1], "more": BASE, "empty": []})
    found = inspected(tmp_path, base, sub)
    assert list(found["tensors"]) == [NAME]
    assert found["warnings"] == [
        f"left out: `head`: [1, 3] in {sub}, [2, 3] in {base}",
        f"left out: `only.base`: not in {sub}",
        f"left out: `empty`, `more`: not in {base}",
    ]


def test_whole_numbers_are_left_out(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: BASE})
    sub = write(tmp_path / "sub", {NAME: SUBS[0]})
    for folder in (base, sub):
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, "ids": torch.arange(3)}, folder / "model.safetensors")
    found = inspected(tmp_path, base, sub)
    assert found["warnings"] == ["left out: `ids`: I64, not floating-point values of 16 to 64 bits"]


def test_files_beside_the_table(by_hand: list[Path], tmp_path: Path) -> None:
    output = run(*by_hand, "--out", tmp_path / "first")
    run(*by_hand, "--out", tmp_path / "second")
    assert output.endswith(f"wrote {tmp_path / 'first'}\n")
    names = ["heat_map.csv", "heat_map.png", "heat_map.svg", "inspect.json", "layers.csv", "tensors.csv"]
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    cosine = -1 / math.sqrt(18)
    drawn = [line.split(",") for line in (tmp_path / "first" / "heat_map.csv").read_text().splitlines()]
    assert [line[:2] for line in drawn] == [
        ["layer", "tensor"],
        ["model.layers.0", "all"],
        ["model.layers.0", "mlp.up_proj"],
    ]
    assert [[float(cell) for cell in line[2:]] for line in drawn[1:]] == [pytest.approx([0.5, cosine])] * 2
    header, line = ((tmp_path / "first" / "tensors.csv").read_text().splitlines())[:2]
    cells = dict(zip(header.split(","), line.split(","), strict=True))
    assert (cells["tensor"], cells["values"], cells["changed_by_3"]) == (NAME, "6", "2")


def test_experts_share_a_column_of_the_heat_map(tmp_path: Path) -> None:
    names = [f"model.layers.0.mlp.experts.{number}.w1.weight" for number in range(3)]
    base = write(tmp_path / "base", {names[0]: BASE, names[1]: BASE, names[2]: [1.0, 1]})
    sub = write(tmp_path / "sub", {names[0]: SUBS[0], names[1]: BASE, names[2]: [2.0, 2]})
    run(base, sub, "--out", tmp_path / "found")
    lines = (tmp_path / "found" / "heat_map.csv").read_text().splitlines()
    assert lines[2:] == [f"model.layers.0,mlp.experts.*.w1,{(3 + 6) / 14},"]


def test_table_fits_80_columns(make_family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    base, *subs = make_family(count=6)
    lines = run(base, *subs).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:1] == ["layers.1"] for line in lines)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"model {folder}: no weights where mergekit looks"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-2]),
            r"model {folder}: model.safetensors has \d+ bytes where its header tells of \d+; copy or download it again",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"{}"),
            r"model {folder}: model.safetensors \(2 bytes\) is cut off or no safetensors file",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"model {folder}: stored as pytorch_model.bin; load it with transformers and save it",
        ),
        (
            lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
            r"model {folder}: is a LoRA adapter, not a whole model; merge it into its base model first",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "x.safetensors") and shutil.rmtree(folder),
            r"model {folder}: no such model folder \(looked in {parent}\)",
        ),
        (
            lambda folder: save_file({"other": torch.ones(2)}, folder / "model.safetensors"),
            r"has no tensor in common with the models: `.*up_proj.weight`: not in {folder}.*as `--base`",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    base, sub = (write(tmp_path / name, {NAME: BASE}) for name in ("base", "sub"))
    spoil(sub)
    output = run(base, sub, code=1)
    wanted = message.format(folder=sub, parent=tmp_path)
    assert re.search(wanted, output), output
    assert output.startswith("Error: ")


def test_all_unreadable_models_are_told_of_at_once(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: BASE})
    output = run(base, tmp_path / "none", f"{base}+adapter", base / "config.json", "nobody/nothing", code=1)
    assert output.startswith("Error: 4 problems:")
    assert f"an adapter is not compared as such; merge it into {base} first" in output
    assert "is a file; name the folder" in output
    assert "nobody/nothing: no such folder, nor a model in the local Hugging Face cache; download it with" in output


def test_models_listed_twice_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", {NAME: BASE})
    sub = write(tmp_path / "sub", {NAME: SUBS[0]})
    assert "listed more than once; list each model once" in run(base, sub, sub, code=1)


def test_file_cut_while_it_is_read_is_one_sentence(tmp_path: Path) -> None:
    base, sub = write(tmp_path / "base", {NAME: BASE}), write(tmp_path / "sub", {NAME: SUBS[0]})
    family = open_family(str(base), [str(sub)])
    file = sub / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="ended before its header says; copy or download it again"):
        list(inspect_family(family))
