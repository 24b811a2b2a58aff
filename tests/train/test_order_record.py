"""What is said of the data before training."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from ordermerge.train.order_record import warnings
from ordermerge.train.samples import Samples
from ordermerge.train.tokenized import Prepared

EOS, UNKNOWN = 1, 2


def told(
    prompts: list[str], tokens: list[list[int]], positions: int = 8, dtype: torch.dtype = torch.float32
) -> list[str]:
    """Return what is said of samples that are tokenised so."""
    ids = list(range(len(prompts)))
    data = Dataset.from_dict({"chat": prompts, "sample_id": ids})  # not `prompt`, whose boundary is another matter
    if len(set(prompts)) == 1:
        data = Dataset.from_dict({"prompt": prompts, "completion": ["b"] * len(ids), "sample_id": ids})
    prepared = Prepared(
        train=Dataset.from_dict({"input_ids": tokens, "sample_id": ids}), validation=None, sample_ids=torch.tensor(ids),
        orders=torch.zeros(1, 1, len(ids), dtype=torch.int64), batch=1, steps=1, branch=0, dropped=0, truncated=0,
    )  # fmt: skip
    config, generation = SimpleNamespace(max_position_embeddings=positions), SimpleNamespace(eos_token_id=EOS)
    model = SimpleNamespace(config=config, dtype=dtype, device=torch.device("cpu"))
    base: Any = SimpleNamespace(model=model, generation_config=generation)
    return warnings(Samples(data, None, 0, 0, ""), prepared, base, Tokenizer())


class Tokenizer:
    """A tokenizer of letters."""

    eos_token, eos_token_id = "</s>", EOS
    unk_token, unk_token_id = "<unk>", UNKNOWN
    bos_token_id = pad_token_id = None

    def __call__(self, text: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in one] for one in text]}


@pytest.mark.parametrize(
    ("prompts", "tokens", "message"),
    [
        (["question"] * 2, [[5, EOS]] * 2, "all 2 samples have one prompt, 'question'; a field goes into braces"),
        (["a", "b"], [[5, EOS, EOS], [5, EOS]], "1 of 2 samples end with '</s>' twice: the tokenizer appends one"),
        (["a", "b"], [[5], [UNKNOWN, 5, UNKNOWN]], "1 of 2 samples have words that .* know, sample 1 first: .*'<unk>'"),
        (["a", "b"], [[5] * 9, [5]], "the longest sample has 9 tokens, .* `max_position_embeddings: 8`: what lies"),
    ],
)
def test_what_nobody_would_say_is_told(prompts: list[str], tokens: list[list[int]], message: str) -> None:
    (said,) = told(prompts, tokens)
    assert re.match(message, said), said


def test_of_ordinary_samples_nothing_is_said() -> None:
    assert told(["a", "b"], [[5, 6, EOS], [7] * 7 + [EOS]]) == []


def test_an_unknown_token_that_is_an_end_too_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "unk_token_id", EOS)  # as GPT-2's
    assert told(["a", "b"], [[5, EOS], [6, EOS]]) == []


def test_a_cpu_without_instructions_for_the_dtype_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"_is_mkldnn_bf16_supported": lambda: True, "_is_mkldnn_fp16_supported": lambda: False}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**has))
    assert told(["a", "b"], [[5, EOS], [6, EOS]], dtype=torch.bfloat16) == []
    (said,) = told(["a", "b"], [[5, EOS], [6, EOS]], dtype=torch.float16)
    assert said.startswith("this CPU has no instructions for matrices of float16, and takes about ten times as long")
