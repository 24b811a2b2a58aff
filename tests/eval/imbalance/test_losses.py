"""Losses of samples: the mean over learnt tokens, whatever is batched, padded or chunked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ordermerge.eval.imbalance import losses as losses_module
from ordermerge.eval.imbalance.losses import count_learnt, plan_batches, sample_losses


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, make_family: Callable[..., list[Path]]) -> Any:
    base = make_family(request.param, count=0, dtype=torch.float32)[0]
    return transformers.AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def rows() -> tuple[list[list[int]], list[list[int]]]:
    """Return samples of many lengths that teach their end, all, parts of the middle, one token, the first or none."""
    draw = torch.Generator().manual_seed(0)
    lengths = [7, 3, 12, 12, 5, 40, 2, 9, 9, 6]
    input_ids = [torch.randint(3, 40, (length,), generator=draw).tolist() for length in lengths]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in input_ids]
    labels[1] = list(input_ids[1])
    labels[2] = [label if i in (2, 3, 9) else -100 for i, label in enumerate(input_ids[2])]
    labels[4] = [*[-100] * 4, input_ids[4][4]]
    labels[7] = [input_ids[7][0], *[-100] * 8]
    labels[8] = [-100] * 9
    return input_ids, labels


def one_by_one(model: Any, input_ids: list[list[int]], labels: list[list[int]]) -> torch.Tensor:
    means = []
    for ids, wanted in zip(input_ids, labels, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        learnt = [i for i in range(1, len(ids)) if wanted[i] != -100]
        values = [torch.logsumexp(logits[i - 1], 0) - logits[i - 1, wanted[i]] for i in learnt]
        means.append(sum(values, torch.tensor(0.0)) / len(values) if values else torch.tensor(float("nan")))
    return torch.stack(means).double()


@pytest.mark.parametrize("batch_tokens", [1, 24, 8192])
def test_losses_are_the_means_over_learnt_tokens_in_any_batches(model: Any, rows: Any, batch_tokens: int) -> None:
    expected = one_by_one(model, *rows)
    assert expected.isnan().tolist() == [i in (7, 8) for i in range(10)]
    seen: list[int] = []
    found = sample_losses(model, *rows, batch_tokens=batch_tokens, progress=seen.append)
    assert found.dtype == torch.float64
    # float32 forward passes of different shapes differ by rounding.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)
    assert sum(seen) == 10


def test_counts_leave_out_the_first_token(rows: Any) -> None:
    assert count_learnt(rows[1]).tolist() == [4, 2, 3, 6, 1, 20, 1, 0, 0, 3]


def test_logits_are_made_where_something_is_learnt_only(model: Any, rows: Any) -> None:
    made: list[int] = []
    head = model.get_output_embeddings().register_forward_hook(
        lambda _, given, __: made.append(given[0].shape[:2].numel())
    )
    try:
        sample_losses(model, *rows, batch_tokens=1)
    finally:
        head.remove()
    assert sum(made) == count_learnt(rows[1]).sum()


def test_chunks_of_logits_give_the_same(model: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_losses(model, *rows)
    monkeypatch.setattr(losses_module, "_CHUNK_VALUES", 100)  # two or three positions
    torch.testing.assert_close(sample_losses(model, *rows), whole, atol=1e-6, rtol=0, equal_nan=True)


def test_a_model_that_cannot_keep_logits_gives_the_same(model: Any, rows: Any) -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    torch.testing.assert_close(sample_losses(Plain(), *rows), sample_losses(model, *rows), equal_nan=True)


def test_softmax_is_in_float32_whatever_the_weights(model: Any, rows: Any) -> None:
    small = transformers.AutoModelForCausalLM.from_config(model.config).to(torch.bfloat16).eval()
    found = sample_losses(small, *rows, batch_tokens=1)
    # The logits are the bfloat16 model's; from these on, nothing is rounded to its 8 bits.
    torch.testing.assert_close(found, one_by_one(small, *rows), atol=1e-5, rtol=0, equal_nan=True)


def test_batches_are_of_like_length_and_hold_every_sample() -> None:
    assert plan_batches([3, 9, 4, 3, 20, 1], 10) == [[4], [1], [2, 0], [3, 5]]
    assert plan_batches([], 10) == []
