"""Adapters that TRL trained, as sub-models: `model+adapter` in a recipe, with the stock command and with ours."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from datasets import Dataset
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from ordermerge.cli import main
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.unchanged import changed, to_lanes

pytestmark = pytest.mark.integration
Family = tuple[Path, list[Path]]
Weights = dict[str, torch.Tensor]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lora.md").read_text(encoding="utf-8")
ADAPTED = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "qv"}
ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(4)]


@pytest.fixture(scope="module")
def family(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Return a bfloat16 base model, and two adapters that saw the same samples in different orders."""
    (base,) = make_family(count=0)
    root = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")  # TRL reports each trainer to its hub, unless it sees this
        adapters = [train(base, root / f"order_{k}", rows) for k, rows in enumerate((ROWS, ROWS[::-1]))]
    return base, adapters


def train(base: Path, out: Path, rows: list[dict[str, str]]) -> Path:
    args = SFTConfig(
        output_dir=str(out / "logs"),
        max_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(base),
        peft_config=peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(out / "adapter"))
    return out / "adapter"


@pytest.fixture(autouse=True)
def no_loaders(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that does what a new process would: mergekit keeps the files it opened, by model name."""

    def forget() -> None:
        monkeypatch.setattr(LoaderCache, "loaders", {})

    forget()
    return forget


def write_recipe(path: Path, base: Path, adapters: list[Path], resample: int | str = "full", **more: Any) -> Path:
    recipe = {
        "merge_method": "parameter_selection",
        "base_model": str(base),
        "models": [{"model": f"{base}+{adapter}"} for adapter in adapters],
        "parameters": {"resample": resample},
        "dtype": "bfloat16",
    }
    path.write_text(yaml.safe_dump({**recipe, **more}))
    return path


def stock(recipe: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(mergekit_yaml, [str(recipe), str(out), "--quiet", *options])


def ours(recipe: Path, out: Path, *options: str) -> Weights:
    done = CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet", *options])
    assert done.exit_code == 0, done.output
    return load_file(out / "model.safetensors")


def dense(base: Path, adapter: Path, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """Return the weights that an adapter stands for, from its own file: W + (alpha / r) B A, rounded once."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    weights = load_file(base / "model.safetensors")
    for name in ADAPTED:
        key = "base_model.model." + name.removesuffix(".weight")
        change = tensors[f"{key}.lora_B.weight"].float() @ tensors[f"{key}.lora_A.weight"].float()
        change *= config["lora_alpha"] / config["r"]
        weights[name] = (weights[name].float() + change).to(dtype)
    return weights


def share_unchanged(model: Weights, base: Weights) -> float:
    """Return the share of values inside the adapted matrices that equal the base model's."""
    pairs = [(model[name], base[name].to(model[name].dtype)) for name in sorted(ADAPTED)]
    return torch.cat([(after == before).flatten() for after, before in pairs]).double().mean().item()


@pytest.mark.parametrize("resample", [0, 1, "full"])
def test_adapters_of_trl_give_the_same_bytes_with_either_command(
    resample: int | str, family: Family, no_loaders: Callable[[], None], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yml", *family, resample)
    assert stock(recipe, tmp_path / "stock", "--lora-merge-cache", str(tmp_path / "cache")).exit_code == 0
    no_loaders()
    ours(recipe, tmp_path / "ours")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stock", "ours")]
    assert files[0] == files[1]
    assert not list(tmp_path.glob(".ours*"))  # our own cache is gone


def test_values_outside_adapted_modules_stay_the_base_models(family: Family, tmp_path: Path) -> None:
    base, adapters = family
    before, models = load_file(base / "model.safetensors"), [dense(base, adapter) for adapter in adapters]
    merged = ours(write_recipe(tmp_path / "r.yml", base, adapters), tmp_path / "out")
    assert merged.keys() == before.keys()
    assert {name for name in merged if not torch.equal(bits(merged[name]), bits(before[name]))} == ADAPTED
    for name in ADAPTED:
        moved = torch.stack([model[name] != before[name] for model in models]).any(0)
        assert torch.equal(merged[name] != before[name], moved)
        assert torch.stack([bits(merged[name]) == bits(model[name]) for model in models]).any(0).all()


def test_cache_holds_the_dense_sub_models_with_their_share_of_unchanged_values(family: Family, tmp_path: Path) -> None:
    base, adapters = family
    before = load_file(base / "model.safetensors")
    recipe = write_recipe(tmp_path / "r.yml", base, adapters)
    ours(recipe, tmp_path / "out", "--lora-merge-cache", str(tmp_path / "cache"))
    cached = [load_file(file) for file in (tmp_path / "cache").glob("*/model.safetensors")]
    assert len(cached) == 2
    for adapter in adapters:
        expected = dense(base, adapter)
        (model,) = [weights for weights in cached if all(torch.equal(weights[n], expected[n]) for n in expected)]
        share = share_unchanged(expected, before)
        counted = torch.cat([changed(to_lanes(model[name]), to_lanes(before[name])) for name in sorted(ADAPTED)])
        assert 1 - counted.double().mean().item() == pytest.approx(share)
        assert 0.02 < share < 0.5  # changes below half of bfloat16's spacing round away ...
        assert share_unchanged(dense(base, adapter, torch.float32), before) < share / 10  # ... in float32 hardly any do


def test_script_of_the_page_prints_the_share_of_unchanged_values(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapters = family
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    assert check_recipe(recipe, models_exist=False) == []
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "base")
    write_recipe(Path("recipe.yml"), Path("base"), adapters, merge_method=recipe["merge_method"], parameters={})
    ours(Path("recipe.yml"), Path("merged"), "--lora-merge-cache", "dense/")
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    printed = sorted(float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    before = load_file(base / "model.safetensors")
    assert printed == pytest.approx(sorted(share_unchanged(dense(base, adapter), before) for adapter in adapters))


def test_stock_command_without_a_cache_refuses_adapters(family: Family, tmp_path: Path) -> None:
    done = stock(write_recipe(tmp_path / "r.yml", *family), tmp_path / "out")
    assert done.exit_code == 1
    assert "Need to specify cache dir to merge adapters" in str(done.exception)


def test_an_old_cache_is_trusted_whatever_the_adapter_holds_now(
    family: Family, no_loaders: Callable[[], None], tmp_path: Path
) -> None:
    base, (first, second) = family
    adapter = shutil.copytree(first, tmp_path / "adapter")
    recipe = write_recipe(tmp_path / "r.yml", base, [adapter])
    cache = ["--lora-merge-cache", str(tmp_path / "cache")]
    before = ours(recipe, tmp_path / "before", *cache)
    shutil.copy(second / "adapter_model.safetensors", adapter)
    no_loaders()
    assert same(ours(recipe, tmp_path / "stale", *cache), before)
    no_loaders()
    assert same(ours(recipe, tmp_path / "fresh"), dense(base, second))


def test_an_adapter_that_changed_is_read_again_in_the_same_process(family: Family, tmp_path: Path) -> None:
    base, (first, second) = family
    adapter = shutil.copytree(first, tmp_path / "adapter")
    recipe = write_recipe(tmp_path / "r.yml", base, [adapter])
    assert same(ours(recipe, tmp_path / "before"), dense(base, first))
    shutil.copy(second / "adapter_model.safetensors", adapter)
    assert same(ours(recipe, tmp_path / "after"), dense(base, second))


def test_tokenizer_of_the_first_adapter_is_kept(family: Family, tmp_path: Path) -> None:
    base, adapters = family
    first = shutil.copytree(adapters[0], tmp_path / "adapter")
    tokenizer = transformers.AutoTokenizer.from_pretrained(first)
    tokenizer.chat_template = "of the adapter"
    tokenizer.save_pretrained(first)
    ours(write_recipe(tmp_path / "r.yml", base, [first, adapters[1]]), tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "of the adapter"
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16)


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(bits(first[name]), bits(second[name])) for name in first)
