"""What is known of an order before it is trained, for its record and for the user."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from ordermerge.experiment import Experiment
from ordermerge.train.base import BaseModel
from ordermerge.train.data import Samples
from ordermerge.train.orders import epoch_fingerprints
from ordermerge.train.prepared import Prepared
from ordermerge.train.settings import TRAINING_SEED


def describe(experiment: Experiment, order: int, samples: Samples, prepared: Prepared) -> dict[str, Any]:
    """Return the part of an order's record that is known before it is trained.

    Args:
        experiment: The experiment.
        order: The order's number.
        samples: The data as loaded.
        prepared: The data as trained on.
    """
    return {
        "order": order,
        "count": experiment.orders.count,
        "strategy": experiment.orders.strategy,
        "seed": experiment.orders.seed,
        "epochs": prepared.orders.shape[1],
        "samples": len(prepared.train),
        "dropped": prepared.dropped,
        "truncated": prepared.truncated,
        "empty": samples.empty,
        "duplicates": samples.duplicates,
        "dataset_fingerprint": samples.fingerprint,
        "epoch_fingerprints": epoch_fingerprints(prepared.orders[order]),
        "training_seed": TRAINING_SEED,
    }


def warnings(samples: Samples, prepared: Prepared, base: BaseModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what the user may not expect of the data, one sentence each.

    Args:
        samples: The data as loaded.
        prepared: The data as trained on.
        base: The base model.
        tokenizer: Its tokenizer.
    """
    total, found = len(samples.train), []
    if prepared.dropped:
        found.append(
            f"{prepared.dropped} of {total} samples dropped: within `sft.max_length` they have nothing to learn"
        )
    if prepared.truncated:
        found.append(f"{prepared.truncated} of {total} samples cut to `sft.max_length`: their end is not learnt")
    if samples.empty:
        found.append(f"{samples.empty} of {total} samples have an empty answer: they teach to answer nothing")
    if samples.duplicates:
        found.append(f"{samples.duplicates} of {total} samples are exact copies of an earlier one; all are trained on")
    ends = base.generation_config.eos_token_id if base.generation_config is not None else None
    if tokenizer.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        found.append(
            f"samples end with the tokenizer's {tokenizer.eos_token!r} ({tokenizer.eos_token_id}), but the base "
            f"model's generation config stops at {ends}: generation may not stop"
        )
    return found
