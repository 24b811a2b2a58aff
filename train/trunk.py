"""The trunk of a branched experiment: its step, the state that each order goes on from, and what that saves."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ordermerge.errors import UserError
from ordermerge.run_directory import ORDER_RECORD
from ordermerge.stages import Step
from ordermerge.train import distributed
from ordermerge.train.checkpointing import ResumePoint, TrainingIdentity, problem_of, read_complete, state_directory
from ordermerge.train.steps import TrainStep

STATE = "state"  # in the trunk's folder, until all orders have been trained


@dataclass(frozen=True)
class TrunkStep(TrainStep):
    """The step that trains what all orders share.

    Attributes:
        tails: The folders of the orders.
    """

    tails: tuple[Path, ...] = ()

    def is_done(self) -> bool:
        """Return whether it was finished with just these inputs, and no order still needs a state that is gone.

        Raises:
            UserError: As `Step.is_done` does.
        """
        return super().is_done() and (branch_state(self.output) is not None or self.is_used_up())

    def is_used_up(self) -> bool:
        """Return whether all orders have been trained."""
        return all((tail / ORDER_RECORD).exists() for tail in self.tails)


def branch_state(trunk: Path) -> Path | None:
    """Return the training checkpoint at the branch, None if it is gone.

    Args:
        trunk: The trunk's folder.
    """
    return next((trunk / STATE).glob("checkpoint-*"), None)


def branch_point(trunk: Path, training: TrainingIdentity) -> ResumePoint:
    """Return where an order begins that goes on from the trunk.

    Args:
        trunk: The trunk's folder.
        training: What is to be trained.

    Raises:
        UserError: If its state is damaged, or of another number of processes.
    """
    checkpoint = branch_state(trunk)
    noted = read_complete(checkpoint) if checkpoint else None
    flaw = problem_of(checkpoint) if checkpoint else "its state is gone"
    if checkpoint is None or noted is None or flaw:
        raise UserError(f"no order can go on from {trunk}: {flaw}; delete that folder to train the trunk again")
    if noted["processes"] != training.processes:
        raise UserError(
            f"{trunk} was trained over {noted['processes']} processes, which {training.processes} cannot go on with; "
            f"start {noted['processes']}, or delete that folder to train the trunk again"
        )
    step = checkpoint.name.removeprefix("checkpoint-")
    return ResumePoint(checkpoint, 0, noted["threads"], [f"goes on from the trunk, which ends after step {step}"])


def keep_state(partial: Path, step: int) -> None:
    """Move the training checkpoint at the branch into the trunk's folder; for the main process alone.

    Args:
        partial: The folder that is filled.
        step: The branch's.
    """
    (partial / STATE).mkdir()
    name = f"checkpoint-{step}"
    os.replace(state_directory(partial) / name, partial / STATE / name)


def restore_state(partial: Path) -> None:
    """Move the state of an interrupted trunk back, where `keep_state` was its last act; for the main process alone.

    Args:
        partial: The folder that is filled.
    """
    for checkpoint in (partial / STATE).glob("checkpoint-*"):
        os.replace(checkpoint, state_directory(partial) / checkpoint.name)


def remove_used_states(steps: Sequence[Step]) -> None:
    """Remove the state of trunks that all orders have gone on from, on the main process.

    Args:
        steps: Any steps.
    """
    for step in steps:
        if isinstance(step, TrunkStep) and step.is_used_up() and distributed.rank() == 0:
            shutil.rmtree(step.output / STATE, ignore_errors=True)
