"""Which steps of a training are saved, and how much disk that takes."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ordermerge.experiment import Experiment
from ordermerge.sections import CheckpointsSection
from ordermerge.space import require_space
from ordermerge.train.processes import say

KEPT = "checkpoints"  # folder in a sub-model's, with a folder `step-N` for each


@dataclass(frozen=True)
class Saves:
    """The steps of a training after which something is saved; never the last, whose model is the sub-model itself.

    Attributes:
        kept: After these the model is kept.
        resumable: After these is saved what an interrupted training goes on from.
    """

    kept: frozenset[int]
    resumable: frozenset[int]


def plan_saves(section: CheckpointsSection, steps: int, epochs: int) -> Saves:
    """Return after which steps something is saved.

    Args:
        section: The experiment's `checkpoints`.
        steps: The number of steps in the whole training.
        epochs: The number of epochs in it.
    """
    kept = _marks(section.every, steps) if section.every is not None else frozenset()
    return Saves(kept, _marks(section.resume_every or steps // epochs, steps))


def disk_needed(experiment: Experiment, model: nn.Module, saves: Saves, orders: int) -> int:
    """Return how many bytes of disk the training of some orders takes at its height.

    Args:
        experiment: The experiment.
        model: The model to be trained, with its adapter if it has one.
        saves: What is saved of each training.
        orders: How many orders are to be trained, one after the other.
    """
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in model.parameters()]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    # AdamW holds two numbers for each weight; training checkpoints of a model with an adapter hold the adapter alone.
    state = (whole if experiment.lora is None else trained) + 2 * trained
    at_once = min(len(saves.resumable), 2)  # one is removed when the next is whole
    return orders * (1 + len(saves.kept)) * (trained if experiment.saves_adapters else whole) + at_once * state


def require_disk(needed: int, saves: Saves, directory: Path, orders: int) -> None:
    """Say how much disk a training takes, and refuse it if that is not free.

    Args:
        needed: Bytes.
        saves: What is saved of each training.
        directory: Where it is saved.
        orders: How many orders are to be trained, one after the other.

    Raises:
        UserError: If it is not free.
    """
    require_space(directory, needed, f"training {orders} sub-models")
    kept = f", with {len(saves.kept)} checkpoints of each" if saves.kept else ""
    resumable = ", and what an interrupted order goes on from" if saves.resumable else ""
    say(f"training {orders} sub-models{kept}{resumable}, takes up to {needed / 1e9:.3g} GB of disk")


def _marks(every: int | float, steps: int) -> frozenset[int]:
    """Return each multiple of a number of steps, or of a fraction of all steps, below the last."""
    interval = every if isinstance(every, int) else every * steps
    marks = (round(interval * i) for i in range(1, int(steps / interval) + 1))
    return frozenset(step for step in marks if 0 < step < steps)
