"""The loss of each sample under a model: the mean over the tokens that it is there to teach."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label of a token that is not learnt, as everywhere in transformers
BATCH_TOKENS = 4096
_CHUNK_VALUES = 2**25  # float32 logits at a time: 128 MiB

Rows = Sequence[Sequence[int] | np.ndarray]


def count_learnt(labels: Rows) -> torch.Tensor:
    """Return how many tokens of each sample are learnt; the first token of all is never predicted.

    Args:
        labels: For each sample its labels, -100 where there is nothing to learn.

    Returns:
        int64 of shape [n].
    """
    return torch.tensor([np.count_nonzero(np.asarray(row)[1:] != IGNORED) for row in labels], dtype=torch.int64)


def sample_losses(
    model: Any,
    input_ids: Rows,
    labels: Rows,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Return each sample's mean cross-entropy over its learnt tokens, in nats.

    The model runs in its own dtype; the softmax is in float32, and of the learnt positions only.

    Args:
        model: A causal language model of transformers, or a PEFT model around one, in evaluation mode.
        input_ids: For each of n samples its tokens.
        labels: For each sample its labels, as long as its tokens, -100 where there is nothing to learn.
        batch_tokens: Most tokens, padding included, in a batch; a longer sample is a batch of its own.
        progress: Called with the number of samples after each batch.

    Returns:
        float64 of shape [n], on the CPU; NaN for a sample without a learnt token.
    """
    sums = torch.zeros(len(input_ids), dtype=torch.float64)
    for batch in plan_batches([len(row) for row in input_ids], batch_tokens):
        rows, values = _token_losses(model, [input_ids[i] for i in batch], [labels[i] for i in batch])
        sums.index_add_(0, torch.tensor(batch)[rows], values)
        if progress is not None:
            progress(len(batch))
    return sums / count_learnt(labels)  # 0 / 0 is NaN


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return batches of samples of like length, the longest first: what does not fit in memory shows at once.

    Args:
        lengths: Tokens of each sample.
        batch_tokens: Most tokens, padding included, in a batch.

    Returns:
        Indices of samples.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


@torch.inference_mode()
def _token_losses(model: Any, input_ids: Rows, labels: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row and the loss of each learnt token of a batch, on the CPU."""
    device = next(model.parameters()).device
    ids = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in input_ids], batch_first=True).to(device)
    padded = pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in labels], batch_first=True, padding_value=IGNORED
    )
    lengths = torch.tensor([len(row) for row in input_ids])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device) if lengths.unique().numel() > 1 else None
    targets = padded[:, 1:]
    positions = (targets != IGNORED).any(dim=0).nonzero().flatten()  # the columns where some sample learns
    targets = targets[:, positions]
    logits = _logits(model, ids, mask, positions.to(device))
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    step = max(1, _CHUNK_VALUES // logits.shape[-1])
    losses = [
        cross_entropy(logits[r, c].float(), targets[r, c].to(device), reduction="none")
        for r, c in zip(rows.split(step), columns.split(step), strict=True)
    ]
    return rows, torch.cat(losses).cpu().double()


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
    """Return the logits at some positions, [batch, positions, vocabulary]; no others are made where the model can."""
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        return model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions).logits
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, positions]
