"""`ordermerge merge --by-name`: the bytes of a merge by mergekit's tables where those are complete, whole where not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from ordermerge.cli import main

pytestmark = pytest.mark.integration
SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
BASELESS = ("linear", "parameter_selection", "multislerp", "karcher", "nuslerp")
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 0.5, "density": 0.5},
    "breadcrumbs": {"weight": 0.5, "density": 0.9, "gamma": 0.01},
    "breadcrumbs_ties": {"weight": 0.5, "density": 0.9, "gamma": 0.01},
    "model_stock": {},
    "sce": {},
    "nuslerp": {"weight": 1},
    "multislerp": {"weight": 1},
    "karcher": {},
    "parameter_selection": {},
    "parameter_selection_resample": {"seed": 3},
}


def variants(base: Path, root: Path, count: int = 2) -> list[Path]:
    """Write models in which half of the base model's values are changed, in every tensor."""
    folders = []
    for index in range(count):
        folder = Path(shutil.copytree(base, root / f"sub{index}"))
        generator = torch.Generator().manual_seed(index)
        tensors = load_file(base / "model.safetensors")
        for name, value in tensors.items():
            changed = torch.rand(value.shape, generator=generator) < 0.5
            moved = value + 0.02 * torch.randn(value.shape, generator=generator)
            tensors[name] = torch.where(changed, moved, value).to(value.dtype)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a base model with biases, which mergekit's table of Llama does not name, and two sub-models."""
    root = tmp_path_factory.mktemp("biased")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(root / "base")
    return [root / "base", *variants(root / "base", root)]


def write_recipe(path: Path, family: list[Path], method: str, **more: Any) -> Path:
    base, *models = map(str, family)
    recipe = {"merge_method": method, "models": [{"model": m} for m in models], "dtype": "float32", **more}
    if method not in BASELESS:
        recipe["base_model"] = base
    path.write_text(yaml.safe_dump(recipe))
    return path


def merge(recipe: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet", *options])


def merged(recipe: Path, out: Path, *options: str) -> Path:
    done = merge(recipe, out, *options)
    assert done.exit_code == 0, done.output
    return out


def both_ways(recipe: Path, root: Path, *options: str) -> list[Path]:
    return [merged(recipe, root / "table", *options), merged(recipe, root / "named", "--by-name", *options)]


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes_as_by_the_table_where_nothing_is_drawn(method: str, family: list[Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yml", family, method, parameters=METHODS[method])
    table, named = both_ways(recipe, tmp_path)
    assert (table / "model.safetensors").read_bytes() == (named / "model.safetensors").read_bytes()
    files = {file.name for file in table.iterdir()}
    assert files == {file.name for file in named.iterdir()}
    for name in files - {"ordermerge.json", "README.md"}:
        assert (table / name).read_bytes() == (named / name).read_bytes(), name
    assert "### By tensor name" in (named / "README.md").read_text()


@pytest.mark.parametrize("method", ["slerp", "nearswap", "arcee_fusion"])
def test_blends_of_two_models_are_the_same_both_ways(method: str, family: list[Path], tmp_path: Path) -> None:
    parameters = {} if method == "arcee_fusion" else {"t": [0, 0.3, 1]}
    recipe = write_recipe(tmp_path / "r.yml", family[:2], method, parameters=parameters)
    table, named = both_ways(recipe, tmp_path)
    assert (table / "model.safetensors").read_bytes() == (named / "model.safetensors").read_bytes()


def test_filters_gradients_and_shards_are_the_same_both_ways(biased: list[Path], tmp_path: Path) -> None:
    plain = []
    for folder in biased:  # without biases, so that the table is complete
        copy = Path(shutil.copytree(folder, tmp_path / folder.name))
        tensors = load_file(copy / "model.safetensors")
        save_file({k: v for k, v in tensors.items() if not k.endswith("bias")}, copy / "model.safetensors")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "attention_bias": False, "mlp_bias": False}))
        plain.append(copy)
    weight = [{"filter": "self_attn", "value": [0, 0.2, 1]}, {"filter": "lm_head", "value": 3}, {"value": 1}]
    models = [{"model": str(plain[1]), "parameters": {"weight": weight}}, {"model": str(plain[2])}]
    recipe = write_recipe(tmp_path / "r.yml", plain, "linear", models=models, parameters={"weight": {"value": 1}})
    table, named = both_ways(recipe, tmp_path, "--out-shard-size", "2k")
    assert len(list(named.glob("*.safetensors"))) > 1
    found: list[dict[str, torch.Tensor]] = [{}, {}]
    for index, folder in enumerate((table, named)):
        for file in folder.glob("*.safetensors"):
            found[index] |= load_file(file)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_tensors_that_the_table_leaves_out_are_named_before_and_merged_by_name(
    biased: list[Path], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yml", biased, "parameter_selection_resample")
    done = merge(recipe, tmp_path / "out")
    assert done.exit_code == 1
    assert (
        f"mergekit leaves out 21 tensors of {biased[1]}, which its table of LlamaForCausalLM does not name "
        f"(`model.layers.0.mlp.down_proj.bias`, `model.layers.0.mlp.gate_proj.bias`, `model.layers.0.mlp.up_proj.bias` "
        f"and 18 more tensors): the merged model would have random values there; they can be merged by tensor name "
        f"instead: `ordermerge merge --by-name`" in done.output
    )
    assert not (tmp_path / "out").exists()
    checked = CliRunner().invoke(main, ["check", str(recipe)])
    assert checked.exit_code == 1
    assert "mergekit leaves out 21 tensors" in checked.output
    merged(recipe, tmp_path / "out", "--by-name")
    base, first, second, made = (load_file(f / "model.safetensors") for f in (*biased, tmp_path / "out"))
    assert made.keys() == base.keys()
    for name, value in made.items():
        assert ((value == first[name]) | (value == second[name])).all(), name
        changed = (first[name] != base[name]) | (second[name] != base[name])
        assert torch.equal(value != base[name], changed), name


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_methods_that_draw_merge_by_name_and_are_the_same_for_one_seed(
    method: str, biased: list[Path], tmp_path: Path
) -> None:
    parameters = {"weight": 0.5, "density": 0.5} | ({"epsilon": 0.1} if "della" in method else {})
    recipe = write_recipe(tmp_path / "r.yml", biased, method, parameters=parameters)
    options = ("--by-name", "--random-seed", "1")
    outs = [merged(recipe, tmp_path / name, *options) / "model.safetensors" for name in ("one", "two")]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert load_file(outs[0]).keys() == load_file(biased[0] / "model.safetensors").keys()


def test_models_of_other_names_are_not_merged_by_name(biased: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(biased[1], tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.bias")
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    done = merge(
        write_recipe(tmp_path / "r.yml", [biased[0], other, biased[2]], "linear", parameters={"weight": 1}),
        tmp_path / "out",
        "--by-name",
    )
    assert done.exit_code == 1
    assert (
        f"by tensor name, all models must hold the same tensors: {other} lacks `model.layers.1.mlp.up_proj.bias`\n"
        in done.output
    )


def test_layers_cannot_be_stacked_by_name(biased: list[Path], tmp_path: Path) -> None:
    sources = [{"model": str(biased[1]), "layer_range": [0, 2]}]
    recipe = tmp_path / "r.yml"
    recipe.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": [{"sources": sources}]}))
    done = merge(recipe, tmp_path / "out", "--by-name")
    assert done.exit_code == 1
    assert "merging by tensor name needs a plain list of `models`, without slices or modules" in done.output


@pytest.mark.parametrize("kind", ["llama_tied", "qwen2_tied", "gpt2"])
def test_tied_copies_stay_equal_by_name_and_draws_are_the_tables(
    kind: str, make_family: Callable[..., list[Path]], tmp_path: Path
) -> None:
    family = make_family(kind, count=2)
    for folder in family:
        tensors = load_file(folder / "model.safetensors")
        embedding = next(name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight")))
        save_file({**tensors, "lm_head.weight": tensors[embedding].clone()}, folder / "model.safetensors")
    recipe = write_recipe(tmp_path / "r.yml", family, "parameter_selection", dtype="bfloat16")
    made = load_file(merged(recipe, tmp_path / "out", "--by-name") / "model.safetensors")
    assert torch.equal(made["lm_head.weight"].view(torch.int16), made[embedding].view(torch.int16))
    (family[1] / "model.safetensors").unlink()  # one that holds no copy: the others' is a copy of what is merged
    save_file(tensors, family[1] / "model.safetensors")
    made = load_file(merged(recipe, tmp_path / "once", "--by-name") / "model.safetensors")
    assert set(made) == set(tensors)
