"""Adapters that TRL trained, as sub-models: `model+adapter` in a recipe, with the stock command and with ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from datasets import Dataset
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from ordermerge.cli import main
from ordermerge.unchanged import Base, to_lanes

pytestmark = pytest.mark.integration
Weights = dict[str, torch.Tensor]
ADAPTED = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "qv"}
ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(4)]


@pytest.fixture(scope="module")
def family(
    make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path]]:
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


def write_recipe(path: Path, family: tuple[Path, list[Path]], resample: int | str, **more: Any) -> Path:
    base, adapters = family
    recipe = {
        "merge_method": "parameter_selection",
        "base_model": str(base),
        "models": [{"model": f"{base}+{adapter}"} for adapter in adapters],
        "parameters": {"resample": resample},
        "dtype": "bfloat16",
    }
    path.write_text(yaml.safe_dump({**recipe, **more}))
    return path


def stock(recipe: Path, out: Path, cache: Path) -> Weights:
    options = [str(recipe), str(out), "--quiet", "--lora-merge-cache", str(cache)]
    done = CliRunner().invoke(mergekit_yaml, options)
    assert done.exit_code == 0, done.exception
    return load_file(out / "model.safetensors")


def dense(base: Path, adapter: Path, dtype: torch.dtype) -> Weights:
    """Return the values that an adapter stands for, from its own file: W + (alpha / r) B A, rounded once."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    values = load_file(base / "model.safetensors")
    for name in ADAPTED:
        key = "base_model.model." + name.removesuffix(".weight")
        change = tensors[f"{key}.lora_B.weight"].float() @ tensors[f"{key}.lora_A.weight"].float()
        change *= config["lora_alpha"] / config["r"]
        values[name] = (values[name].float() + change).to(dtype)
    return values


def ours(recipe: Path, out: Path) -> Weights:
    done = CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    return load_file(out / "model.safetensors")


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.int16), second[name].view(torch.int16)) for name in first
    )


def share_unchanged(model: Weights, base: Weights) -> float:
    equal = torch.cat([(model[name] == base[name]).flatten() for name in sorted(ADAPTED)])
    return equal.double().mean().item()


@pytest.mark.parametrize("resample", [0, 1, "full"])
def test_adapters_of_trl_merge_to_the_same_bytes_with_either_command(
    resample: int | str, family: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yml", family, resample)
    stock(recipe, tmp_path / "stock", tmp_path / "cache")
    ours(recipe, tmp_path / "ours")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stock", "ours")]
    assert files[0] == files[1]


def test_stock_command_without_a_cache_refuses_adapters(family: tuple[Path, list[Path]], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yml", family, 0)
    done = CliRunner().invoke(mergekit_yaml, [str(recipe), str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 1
    assert "Need to specify cache dir to merge adapters" in str(done.exception)
