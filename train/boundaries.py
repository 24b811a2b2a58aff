"""Where a prompt ends and its completion begins, in tokens: samples whose tokens merge across that boundary."""

from collections.abc import Iterator

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ordermerge.train.samples import SAMPLE_ID

_AT_ONCE = 1000  # samples


def boundary_warning(samples: Dataset, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a sentence if tokens merge across the end of prompts: the model then learns another context than it meets.

    Args:
        samples: Columns `prompt`, `completion` and `sample_id`; of chats nothing is said.
        tokenizer: The base model's.
    """
    if "prompt" not in samples.column_names:
        return None
    merged = list(_merged(samples, tokenizer))
    if not merged:
        return None
    row, end = merged[0]
    return (
        f"in {len(merged)} of {len(samples)} samples, such as row {row}, the prompt's end {end!r} merges with the "
        "answer into other tokens than it has when the model is asked. Put the space that ends `data.prompt` at the "
        "beginning of `data.completion` instead, or end the prompt with a line break"
    )


def _merged(samples: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, str]]:
    """Yield row, and the end of the prompt that is other tokens there, of each such sample."""
    for begin in range(0, len(samples), _AT_ONCE):
        part = samples[begin : begin + _AT_ONCE]
        prompts = tokenizer(text=part["prompt"])["input_ids"]
        whole = tokenizer(text=[a + b for a, b in zip(part["prompt"], part["completion"], strict=True)])["input_ids"]
        for row, prompt, tokens in zip(part[SAMPLE_ID], prompts, whole, strict=True):
            if tokens[: len(prompt)] != prompt:
                same = next(i for i, token in enumerate(prompt) if tokens[i : i + 1] != [token])
                yield row, str(tokenizer.decode(prompt[same:]))
