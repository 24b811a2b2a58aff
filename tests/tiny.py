"""Tiny models of real architectures, their tokenizer, and a task: what tests and the scripts beside them work on."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789+-=.,?"]
SMALL = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, **HEADS, **TOKENS, tie_word_embeddings=False),
    "llama_tied": lambda: transformers.LlamaConfig(**SMALL, **HEADS, **TOKENS, tie_word_embeddings=True),
    "qwen2_tied": lambda: transformers.Qwen2Config(**SMALL, **HEADS, **TOKENS, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=32, n_layer=2, n_head=4, n_positions=128, **TOKENS
    ),
}
SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<eos>"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def write_model(folder: Path, *, seed: int = 0) -> None:
    """Write a tiny Llama with its tokenizer.

    Args:
        folder: Where.
        seed: Names its weights.
    """
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def write_sums(folder: Path, below_a: int, below_b: int) -> None:
    """Write `data.jsonl`, a + b of all a and b below two numbers, and a task on them, `tasks/sums.yaml`.

    Args:
        folder: Where.
        below_a: What a is below.
        below_b: What b is below.
    """
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(below_a) for b in range(below_b)]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "sums.yaml").write_text(SUMS.replace("TEST", str(folder / "data.jsonl")))
