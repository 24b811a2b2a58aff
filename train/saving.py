"""What happens between the steps of a training: the order is checked, models are kept, resumption is prepared."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ordermerge.train import processes
from ordermerge.train.checkpoints import Saves
from ordermerge.train.consumed import count_repeats, interleave
from ordermerge.train.resume import Training, seal
from ordermerge.train.trainer import OrderTrainer


class Saver(TrainerCallback):
    """Follows one training.

    Args:
        trainer: The trainer, with its permutations and state directory set.
        sample_ids: The rows that the permutations index, int64 of shape [n].
        training: What is trained.
        saves: After which steps something is saved.
        keep: Writes the model of a step; called with the step by all processes.

    Attributes:
        consumed: How many samples were trained on in whole epochs, by all processes.
        repeats: How many of them were met twice in an epoch, to fill its last batches up.
        saves: After which steps something is saved.
    """

    def __init__(
        self,
        trainer: OrderTrainer,
        sample_ids: torch.Tensor,
        training: Training,
        saves: Saves,
        keep: Callable[[int], None],
    ):
        self.consumed, self.repeats = 0, 0
        self.saves = saves
        self._trainer, self._sample_ids, self._training, self._keep = trainer, sample_ids, training, keep
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the training has taken, without what an interruption lost."""
        return time.perf_counter() - self._started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Take up the notes of the checkpoint that training goes on from."""
        if state.global_step == 0:
            return
        notes = torch.load(self._notes_file(state.global_step), weights_only=True)
        self.consumed, self.repeats = notes["consumed"], notes["repeats"]
        self._started -= notes["seconds"]
        self._trainer.met.extend(notes["met"].tolist())
        # The Trainer forgets the losses since its last log line, and those before the interruption.
        self._trainer._tr_loss += notes["loss_not_logged"]
        self._trainer._total_loss_scalar = notes["loss_logged"]
        self._trainer._globalstep_last_logged = notes["last_logged"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Check the order after an epoch's last step; keep the model and ask for a checkpoint where planned."""
        if state.global_step % self._trainer.steps_per_epoch == 0:
            self._check_epoch(state.global_step // self._trainer.steps_per_epoch - 1)
        if state.global_step in self.saves.kept:
            self._keep(state.global_step)
        if state.global_step in self.saves.resumable:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Add what the Trainer does not save, and seal the checkpoint when all processes have written theirs."""
        notes = {
            "consumed": self.consumed,
            "repeats": self.repeats,
            "seconds": self.seconds,
            "met": torch.tensor(self._trainer.met, dtype=torch.int64),
            "loss_not_logged": self._trainer._tr_loss.item(),
            "loss_logged": self._trainer._total_loss_scalar,
            "last_logged": self._trainer._globalstep_last_logged,
        }
        path = self._notes_file(state.global_step)
        torch.save(notes, path)
        processes.wait()
        if processes.rank() == 0:
            seal(path.parent, self._training)

    def _check_epoch(self, epoch: int) -> None:
        args = self._trainer.args
        met = interleave(processes.gather(self._trainer.met), args.per_device_train_batch_size)
        planned = self._sample_ids[self._trainer.permutations[epoch]]
        where = f"order_{self._training.inputs['order']}, epoch {epoch}"
        self.repeats += count_repeats(met, planned, where, drop_last=args.dataloader_drop_last)
        self.consumed += len(met)
        del self._trainer.met[:]

    def _notes_file(self, step: int) -> Path:
        return self._trainer.state_directory / f"checkpoint-{step}" / f"progress_{processes.rank()}.pt"
