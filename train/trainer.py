"""TRL's SFTTrainer, visiting the samples in explicit permutations, and noting which samples it really met."""

import copy
import operator
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from ordermerge.train.chats import CHAT, tokenise_chats
from ordermerge.train.packing import Packs, pack_samples
from ordermerge.train.samples import SAMPLE_ID

# What is overridden, called, read or written here and in the modules around of the trainers' private members; another
# release of transformers or TRL may do without them and say nothing.
PRIVATE_METHODS = (
    "_get_output_dir",
    "_get_train_sampler",
    "_prepare_dataset",
    "_save",
    "_save_checkpoint",
    "_send_telemetry",
    "_set_signature_columns_if_needed",
)
PRIVATE_STATE = ("_globalstep_last_logged", "_signature_columns", "_total_loss_scalar", "_tr_loss")
PRIVATE_ARGUMENTS = ("_n_gpu",)


class OrderSampler(Sampler[int]):
    """Yields an epoch's permutation.

    Args:
        permutations: int64 of shape [epochs, samples].
        epoch: Tells which epoch begins; asked each time the sampler is iterated.
    """

    def __init__(self, permutations: torch.Tensor, epoch: Callable[[], int]):
        self._permutations = permutations
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._permutations[self._epoch()].tolist())

    def __len__(self) -> int:
        return self._permutations.shape[1]


class OrderTrainer(SFTTrainer):
    """An SFTTrainer that takes its order from `permutations`, to be set before `train`.

    Attributes:
        permutations: int64 of shape [epochs, samples], indices into the prepared training data.
        state_directory: Where training checkpoints go, to be set where any are asked for.
        truncated_ids: Ids of the training samples that preparation cut to `max_length`.
        packs: Which of them are in which pack, where packs are trained on; then a sample's id is the pack's number.
        seen_ids: Ids of the samples that this process trained on in the epoch under way, as int64.
    """

    permutations: torch.Tensor
    state_directory: Path
    truncated_ids: frozenset[int] = frozenset()
    packs: Packs | None = None

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.seen_ids = array("q")
        self.data_collator = _IdCollator(self.data_collator)

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps in an epoch, once `train` has begun."""
        return self.state.max_steps // self.permutations.shape[0]

    def count_steps(self) -> int:
        """Return how many optimizer steps the training will take."""
        epochs, samples = self.permutations.shape
        return epochs * steps_over(self.args, samples)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Return the batches of an optimizer step, having noted the ids of their samples and taken them out."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self.seen_ids.extend(batch.pop(SAMPLE_ID))
        return batches, items

    def prediction_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Evaluate a batch, without its samples' ids."""
        inputs.pop(SAMPLE_ID)
        return super().prediction_step(model, inputs, *rest, **named)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> OrderSampler:
        return OrderSampler(self.permutations, self._epoch_from_state)

    def _send_telemetry(self) -> None:
        """Do nothing. TRL's would tell its hub of each trainer: architecture, GPU, processes, kind of data source."""

    def _epoch_from_state(self) -> int:
        # Not from set_epoch: after a resumption it does not reach a sampler that accelerate has wrapped.
        return self.state.global_step // self.steps_per_epoch

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        if SAMPLE_ID not in columns:
            columns.append(SAMPLE_ID)  # kept up to the collator

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.state_directory)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # SFTTrainer's also writes a model card

    def _prepare_dataset(
        self,
        dataset: Dataset,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Callable[[dict[str, Any]], str] | None,
        dataset_name: str,
    ) -> Dataset:
        # First without a limit, as the lengths before truncation are seen nowhere else; what has its tokens and labels
        # already is only truncated the second time.
        if CHAT in dataset.column_names:
            processes, only = args.dataset_num_proc, args.assistant_only_loss
            dataset = tokenise_chats(
                dataset, processing_class, template=self.chat_template, assistant_only=only, processes=processes
            )
        rest = (False, formatting_func, dataset_name)  # packed below, where it can be noted what went where
        unlimited = copy.copy(args)
        unlimited.max_length = None
        dataset = super()._prepare_dataset(dataset, processing_class, unlimited, *rest)
        if dataset_name == "train" and args.max_length is not None:
            lengths = map(len, dataset["input_ids"])
            ids = zip(dataset[SAMPLE_ID], lengths, strict=True)
            self.truncated_ids = frozenset(sample for sample, length in ids if length > args.max_length)
        dataset = super()._prepare_dataset(dataset, processing_class, args, *rest)
        if packing and dataset_name == "train" and len(dataset):
            assert args.max_length is not None  # `check_sft` asks for it with packing
            dataset, self.packs = pack_samples(dataset, args.max_length)
        return dataset


def steps_over(args: TrainingArguments, samples: int, processes: int = 1) -> int:
    """Return how many optimizer steps an epoch takes.

    Args:
        args: The trainer's arguments.
        samples: How many samples the epoch has.
        processes: For a preview: how many processes, each like this one, will share it.
    """
    divide = operator.floordiv if args.dataloader_drop_last else ceil_divide
    batches = divide(divide(samples, args.per_device_train_batch_size), processes * args.world_size)
    return ceil_divide(batches, args.gradient_accumulation_steps)


def ceil_divide(number: int, by: int) -> int:
    """Return a quotient of positive numbers, rounded up."""
    return -(-number // by)


class _IdCollator:
    """Collates as another collator does, and passes the samples' ids on.

    They stay Python numbers: the loader would move a tensor to the GPU, and reading it there would wait for the GPU.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]):
        self._collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(examples)
        return {**batch, SAMPLE_ID: [example[SAMPLE_ID] for example in examples]}
