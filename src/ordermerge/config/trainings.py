"""The trainings of an experiment: its sub-models, its controls, and what they cost."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ordermerge.config.schema import ANNEALED, LONGER, Experiment

EPOCHS = 3  # the default of SFTConfig's `num_train_epochs`
SCHEDULE = "linear"  # the default of SFTConfig's `lr_scheduler_type`, and of `annealed`
# Schedules of transformers that end at 0, unless these arguments of theirs say otherwise.
_DECAYING = frozenset({"linear", "cosine", "cosine_with_restarts", "polynomial", "warmup_stable_decay"})
_FLOORS = ("lr_end", "min_lr_ratio")


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        folder: The name of its folder among the orders.
        order: The order whose permutations it visits the samples in.
        fields: The fields of `sft` that are its own.
        control: The control that it is a run of; None for a sub-model and the trunk.
    """

    folder: str
    order: int
    fields: dict[str, Any] = field(default_factory=dict)
    control: str | None = None


def sub_models(experiment: Experiment) -> list[Training]:
    """Return the K sub-models: all orders with the first values of what is varied, all with the next, and so on.

    Args:
        experiment: The experiment.

    Returns:
        Sub-model k has the permutations of order k % count, and combination k // count of the values.
    """
    count = experiment.orders.count
    values = [dict(zip(experiment.vary, found, strict=True)) for found in itertools.product(*experiment.vary.values())]
    return [Training(str(k), k % count, values[k // count]) for k in range(experiment.count)]


def control_runs(experiment: Experiment) -> list[Training]:
    """Return the runs of the controls; run i of a control differs from sub-model i in the control's fields alone.

    The first is named as its control, the others NAME_1, NAME_2 and so on: a larger `count` keeps those there are.

    Args:
        experiment: The experiment.
    """
    models, found = sub_models(experiment), []
    for name, section in experiment.controls.items():
        fields = section.sft
        if name == ANNEALED and "lr_scheduler_type" not in fields:
            # What another schedule was told would be refused by this one.
            told = {"lr_scheduler_kwargs": None} if "lr_scheduler_kwargs" in experiment.sft else {}
            fields = {"lr_scheduler_type": SCHEDULE, **told, **fields}
        for run, model in enumerate(models[: section.count]):
            folder = name if run == 0 else f"{name}_{run}"
            found.append(Training(folder, model.order, {**model.fields, **fields}, name))
    return found


def described(training: Training) -> str:
    """Return what tells a training from others: its permutations, and its own fields.

    Args:
        training: A sub-model or a control.
    """
    return ", ".join(
        [f"the permutations of order {training.order}", *(f"{name} {value}" for name, value in training.fields.items())]
    )


def branched_price(count: int, shared: float) -> float:
    """Return what K orders cost, in whole trainings: 1 + (K - 1)(1 - f).

    Args:
        count: K.
        shared: f, the share of a training that lies before the branch.
    """
    return 1 + (count - 1) * (1 - shared)


def shared_part(experiment: Experiment, branch: int, steps: int) -> float:
    """Return the share of a training that lies before the branch: as written, if that is a fraction.

    Args:
        experiment: The experiment.
        branch: The branch's optimizer step.
        steps: The optimizer steps of an order.
    """
    at = experiment.orders.branch_at
    return at if isinstance(at, float) else branch / steps


def epochs_of(experiment: Experiment, training: Training, shared: float) -> int:
    """Return for how many epochs something is trained; `longer` for the price of all orders, in whole epochs.

    Args:
        experiment: The experiment, without problems.
        training: A training of it.
        shared: The share of a training that all orders share, as `shared_part` gives it.
    """
    epochs = int(float(experiment.sft.get("num_train_epochs", EPOCHS)))
    if training.control == LONGER:
        return math.ceil(round(epochs * branched_price(experiment.count, shared), 6))
    return int(float(training.fields.get("num_train_epochs", epochs)))


def decays_to_zero(sft: Mapping[str, Any]) -> bool:
    """Return whether the learning rate has gone to 0 when a training ends.

    Args:
        sft: Fields of SFTConfig, without problems.
    """
    told = sft.get("lr_scheduler_kwargs")
    floors = [float(told[name]) for name in _FLOORS if name in told] if isinstance(told, Mapping) else []
    return str(sft.get("lr_scheduler_type", SCHEDULE)) in _DECAYING and not any(floors)


def lacks_annealing(experiment: Experiment) -> bool:
    """Return whether no order and no control of an order's price or less ends at a learning rate of 0.

    Args:
        experiment: An experiment without problems.
    """
    most = epochs_of(experiment, Training("", 0), 0)
    controls = [run for run in control_runs(experiment) if run.control != LONGER]
    cheap = [run for run in controls if epochs_of(experiment, run, 0) <= most]
    return not any(decays_to_zero({**experiment.sft, **one.fields}) for one in (*sub_models(experiment), *cheap))
