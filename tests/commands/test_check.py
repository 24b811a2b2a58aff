"""Broken experiments: what would end a run after its training is found by `check` and `run --dry-run`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.commands.plan import check_experiment
from ordermerge.config.load import load_experiment
from ordermerge.eval.task_data import PACK

SFT = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "bf16": False, "activation_checkpointing": False}
TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "exact_match"}],
}
COMPLETION = str(PACK / "completion.yaml")
CHAT = {"prompt": None, "completion": None, "messages": "chat"}
PLAIN = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.fixture(scope="module")
def models(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases by name: a good one, and some that each lack something."""
    root = tmp_path_factory.mktemp("models")
    good = make_family("llama", count=0, dtype=torch.float32)[0]
    for name in (
        "good",
        "chatty",
        "resized",
        "cut",
        "no_weights",
        "no_tokenizer",
        "no_end",
        "unknown",
        "bad_generation",
    ):
        shutil.copytree(good, root / name)
    (root / "chatty" / "chat_template.jinja").write_text(PLAIN)
    config = json.loads((good / "config.json").read_text())
    (root / "resized" / "config.json").write_text(json.dumps({**config, "vocab_size": 60}))
    (root / "unknown" / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    weights = root / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (root / "no_weights" / "model.safetensors").unlink()
    for file in (root / "no_tokenizer").glob("token*"):
        file.unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(good)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(root / "no_end")
    (root / "bad_generation" / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": false}')
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    small = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_positions=128, **sizes))
    short = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_positions=8, **sizes))
    for name, model in {"small": small, "short": short}.items():
        model.save_pretrained(root / name)
        transformers.AutoTokenizer.from_pretrained(good).save_pretrained(root / name)
    return root


@pytest.fixture
def write(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes an experiment whose sections differ from a good one, with the hub out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def written(lines: list[Any] | None = None, task: dict[str, Any] | None = None, **sections: Any) -> Path:
        records = [{"q": f"a{i}?", "a": f"b{i}"} for i in range(8)] if lines is None else lines
        for name in ("train", "other"):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        content: dict[str, Any] = {
            "model": {"path": "good"},
            "data": {"train": "train.jsonl", "prompt": "{q}", "completion": "{a}"},
            "orders": {"count": 2},
            "sft": SFT,
        }
        for name, changes in sections.items():
            merged = {**content.get(name, {}), **changes}
            content[name] = {key: value for key, value in merged.items() if value is not None}
        content["model"]["path"] = str(models / content["model"]["path"])
        if task is not None:
            content["evaluation"] = {"tasks": ["t"], "include_path": "tasks", **content.get("evaluation", {})}
            files = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "train.jsonl")}}}
            (tmp_path / "tasks").mkdir()
            (tmp_path / "tasks" / "t.yaml").write_text(yaml.safe_dump({"task": "t", **TASK, **files, **task}))
        path = tmp_path / "experiment.yml"
        path.write_text(yaml.safe_dump({"name": "x", **content}))
        return path

    return written


GOOD = {
    "lora": {"r": 2},
    "task": {},
    "merges": {"m": {"merge_method": "parameter_selection_resample"}},
}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    # the base model
    "stored weights of another shape": ({"model": {"path": "resized"}}, r"`lm_head.weight` is stored as \[45, 32\]"),
    "weights cut off": ({"model": {"path": "cut"}}, r"model.safetensors has \d+ bytes where its header tells of"),
    "no weights": ({"model": {"path": "no_weights"}}, r"has a config.json but no weights"),
    "no tokenizer": ({"model": {"path": "no_tokenizer"}}, r"the tokenizer of .* cannot be loaded"),
    "no end token": ({"model": {"path": "no_end"}}, r"no end-of-sequence token"),
    "an unknown architecture": ({"model": {"path": "unknown"}}, r"the model of .* cannot be loaded: .*no_such_model"),
    "a generation config that cannot be saved": ({"model": {"path": "bad_generation"}}, r"temperature"),
    "tokens beyond the embedding": ({"model": {"path": "small"}}, r"the base model's embedding has 20 rows; enlarge"),
    "positions beyond the table": (
        {"model": {"path": "short"}, "data": {"prompt": "{q}{q}{q}"}},
        r"the longest sample has 12 tokens, and the base model has learned 8 positions; set `sft.max_length: 8`",
    ),
    # packages and settings
    "an optimizer without its package": ({"sft": {"optim": "adamw_8bit"}}, r"`sft.optim`: adamw_8bit cannot be had"),
    "an attention without its package": (
        {"sft": {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}}},
        r"cannot be loaded: FlashAttention2",
    ),
    "kernels without their package": ({"sft": {"use_liger_kernel": True}}, r"needs the package liger-kernel"),
    "a batch larger than the data": ({"sft": {"gradient_accumulation_steps": 3}}, r"do not fill one batch of 12"),
    "a prompt that fills max_length": ({"sft": {"max_length": 2}}, r"no training sample is left"),
    "an adapter of no module": ({"lora": {"target_modules": ["q_prox"]}}, r"no module 'q_prox' \(did you mean"),
    "an adapter of one wrong module": ({"lora": {"target_modules": ["q_proj", "zzz"]}}, r"no module 'zzz'"),
    "an adapter's pattern of no module": ({"lora": {"target_modules": "x.*"}}, r"Target modules x\.\* not found"),
    "a saved module that is not there": ({"lora": {"modules_to_save": ["head"]}}, r"`lora.modules_to_save`: .*'head'"),
    # data
    "a missing value": ({"lines": [{"q": float("nan"), "a": "b"}] * 4}, r"record 0: field `q`, .* is nan: a missing"),
    "data on a hub out of reach": (
        {"data": {"train": "org/none"}},
        r"'org/none' is no file here and cannot be loaded from the hub",
    ),
    "half of the data held out": ({"data": {"validation": 0.7}}, r"2 training samples do not fill one batch of 4"),
    "a chat without a template": ({"data": CHAT, "lines": [{"chat": [USER]}] * 4}, r"has no chat template"),
    "a chat of the template's dislike": (
        {"model": {"path": "chatty"}, "data": CHAT, "lines": [{"chat": [USER], "tools": [{"name": "f"}]}] * 4},
        r"record 0: the tokenizer's chat template does not read `tools`",
    ),
    "turns that the template does not mark": (
        {
            "model": {"path": "chatty"},
            "data": CHAT,
            "lines": [{"chat": [USER, ASSISTANT]}] * 4,
            "sft": {"assistant_only_loss": True},
        },
        r"chat template is not training-compatible",
    ),
    # merges
    "a bad dtype": ({"merges": {"m": {"merge_method": "parameter_selection", "dtype": "f99"}}}, r"f99"),
    "a method's parameter missing": ({"merges": {"m": {"merge_method": "linear"}}}, r"linear needs `weight`"),
    # evaluation
    "a field that no document has": ({"task": {"doc_to_text": "{{nope}}"}}, r"task 't' .*'nope' is undefined"),
    "a field that holds nothing": (
        {
            "task": {},
            "lines": [{"q": "a", "a": "b"}] * 7 + [{"q": "a", "a": "b", "c": None}, {"q": "c", "a": None}],
            "data": {"completion": "{q}"},
        },
        r"document 8 has nothing in the field `a`",
    ),
    "a template that is none": ({"task": {"doc_to_text": "{{q"}}, r"task 't'"),
    "code that nobody consented to": ({"task": {"unsafe_code": True}}, r"task t runs code that the model wrote"),
    "a task on a hub out of reach": (
        {"task": {"dataset_path": "org/none", "dataset_kwargs": None}},
        r"task 't' cannot be loaded: it is on the Hugging Face hub, which cannot be reached",
    ),
    "data named twice": (
        {
            "task": {"include": COMPLETION, "dataset_path": None, "dataset_kwargs": {"data_files": "d"}},
            "evaluation": {"metadata": {"data_files": "other.jsonl"}},
        },
        r"task 't'.*(`data_files` is given twice|no such data file: .*d)",
    ),
}


def test_the_experiment_that_the_others_break_is_sound(write: Callable[..., Path]):
    assert check_experiment(load_experiment(write(**GOOD))) == []


@pytest.mark.parametrize("case", BROKEN)
def test_what_would_end_a_run_is_found_before_it(case: str, write: Callable[..., Path]):
    changes, message = BROKEN[case]
    problems = check_experiment(load_experiment(write(**changes)))
    assert len(problems) == 1, problems
    assert re.search(message, problems[0]), problems


def test_a_dry_run_says_so_in_a_sentence_and_makes_nothing(write: Callable[..., Path], tmp_path: Path):
    path = write(model={"path": "small"})
    done = CliRunner().invoke(main, ["run", str(path), "--dry-run", "--runs-dir", str(tmp_path / "runs")])
    assert done.exit_code == 1
    assert "the base model's embedding has 20 rows" in done.output
    assert not (tmp_path / "runs").exists()
