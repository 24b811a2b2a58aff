"""Everything that is not weights comes from the first sub-model, whatever it is called."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from click.testing import CliRunner

from ordermerge.cli import main

pytestmark = pytest.mark.integration
OF_ANY_NAME = [
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tekken.json",
    "qwen.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "additional_chat_templates/tools.jinja",
    "modules.json",
    "1_Pooling/config.json",
    "modeling_own.py",
    "LICENSE",
]
LEFT = ["training_args.bin", "trainer_state.json", "optimizer.pt", "order/order.json", "checkpoint-5/config.json",
        "train.log", ".gitattributes", "onnx/model.onnx", "onnx/config.json", "flax_model.msgpack"]  # fmt: skip


@pytest.fixture
def models(family: list[Path], tmp_path: Path) -> list[Path]:
    """Return copies of a base model and two sub-models whose companions differ."""
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in family]
    for model in copies:
        for name in [*OF_ANY_NAME, *LEFT]:
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text("{}" if name == "order/order.json" else f"{name} of {model.name}")
        transformers.GenerationConfig(max_length=100 + len(model.name), eos_token_id=1).save_pretrained(model)
    (copies[0] / "of_the_base.json").write_text("{}")
    return copies


def merge(models: list[Path], *options: str, **more: Any) -> Path:
    base, *subs = map(str, models)
    recipe, out = models[0].parent / "r.yml", models[0].parent / "out"
    content = {"merge_method": "parameter_selection", "base_model": base, "models": [{"model": m} for m in subs]}
    recipe.write_text(yaml.safe_dump({**content, "dtype": "bfloat16", **more}))
    done = CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet", *options])
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize("options", [[], ["--by-name"]], ids=["table", "by-name"])
def test_companions_of_any_name_come_from_the_first_sub_model(options: list[str], models: list[Path]) -> None:
    out = merge(models, *options)
    for name in OF_ANY_NAME:
        assert (out / name).read_text() == f"{name} of sub0"
    assert not [name for name in [*LEFT, "of_the_base.json"] if (out / name).exists()]
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (models[1] / name).read_bytes()
    config, first = (json.loads((folder / "config.json").read_text()) for folder in (out, models[1]))
    assert config == {**first, "dtype": "bfloat16"}


def test_recipes_tokenizer_is_kept_and_the_rest_is_the_first_sub_models(models: list[Path]) -> None:
    for model in models:
        for name in OF_ANY_NAME[:5]:
            (model / name).unlink()
    for options in ([], ["--by-name"]):
        out = merge(models, *options, tokenizer={"source": "union"})
        assert (out / "generation_config.json").read_bytes() == (models[1] / "generation_config.json").read_bytes()
        assert (out / "preprocessor_config.json").read_text() == "preprocessor_config.json of sub0"
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert loaded.get_input_embeddings().num_embeddings == loaded.config.vocab_size == len(tokenizer)


def test_recipes_chat_template_is_kept_and_the_tokenizer_is_the_first_sub_models(models: list[Path]) -> None:
    for name in OF_ANY_NAME[:5]:
        (models[0] / name).unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(models[1])
    tokenizer.add_tokens(["<of_the_first>"])
    tokenizer.chat_template = "of the first"
    tokenizer.save_pretrained(models[1])
    out = merge(models, chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    made = transformers.AutoTokenizer.from_pretrained(out)
    assert "<of_the_first>" in made.get_vocab()
    assert made.chat_template.startswith("{% for m in messages %}")


def test_tokenizer_is_left_out_if_asked(models: list[Path]) -> None:
    out = merge(models, "--no-copy-tokenizer")
    assert not (out / "tokenizer.json").exists()
    assert not (out / "spiece.model").exists()
    assert (out / "preprocessor_config.json").exists()
