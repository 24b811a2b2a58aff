"""Trainer callbacks: the order is checked, models are kept, resumption is prepared, progress is shown."""

import math
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ordermerge.errors import UserError
from ordermerge.progress import ProgressLine, describe_rate, describe_time
from ordermerge.train import distributed
from ordermerge.train.checkpointing import Saves, TrainingIdentity, mark_complete
from ordermerge.train.trainer import OrderTrainer

_FEWEST_LOSSES, _RISEN = 3, 1.5  # so many losses logged, and so many times the first: a rise, no noise
_TENTH_SECONDS = 1  # between lines of a log file, at least: one for each tenth of an order, or each minute


class Saver(TrainerCallback):
    """Follows one training.

    Args:
        name: Of what is trained, for messages.
        trainer: The trainer, with its permutations and state directory set.
        sample_ids: The rows that the permutations index, int64 of shape [n].
        training: What is trained.
        saves: After which steps something is saved.
        keep: Writes the model of a step; called with the step by all processes.
        begin: The training checkpoint that training goes on from, if it does.
        end: The step to stop after, if not the last.

    Attributes:
        consumed: How many samples were trained on in whole epochs, by all processes.
        repeats: How many of them were met twice in an epoch, to fill its last batches up.
        saves: After which steps something is saved.
    """

    def __init__(
        self,
        name: str,
        trainer: OrderTrainer,
        sample_ids: torch.Tensor,
        training: TrainingIdentity,
        saves: Saves,
        keep: Callable[[int], None],
        *,
        begin: Path | None = None,
        end: int | None = None,
    ):
        self.consumed, self.repeats = 0, 0
        self.saves = saves
        self._trainer, self._sample_ids, self._training, self._keep = trainer, sample_ids, training, keep
        self._name, self._begin, self._end = name, begin, end
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the training has taken, without what an interruption lost."""
        return time.perf_counter() - self._started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Take up the notes of the checkpoint that training goes on from."""
        if self._begin is None:
            return
        args.eval_on_start = False  # this is no start
        notes = torch.load(self._notes_file(self._begin), weights_only=True)
        self.consumed, self.repeats = notes["consumed"], notes["repeats"]
        self._started -= notes["seconds"]
        self._trainer.seen_ids.extend(notes["met"].tolist())
        # The Trainer forgets the losses since its last log line, and those before the interruption.
        self._trainer._tr_loss += notes["loss_not_logged"]
        self._trainer._total_loss_scalar = notes["loss_logged"]
        self._trainer._globalstep_last_logged = notes["last_logged"]

    def take_up_end(self) -> None:
        """Take up the training checkpoint that it goes on from as the end of the training."""
        assert self._begin is not None
        trainer = self._trainer
        trainer.state = TrainerState.load_from_json(str(self._begin / TRAINER_STATE_NAME))
        trainer._tr_loss = torch.tensor(0.0)
        self.on_train_begin(trainer.args, trainer.state, trainer.control)
        trainer._total_loss_scalar += trainer._tr_loss.item()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Check the order after an epoch's last step; keep the model and ask for a checkpoint where planned."""
        if state.global_step % self._trainer.steps_per_epoch == 0:
            self._check_epoch(state.global_step // self._trainer.steps_per_epoch - 1)
        if state.global_step in self.saves.kept:
            self._keep(state.global_step)
        # At the end of an epoch its evaluation is still to come, which draws from the generator that dropout uses.
        if state.global_step in self.saves.resumable and state.global_step % self._trainer.steps_per_epoch:
            control.should_save = True
        if state.global_step == self._end:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Ask for a checkpoint where planned; it is written after the evaluation."""
        if state.global_step % self._trainer.steps_per_epoch:  # a trunk's end is none of an epoch's
            control.should_log = control.should_evaluate = False
        elif state.global_step in self.saves.resumable:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Add what the Trainer does not save, and mark the checkpoint complete once all have written."""
        notes = {
            "consumed": self.consumed,
            "repeats": self.repeats,
            "seconds": self.seconds,
            "met": torch.tensor(self._trainer.seen_ids, dtype=torch.int64),
            "loss_not_logged": self._trainer._tr_loss.item(),
            "loss_logged": self._trainer._total_loss_scalar,
            "last_logged": self._trainer._globalstep_last_logged,
        }
        path = self._notes_file(self._trainer.state_directory / f"checkpoint-{state.global_step}")
        torch.save(notes, path)
        distributed.wait()
        if distributed.rank() == 0:
            mark_complete(path.parent, self._training)

    def _check_epoch(self, epoch: int) -> None:
        args = self._trainer.args
        met = interleave(distributed.gather(self._trainer.seen_ids), args.per_device_train_batch_size)
        planned = self._sample_ids[self._trainer.permutations[epoch]]
        where = f"{self._name}, epoch {epoch}"
        self.repeats += count_repeats(met, planned, where, drop_last=args.dataloader_drop_last)
        self.consumed += len(met)
        del self._trainer.seen_ids[:]

    @staticmethod
    def _notes_file(checkpoint: Path) -> Path:
        return checkpoint / f"progress_{distributed.rank()}.pt"


class Progress(TrainerCallback):
    """Says how far an order is, and how long it and all orders will take.

    Args:
        name: The order's name.
        position: Which of the orders it is, from 1 on.
        count: How many orders are trained one after the other.
        stream: Where to write.
        live: Whether to write one line over and over; by default whether someone watches.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        name: str,
        position: int,
        count: int,
        *,
        stream: TextIO | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._name, self._position, self._count = name, position, count
        self._line = ProgressLine(stream=stream, live=live, clock=clock)
        self._loss: float | None = None
        self._losses: list[float] = []
        self._told = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note when training starts, and at which step: a resumed run does not begin at 0."""
        self._began = self._line.start()
        self._first = state.global_step
        self._tenth = 10 * state.global_step // state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Note the last loss.

        Raises:
            UserError: If it is no number, which no further step can mend.
        """
        given = logs or {}
        self._loss = given.get("loss", given.get("train_loss", self._loss))  # the mean comes last
        if "loss" in given and self._loss is not None:
            self._warn_of_rise(self._loss, state)
        # With fp16 autocast, a step that overflows is left out and the next one tried with a smaller scale.
        if self._loss is not None and not math.isfinite(self._loss) and not args.fp16:
            raise UserError(
                f"{self._name}: the loss is {self._loss} at step {state.global_step} of {state.max_steps}; lower "
                "`sft.learning_rate`, or train in a dtype of wider range (`model.dtype: float32` or bfloat16)"
            )

    def _warn_of_rise(self, loss: float, state: TrainerState) -> None:
        """Say once if the loss has risen since the first one logged, when a tenth of the training is over."""
        self._losses.append(loss)
        few = len(self._losses) < _FEWEST_LOSSES or 10 * state.global_step < state.max_steps
        if few or self._told or not state.is_world_process_zero:
            return
        self._told = True
        if loss > _RISEN * self._losses[0]:
            self._line.clear()
            distributed.say(
                f"warning: {self._name}: the loss has risen from {self._losses[0]:.3g} to {loss:.3g} in the first "
                f"{state.global_step} of {state.max_steps} steps; `sft.learning_rate` may be too high"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write a line if one is due."""
        if not state.is_world_process_zero:
            return
        now, tenth = self._line.clock(), 10 * state.global_step // state.max_steps
        if not (self._line.is_due(now, _TENTH_SECONDS) if tenth != self._tenth else self._line.is_due(now)):
            return
        self._tenth = tenth
        rate = (state.global_step - self._first) / max(now - self._began, 1e-9)
        line = describe_progress(state.global_step, state.max_steps, rate, self._loss, self._count - self._position)
        self._line.write(f"{self._name} {self._position}/{self._count}: {line}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Clear the live line."""
        if state.is_world_process_zero:
            self._line.clear()


class EndRun(TrainerCallback):
    """Ends Weights & Biases' run with its order: transformers leaves it open, and the next order would go on in it.

    To be added after the loggers' own callbacks.
    """

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run, if there is one."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.finish()


def interleave(streams: Sequence[array], batch: int) -> torch.Tensor:
    """Return the ids that all processes met, in the order of the global stream.

    accelerate deals an epoch's batches out in turn: of P processes, process p gets batches p, p + P, p + 2P and so on.

    Args:
        streams: The ids that each process met, by rank.
        batch: Samples per batch of one process; only a process that is alone has a shorter one, its last.

    Returns:
        int64 of shape [sum of the streams' lengths].
    """
    if len(streams) == 1:
        return torch.tensor(streams[0], dtype=torch.int64)
    rows = [torch.tensor(stream, dtype=torch.int64).view(-1, batch) for stream in streams]
    return torch.stack(rows, dim=1).flatten()


def count_repeats(consumed: torch.Tensor, planned: torch.Tensor, where: str, *, drop_last: bool) -> int:
    """Check an epoch's order, and return how many samples were met twice to fill the last batches up.

    Args:
        consumed: Ids in the order met, int64 of shape [m].
        planned: Ids in the order planned, int64 of shape [n]; all different.
        where: Names the order and the epoch, for the message.
        drop_last: Whether the end of the plan may be left out.

    Returns:
        m - n, or 0 where less than n samples were met.

    Raises:
        UserError: If they differ.
    """
    common = min(len(consumed), len(planned))
    different = (consumed[:common] != planned[:common]).nonzero()
    if len(different):
        place = int(different[0])
        raise UserError(
            f"{where}: training met the samples in another order than planned: at position {place} sample "
            f"{int(consumed[place])} instead of {int(planned[place])}. The order is not kept. This is a fault of "
            "ordermerge or of a library version that it was not tried with; please report it"
        )
    if common < len(planned) and not drop_last:
        raise UserError(
            f"{where}: training met only {common} of {len(planned)} samples. The order is not kept. This is a fault of "
            "ordermerge or of a library version that it was not tried with; please report it"
        )
    return len(consumed) - common


def describe_progress(step: int, steps: int, rate: float, loss: float | None, orders_after: int) -> str:
    """Return one line on how far an order is and how long the rest takes.

    Args:
        step: Optimizer steps done.
        steps: Of how many.
        rate: Steps per second.
        loss: The last logged loss, if there is one.
        orders_after: How many orders as long as this one are still to come.
    """
    left = (steps - step) / rate
    parts = [f"{step}/{steps} ({100 * step // steps} %)"]
    if loss is not None:
        parts.append(f"loss {loss:.3g}")
    parts += [describe_rate(rate, "step"), f"{describe_time(left)} left"]
    if orders_after:
        parts.append(f"{describe_time(left + orders_after * steps / rate)} all")
    return ", ".join(parts)
