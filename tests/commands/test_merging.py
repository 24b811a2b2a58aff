"""`ordermerge merge`: mergekit's merge, checked before and whole or absent after."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard
from mergekit.config import MergeConfiguration
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file

from ordermerge.cli import main
from ordermerge.merge_methods.recipe_check.references import map_models, with_absolute_paths

pytestmark = pytest.mark.integration
Family = Callable[..., list[Path]]


def write_recipe(path: Path, inputs: list[Path | str], base: Path | str | None = None, **more: Any) -> Path:
    recipe: dict[str, Any] = {"merge_method": "parameter_selection", "models": [{"model": str(m)} for m in inputs]}
    if base:
        recipe["base_model"] = str(base)
    path.write_text(yaml.safe_dump({**recipe, "dtype": "bfloat16", **more}))
    return path


def merge(recipe: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet", *options])


def test_weights_are_those_of_the_stock_command(make_family: Family, tmp_path: Path) -> None:
    base, *models = make_family()
    recipe = write_recipe(tmp_path / "r.yml", models, base, parameters={"resample": 1})
    assert CliRunner().invoke(mergekit_yaml, [str(recipe), str(tmp_path / "stock"), "--quiet"]).exit_code == 0
    done = merge(recipe, tmp_path / "ours")
    assert done.exit_code == 0, done.output
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stock", "ours")]
    assert files[0] == files[1]
    made = json.loads((tmp_path / "ours" / "ordermerge.json").read_text())
    assert made["recipe"]["parameters"] == {"resample": 1}
    assert made["versions"]["mergekit"]
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert card.data.tags == ["mergekit", "merge", "ordermerge"]
    assert card.text.startswith("\n# ours\n") or card.text.startswith("# ours\n")
    assert str(base.parent) not in card.content
    assert f"* {base.parent.name}/sub0\n" in card.text
    draw = card.text.split("### Draw")[1]
    assert draw.split("EMNLP 2024.")[1].strip() == (
        "- `resample`: 1\n- `seed`: 0\n- `granularity`: element\n- sub-models: 3\n- `weight`: 1, 1, 1"
    )
    assert "https://arxiv.org/abs/2410.03743" in draw


def test_card_shows_filters_and_gradients_and_other_methods_keep_mergekits(make_family: Family, tmp_path: Path) -> None:
    base, first, second = make_family(count=2)
    recipe = {"parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 2}], "seed": 9}}
    recipe["models"] = [{"model": str(first), "parameters": {"weight": 0.5}}, {"model": str(second)}]
    assert merge(write_recipe(tmp_path / "r.yml", [], base, **recipe), tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- `seed`: 9\n" in text
    assert '- `weight`: 0.5, [{"value": [0, 1], "filter": "mlp"}, {"value": 2}]\n' in text
    linear = write_recipe(tmp_path / "l.yml", [first, second], merge_method="linear", parameters={"weight": 1})
    assert merge(linear, tmp_path / "average").exit_code == 0
    assert "### Draw" not in (tmp_path / "average" / "README.md").read_text()


def test_text_settings_come_from_the_first_sub_model(make_family: Family, tmp_path: Path) -> None:
    base, *models = make_family()
    for index, model in enumerate(models):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        tokenizer.chat_template = f"template {index}"
        tokenizer.save_pretrained(model)
        generation = transformers.GenerationConfig(eos_token_id=5 + index, max_length=99)
        generation.save_pretrained(model)
        config = transformers.AutoConfig.from_pretrained(model)
        config.eos_token_id = 5 + index
        config.save_pretrained(model)
    out = tmp_path / "out"
    assert merge(write_recipe(tmp_path / "r.yml", [base, *models], base), out).exit_code == 0
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == "template 0"
    assert transformers.GenerationConfig.from_pretrained(out).eos_token_id == 5
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.eos_token_id, config.dtype) == (5, torch.bfloat16)
    assert transformers.AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_misspelt_key_is_refused_and_nothing_is_written(make_family: Family, tmp_path: Path) -> None:
    _, *models = make_family()
    done = merge(write_recipe(tmp_path / "r.yml", models, paramters={"weight": 1}), tmp_path / "out")
    assert done.exit_code == 1
    assert done.output == f"Error: {tmp_path / 'r.yml'}: unknown key `paramters` (did you mean 'parameters'?)\n"
    assert not (tmp_path / "out").exists()


def test_failed_merge_leaves_nothing_behind(make_family: Family, tmp_path: Path) -> None:
    _, *models = make_family(count=2)
    weight = [{"filter": "layers.1.mlp", "value": 0}, {"value": 1}]  # found when the first shards are written
    recipe = write_recipe(tmp_path / "r.yml", models, parameters={"weight": weight})
    done = merge(recipe, tmp_path / "out", "--out-shard-size", "4k")
    assert done.exit_code == 1
    assert f"Error: {recipe}: mergekit could not merge it: `weight` must be >= 0 and finite" in done.output
    assert "for tensor 'model.layers.1.mlp." in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["r.yml"]


def test_foreign_folder_is_not_overwritten_but_an_earlier_merge_is(make_family: Family, tmp_path: Path) -> None:
    _, *models = make_family()
    recipe, out = write_recipe(tmp_path / "r.yml", models), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = merge(recipe, out)
    assert done.exit_code == 1
    assert f"{out}: exists and was not made by a merge; name a new folder" in done.output
    assert (out / "thesis.tex").exists()
    (out / "thesis.tex").unlink()
    assert merge(recipe, out).exit_code == 0
    for foreign in ("model-00001-of-00002.safetensors", "notes/chapter.md"):
        (out / foreign).parent.mkdir(exist_ok=True)
        (out / foreign).write_text("not the merge's")
        refused = merge(recipe, out)
        assert refused.exit_code == 1
        assert f"{out}: holds {foreign}, which the merge there did not write" in refused.output
        (out / foreign).unlink()
    assert merge(recipe, out).exit_code == 0


@pytest.mark.parametrize("autoload", ["0", "1"])
def test_bare_relative_names_merge_offline_with_autoload_on_and_off(
    autoload: str, make_family: Family, tmp_path: Path
) -> None:
    """mergekit takes `sub0` for a hub id when it writes the card; ours is given the absolute path."""
    base, *models = make_family()
    recipe = write_recipe(tmp_path / "r.yml", [model.name for model in models], base.name)
    command = [Path(sys.executable).with_name("ordermerge"), "merge", recipe, tmp_path / "out", "--quiet"]
    env = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=base.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "- model: sub0" in (tmp_path / "out" / "mergekit_config.yml").read_text()


def test_only_names_of_models_become_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "union", "sub0", "adapter"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = {
        "merge_method": "linear",
        "base_model": "base",
        "models": [{"model": "sub0+adapter"}, {"model": "org/hub"}, {"model": {"model": {"path": "sub0/"}}}],
        "tokenizer": {"source": "base", "tokens": {"<x>": {"source": "sub0"}, "<y>": {"source": {"kind": "zero"}}}},
    }
    absolute = map_models(MergeConfiguration.model_validate(recipe), with_absolute_paths)
    assert str(absolute.base_model) == str(tmp_path / "base")
    assert [str(entry.model) for entry in absolute.models or ()] == [
        f"{tmp_path}/sub0+{tmp_path}/adapter",
        "org/hub",
        f"{tmp_path}/sub0",
    ]
    assert absolute.tokenizer is not None
    assert absolute.tokenizer.source == "base"  # mergekit's word, not the folder
    tokens = absolute.tokenizer.tokens or {}
    assert str(tokens["<x>"].source) == f"{tmp_path}/sub0"
    assert tokens["<y>"].source == MergeConfiguration.model_validate(recipe).tokenizer.tokens["<y>"].source  # type: ignore


def test_adapters_are_merged_dense_first(make_family: Family, tmp_path: Path) -> None:
    base, *_ = make_family()
    adapters = []
    for index in range(2):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        torch.manual_seed(index)
        peft.get_peft_model(model, config).save_pretrained(tmp_path / f"adapter{index}")
        adapters.append(f"{base}+{tmp_path / f'adapter{index}'}")
    done = merge(write_recipe(tmp_path / "r.yml", adapters, base, parameters={"resample": "full"}), tmp_path / "out")
    assert done.exit_code == 0, done.output
    merged, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}
    dense = []
    for index in range(2):
        model = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / f"adapter{index}"
        )
        dense.append(model.merge_and_unload().state_dict())
    for name in changed:
        assert torch.stack([merged[name] == weights[name] for weights in dense]).any(0).all()


def test_help_is_that_of_mergekit_under_our_name() -> None:
    done = CliRunner().invoke(main, ["merge", "--help"])
    assert done.exit_code == 0
    assert done.output.startswith("Usage: ordermerge merge [OPTIONS] CONFIG_FILE OUT_PATH")
    assert "--out-shard-size" in done.output


def test_usage_error_exits_2() -> None:
    assert CliRunner().invoke(main, ["merge", "--no-such-option"]).exit_code == 2
