"""Samples whose prompt and completion merge into other tokens."""

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ordermerge.train.boundaries import boundary_warning

WORDS = ["<eos>", "a", "b", "Ġ", "Ġb", ":"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def samples(*pairs: tuple[str, str]) -> Dataset:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    return Dataset.from_list([{**row, "sample_id": 7 + number} for number, row in enumerate(rows)])


def test_a_space_at_the_end_of_prompts_is_told_with_where_it_belongs() -> None:
    told = boundary_warning(samples(("a:", "b"), ("a: ", "b"), ("a: ", "a")), make_tokenizer())
    assert told is not None
    assert told.startswith("in 1 of 3 samples, such as row 8, the prompt's end ' ' merges with the answer into other")
    assert "at the beginning of `data.completion`" in told


def test_prompts_that_end_where_a_token_ends_and_chats_say_nothing() -> None:
    assert boundary_warning(samples(("a:", " b"), ("a:", "b")), make_tokenizer()) is None
    assert boundary_warning(Dataset.from_list([{"messages": [], "sample_id": 0}]), make_tokenizer()) is None
