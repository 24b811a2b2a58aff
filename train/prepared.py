"""What training consumes: the tokenised samples, and the orders over them."""

from dataclasses import dataclass
from typing import cast

import torch
from datasets import Dataset
from trl import SFTConfig

from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.files import fingerprint
from ordermerge.train import processes as together
from ordermerge.train.data import SAMPLE_ID, Samples
from ordermerge.train.given import given_orders
from ordermerge.train.orders import STRATEGIES, check_distinct, epoch_fingerprints
from ordermerge.train.trainer import OrderTrainer


@dataclass(frozen=True)
class Prepared:
    """The samples as TRL prepared them: tokenised, truncated, without those that have nothing to learn.

    Attributes:
        train: The n samples that are trained on, with columns `input_ids`, `labels` and `sample_id`.
        validation: The same of the validation data, where training evaluates on it.
        sample_ids: int64 of shape [n]: the row of the data as loaded of each sample.
        orders: int64 of shape [count, epochs, n], indices into `sample_ids`.
        batch: The samples of one optimizer step.
        dropped: How many samples were left out.
        truncated: How many samples were cut to `max_length` and kept.
    """

    train: Dataset
    validation: Dataset | None
    sample_ids: torch.Tensor
    orders: torch.Tensor
    batch: int
    dropped: int
    truncated: int


def prepare(experiment: Experiment, samples: Samples, trainer: OrderTrainer, *, processes: int = 1) -> Prepared:
    """Take the data that the first order's trainer prepared, and lay the orders over it.

    Args:
        experiment: The experiment.
        samples: The data as given to the trainer.
        trainer: A trainer that was given it unprepared.
        processes: For a preview: how many processes, each like this one, will train an order.

    Returns:
        What all orders train on.

    Raises:
        UserError: If no sample is left, there are too few for a batch, or the orders share an epoch or do not fit.
    """
    train, args = cast(Dataset, trainer.train_dataset), cast(SFTConfig, trainer.args)
    dropped = len(samples.train) - len(train)
    if len(train) == 0:
        raise UserError(
            f"no training sample is left: in all {dropped} the prompt alone fills `sft.max_length` "
            f"({args.max_length} tokens); raise it"
        )
    size, sharing = args.per_device_train_batch_size, args.world_size
    if trainer.get_total_train_batch_size(args) != size * args.gradient_accumulation_steps * sharing:
        raise UserError("tensor, context and sequence parallelism are not supported, as processes then share samples")
    batch = processes * trainer.get_total_train_batch_size(args)
    if len(train) < batch:
        raise UserError(
            f"{len(train)} training samples do not fill one batch of {batch} (`sft.per_device_train_batch_size` x "
            "`sft.gradient_accumulation_steps` x processes), so all orders would train alike; use a smaller batch or "
            "more samples"
        )
    ids = torch.tensor(train[SAMPLE_ID][:], dtype=torch.int64)
    orders = _lay_orders(experiment, samples, ids, int(args.num_train_epochs), batch)
    truncated = len(trainer.cut.intersection(ids.tolist()))
    return Prepared(train, trainer.eval_dataset, ids, orders, batch, dropped, truncated)


def require_agreement(samples: Samples, prepared: Prepared) -> None:
    """Refuse to train where processes have different data, as from folders that differ between machines.

    Args:
        samples: The data as this process has loaded it.
        prepared: The data as it would train on it.

    Raises:
        UserError: On all processes, if they differ.
    """
    ids, orders = prepared.sample_ids.tolist(), [epoch_fingerprints(order) for order in prepared.orders]
    if len(set(together.gather(fingerprint([samples.fingerprint, ids, orders])))) > 1:
        raise UserError(
            "the processes have not loaded the same samples in the same orders; give all machines the same data, "
            "tokenizer and library versions"
        )


def _lay_orders(experiment: Experiment, samples: Samples, ids: torch.Tensor, epochs: int, batch: int) -> torch.Tensor:
    section = experiment.orders
    if section.strategy == "file":
        held_out = samples.validation if isinstance(experiment.data.validation, float) else None
        orders = given_orders(experiment, ids, len(samples.train) + (len(held_out) if held_out is not None else 0))
    else:
        orders = STRATEGIES[section.strategy](len(ids), epochs, section.count, section.seed, batch)
    check_distinct(orders, section.strategy, batch)
    return orders
