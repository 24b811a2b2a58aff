"""The step of a training: of a sub-model, a control or the trunk."""

from dataclasses import dataclass, field

from ordermerge.config.schema import CheckpointsSection, Experiment
from ordermerge.config.trainings import Training
from ordermerge.files import fingerprint
from ordermerge.stages import Marker, Step

PRICE_OF = "price_of"  # in the inputs of `longer`: how many orders it costs as much as


@dataclass(frozen=True)
class TrainStep(Step):
    """The step of one training.

    Attributes:
        experiment: The experiment, with the `sft` fields of this training.
        training: What is trained.
    """

    experiment: Experiment = field(kw_only=True, repr=False, compare=False)
    training: Training = field(kw_only=True)

    def adds_to(self, record: Marker) -> bool:
        """Return whether orders were added and nothing else changed: `longer` then has a higher price to match.

        Args:
            record: What its marker holds.
        """
        before, now = record["inputs"].get(PRICE_OF), self.inputs.get(PRICE_OF)
        grown = before is not None and now is not None and before < now
        return grown and record["fingerprint"] == fingerprint({**self.inputs, PRICE_OF: before})


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
