"""The step of a training: of a sub-model, a control or the trunk."""

from dataclasses import dataclass, field

from ordermerge.config.schema import CheckpointsSection, Experiment
from ordermerge.config.trainings import Training
from ordermerge.stages import Step


@dataclass(frozen=True)
class TrainStep(Step):
    """The step of one training.

    Attributes:
        experiment: The experiment, with the `sft` fields of this training.
        training: What is trained.
    """

    experiment: Experiment = field(kw_only=True, repr=False, compare=False)
    training: Training = field(kw_only=True)


def experiment_of(experiment: Experiment, training: Training) -> Experiment:
    """Return an experiment with the `sft` fields of one of its trainings; of a control only the end is kept.

    Args:
        experiment: The experiment.
        training: The training.
    """
    changes: dict[str, object] = {"sft": {**experiment.sft, **training.fields}}
    if training.control is not None:
        changes["checkpoints"] = CheckpointsSection(resume_every=experiment.checkpoints.resume_every)
    return experiment.model_copy(update=changes)
