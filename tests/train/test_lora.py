"""LoRA: every order starts from one adapter; what is saved is an adapter, or the whole model that it stands for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.lora import OWNED, REFUSED, check_lora
from ordermerge.train.sft import train_orders

Write = Callable[..., Experiment]
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
ADAPTED = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "qv"}


@pytest.fixture
def write_lora(write_experiment: Write, tmp_path: Path) -> Write:
    """Return a function like `write_experiment` whose experiments have a `lora` section."""

    def write(lora: dict[str, Any] | None = None, **sections: Any) -> Experiment:
        return write_experiment(**sections).model_copy(update={"lora": {**LORA, **(lora or {})}})

    return write


def adapter(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_all_orders_start_from_the_same_adapter(tmp_path: Path, write_lora: Write):
    experiment = write_lora({"lora_dropout": 0.1}, orders={"count": 3}, sft={"learning_rate": 0.0})
    first, *others = map(adapter, train_orders(experiment, tmp_path / "together"))
    assert all(equal(first, other) for other in others)
    (alone,) = train_orders(experiment, tmp_path / "alone", only=2)
    assert equal(first, adapter(alone))
    assert all(bool(value.count_nonzero()) == ("lora_A" in name) for name, value in first.items())
    assert len(first) == 2 * len(ADAPTED)


def test_an_adapter_is_saved_with_what_a_merge_takes_from_it(tmp_path: Path, base: Path, write_lora: Write):
    one, other = train_orders(write_lora(), tmp_path)
    names = {path.name for path in one.iterdir()}
    assert names >= {"adapter_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert not names & {"config.json", "model.safetensors", "training_args.bin"}
    assert json.loads((one / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert json.loads((one / name).read_text()) == json.loads((base / name).read_text())
    assert not equal(adapter(one), adapter(other))
    assert json.loads((one / "order" / "order.json").read_text())["inputs"]["lora"] == LORA


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dense_sub_model_is_the_base_and_its_adapter_in_the_models_dtype(
    dtype: str, tmp_path: Path, base: Path, write_lora: Write
):
    model = {"dtype": dtype}
    (small,) = train_orders(write_lora(model=model), tmp_path / "adapter", only=0)
    (whole,) = train_orders(write_lora({"save_as": "dense"}, model=model), tmp_path / "dense", only=0)
    assert not {path.name for path in whole.iterdir()} & {"adapter_config.json", "adapter_model.safetensors"}
    before, after, parts = load_file(base / "model.safetensors"), load_file(whole / "model.safetensors"), adapter(small)
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.dtype == getattr(torch, dtype)
        expected = before[name].to(value.dtype)
        if name in ADAPTED:
            a, b = (parts[f"base_model.model.{name.replace('.weight', f'.lora_{part}.weight')}"] for part in "AB")
            assert not torch.equal(value, expected)
            expected = (expected + b @ a * 2).to(value.dtype)  # rounded once
        assert torch.equal(value, expected)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        told = {**json.loads((base / name).read_text())} | ({"dtype": dtype} if name == "config.json" else {})
        assert json.loads((whole / name).read_text()) == told
    assert transformers.AutoModelForCausalLM.from_pretrained(whole).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("name", sorted({*OWNED, *REFUSED}))
def test_a_field_whose_adapter_is_no_change_of_the_base_is_refused(name: str, write_lora: Write):
    problem = check_lora(write_lora({name: "something"}))[0]
    assert problem.startswith(f"`lora.{name}` cannot be set: {(OWNED | REFUSED)[name]}; got 'something', remove it")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"lora_alfa": 1}, "`lora.lora_alfa`: PEFT's LoraConfig has no such field (did you mean 'lora_alpha'?)"),
        ({"save_at": "x"}, "`lora.save_at`: PEFT's LoraConfig has no such field (did you mean 'save_as'?)"),
        (
            {"xyzzy": 1},
            "`lora.xyzzy`: PEFT's LoraConfig has no such field; see PEFT's documentation of LoraConfig",
        ),
        ({"save_as": "merged"}, "`lora.save_as` must be adapter or dense; got 'merged'"),
        ({"r": 0}, "`lora.r` must be at least 1; got 0"),
        ({"r": "many"}, "`lora.r` must be a whole number; got 'many'"),
        ({"lora_dropout": 1.5}, "`lora.lora_dropout` must be at least 0 and below 1; got 1.5"),
        ({"task_type": "SEQ_CLS"}, "`lora.task_type` must be CAUSAL_LM, if given; got 'SEQ_CLS'"),
        (
            {"init_lora_weights": "pissa"},
            "`lora.init_lora_weights` cannot be 'pissa': it rewrites the base model's weights, or looks at data first",
        ),
        (
            {"target_modules": "q", "layers_to_transform": [0]},
            "`lora`: PEFT's LoraConfig refuses it: `layers_to_transform` cannot be used when `target_modules` is a str",
        ),
    ],
)
def test_a_wrong_field_or_value_is_named(lora: dict[str, Any], message: str, write_lora: Write):
    (problem,) = check_lora(write_lora(lora))
    assert problem.startswith(message)


def test_problems_of_all_training_sections_are_told_together(tmp_path: Path, write_lora: Write):
    experiment = write_lora({"r": 0, "inference_mode": True}, sft={"packing": True}, data={"train": "gone.jsonl"})
    with pytest.raises(UserError, match="4 problems"):
        train_orders(experiment, tmp_path)


def test_modules_that_the_model_lacks_are_named_before_training(tmp_path: Path, write_lora: Write):
    with pytest.raises(UserError, match=r"Target modules .*query.* not found in the base model"):
        train_orders(write_lora({"target_modules": ["query"]}), tmp_path)
    assert not list(tmp_path.glob("orders/*"))


def test_untying_the_embeddings_is_refused(tmp_path: Path, make_family: Callable[..., list[Path]], write_lora: Write):
    (tied,) = make_family("llama_tied", count=0, dtype=torch.float32)
    experiment = write_lora({"modules_to_save": ["lm_head"]}, model={"path": str(tied)})
    refusal = pytest.raises(UserError, match=r"`lora` would untie the base model's embeddings")
    with pytest.warns(UserWarning, match="ensure_weight_tying"), refusal:  # PEFT's own words
        train_orders(experiment, tmp_path)
    experiment = write_lora(
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True, "save_as": "dense"},
        model={"path": str(tied)},
    )
    (whole,) = train_orders(experiment, tmp_path, only=0)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(whole)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    before = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(loaded.get_input_embeddings().weight, before)


def test_another_lora_section_is_refused_for_orders_that_are_done(tmp_path: Path, write_lora: Write):
    train_orders(write_lora(), tmp_path, only=0)
    with pytest.raises(UserError, match=r"lora.r: 2, now 4: order_0 was made with the old value"):
        train_orders(write_lora({"r": 4}), tmp_path)
