"""A tiny random model with a tokenizer of characters: something to try commands with, offline."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tiny_model(folder: Path, *, seed: int = 0, moved: float = 0.0) -> None:
    """Write a Llama of some 60,000 random weights, in float32, and its tokenizer.

    Args:
        folder: The folder to make.
        seed: Names the change of the weights.
        moved: By how much half of the weights are changed, in their standard deviations: a stand-in for fine-tuning.
    """
    tokenizer = _tokenizer()
    size: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 128}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    tokens: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos")}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **size, **tokens, bos_token_id=None)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters() if moved else ():
            change = torch.randn(weight.shape, generator=generator) * config.initializer_range * moved
            weight.add_(change * (torch.rand(weight.shape, generator=generator) < 0.5))
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate([*SPECIAL, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )
