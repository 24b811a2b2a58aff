"""Packs: several samples as one sequence, which then moves as one, and what tells whether they see each other."""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from trl import pack_dataset

from ordermerge.errors import UserError
from ordermerge.train.samples import SAMPLE_ID
from ordermerge.train.sft_config import PACKING


@dataclass(frozen=True)
class Packs:
    """Which sample is in which pack, the same in all orders.

    Attributes:
        sample_ids: int64 of shape [n]: the row of the data as loaded of each sample.
        packs: int64 of shape [n]: the pack of each.
    """

    sample_ids: torch.Tensor
    packs: torch.Tensor


def pack_samples(dataset: Dataset, length: int) -> tuple[Dataset, Packs]:
    """Pack samples by TRL's best-fit-decreasing packing, and note which went where.

    Args:
        dataset: Columns `input_ids`, `labels` and `sample_id`; no sample is longer than `length`.
        length: Most tokens of a pack.

    Returns:
        A row for each pack, whose `sample_id` is the pack's number, with the lengths of its samples; and the packs.
    """
    rows = [[row] * len(tokens) for row, tokens in zip(dataset[SAMPLE_ID], dataset["input_ids"], strict=True)]
    # By token, as TRL packs lists only.
    marked = dataset.select_columns(["input_ids", "labels"]).add_column(SAMPLE_ID, rows)
    packed = pack_dataset(marked, length, PACKING)
    pack_of = {row: pack for pack, marks in enumerate(packed[SAMPLE_ID]) for row in marks}
    ids = list(dataset[SAMPLE_ID])
    numbered = packed.remove_columns(SAMPLE_ID).add_column(SAMPLE_ID, list(range(len(packed))))
    return numbered, Packs(torch.tensor(ids), torch.tensor([pack_of[row] for row in ids]))


@torch.no_grad()
def require_apart(model: Any) -> None:
    """Refuse a model in which a sample sees the one before it in its pack, or its position there: tried on two.

    Args:
        model: The model to be trained.

    Raises:
        UserError: If its logits are others behind another sample, or are not those of the sample alone.
    """
    rows, training = model.config.get_text_config().vocab_size, model.training
    first, other, second = (torch.arange(start, start + 8) % rows for start in (0, 3, 5))

    def logits(*samples: torch.Tensor) -> torch.Tensor:
        places = torch.cat([torch.arange(len(sample)) for sample in samples])
        inputs = {"input_ids": torch.cat(samples)[None], "position_ids": places[None]}
        found = model(**{name: of.to(model.device) for name, of in inputs.items()}, use_cache=False).logits
        return found[0, -len(second) :].float()

    model.eval()
    try:
        alone, behind, behind_other = logits(second), logits(first, second), logits(other, second)
        scale = float(alone.abs().max())
        tolerance = scale * (1e-4 if model.dtype == torch.float32 else 3e-2)  # bfloat16 keeps 8 bits
        if (behind - behind_other).abs().max() <= scale * 1e-5 and (behind - alone).abs().max() <= tolerance:
            return
    except (TypeError, ValueError):  # it takes no positions
        pass
    finally:
        model.train(training)
    attention = getattr(model.config, "_attn_implementation", None)
    raise UserError(
        f"`orders.unit: pack`: {model.config.model_type} with attention `{attention}` lets a sample see the one "
        "before it in its pack, so that its loss is not its own; set `sft.model_init_kwargs: {attn_implementation: "
        "...}` to one that keeps them apart, or train on samples (`unit: sample`, without `packing`)"
    )
