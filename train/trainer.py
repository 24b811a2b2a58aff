"""TRL's SFTTrainer, visiting the samples in explicit permutations."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from trl import SFTConfig, SFTTrainer

from ordermerge.train.data import SAMPLE_ID


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
        cut: Ids of the training samples that preparation cut to `max_length`.
        consumed: How many samples this process has trained on.
    """

    permutations: torch.Tensor
    cut: frozenset[int] = frozenset()
    consumed = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> OrderSampler:
        return OrderSampler(self.permutations, self._epoch_from_state)

    def _send_telemetry(self) -> None:
        """Do nothing. TRL's would tell its hub of each trainer: architecture, GPU, processes, kind of data source."""

    def _epoch_from_state(self) -> int:
        # Not from set_epoch: after a resumption it does not reach a sampler that accelerate has wrapped.
        steps_per_epoch = self.state.max_steps // self.permutations.shape[0]
        return self.state.global_step // steps_per_epoch

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
        rest = (packing, formatting_func, dataset_name)
        unlimited = copy.copy(args)
        unlimited.max_length = None
        dataset = super()._prepare_dataset(dataset, processing_class, unlimited, *rest)
        if dataset_name == "train" and args.max_length is not None:
            lengths = map(len, dataset["input_ids"])
            ids = zip(dataset[SAMPLE_ID], lengths, strict=True)
            self.cut = frozenset(sample for sample, length in ids if length > args.max_length)
        return super()._prepare_dataset(dataset, processing_class, args, *rest)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Train on a micro-batch, having counted its samples."""
        self.consumed += len(inputs["input_ids"])
        return super().training_step(model, inputs, *rest)
