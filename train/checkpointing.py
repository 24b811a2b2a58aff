"""Training checkpoints: when to save, what an interrupted order goes on from, and the folder they lie in.

The Trainer writes straight into `checkpoint-N`. From a half-written one it would begin at step 0, on trained weights,
and say nothing.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn
from typing_extensions import TypedDict

from ordermerge.config.schema import CheckpointsSection, Experiment
from ordermerge.differences import changes
from ordermerge.errors import UserError, counted
from ordermerge.files import FileRecord, file_problems, file_records, require_space, write_json
from ordermerge.folders import finish, new_directory
from ordermerge.locks import lock
from ordermerge.run_directory import CHECKPOINTS
from ordermerge.stages import Step
from ordermerge.train import distributed
from ordermerge.train.distributed import say

_COMPLETE = "complete.json"
# Where the experiment has what an order is made from.
INPUT_KEYS = {
    "data.fingerprints.": "data.",
    "checkpoints": "checkpoints.every",
    "price_of": "orders.count",
    **dict.fromkeys(("model.weights", "model.files", "model.config", "model.generation"), "model.path"),
}
LOGS = "logs"
_STATE = "state"
_KEPT = "kept.json"  # beside the folder that is filled: the digests of the models that were kept so far


class Complete(TypedDict):
    """What is noted of a whole training checkpoint."""

    inputs: dict[str, Any]
    processes: int
    threads: int
    files: dict[str, FileRecord]


_COMPLETE_FORM, _KEPT_FORM = TypeAdapter(Complete), TypeAdapter(dict[int, dict[str, FileRecord]])


@dataclass(frozen=True)
class TrainingIdentity:
    """What a training is of: it can only go on as the same.

    Attributes:
        inputs: The step's inputs, JSON-like.
        processes: How many processes share it.
        threads: How many threads each has.
    """

    inputs: dict[str, Any]
    processes: int
    threads: int


@dataclass(frozen=True)
class ResumePoint:
    """Where the training of an order begins.

    Attributes:
        checkpoint: The training checkpoint to go on from; None to begin with the base model.
        step: The optimizer steps done.
        threads: The number of threads to go on with.
        notes: What the user should know of it, one sentence each.
    """

    checkpoint: Path | None
    step: int
    threads: int
    notes: list[str]


@dataclass(frozen=True)
class Saves:
    """The steps of a training after which something is saved; never the last, whose model is the sub-model itself.

    Attributes:
        kept: After these the model is kept.
        resumable: After these is saved what an interrupted training goes on from.
    """

    kept: frozenset[int]
    resumable: frozenset[int]


def find_resume_point(partial: Path, training: TrainingIdentity) -> ResumePoint:
    """Find where a training goes on, and remove training checkpoints that are of no use to it.

    Args:
        partial: The folder to fill.
        training: What is to be trained now.

    Raises:
        UserError: If there is a whole checkpoint, but of a training over another number of processes.
    """
    notes, state = [], state_directory(partial)
    for folder in sorted(state.glob("checkpoint-*"), key=_step, reverse=True):
        step, before = _step(folder), read_complete(folder)
        if before and (changed := changes(before["inputs"], _as_json(training.inputs), INPUT_KEYS)):
            notes.append(f"was interrupted after step {step} of a training with other inputs: {'; '.join(changed)}")
        elif (flaw := problem_of(folder) or _kept_problem(partial, step)) or before is None:
            notes.append(f"cannot go on from step {step}: {flaw}")
        elif before["processes"] != training.processes:
            raise UserError(
                f"{state} holds an interrupted training over {before['processes']} processes, which "
                f"{training.processes} cannot go on with; start {before['processes']}, or delete {state.parent} to "
                "begin again"
            )
        else:
            notes.append(f"goes on after step {step}")
            if before["threads"] != training.threads:
                notes.append(f"keeps the {before['threads']} threads it began with, though {training.threads} are set")
            return ResumePoint(folder, step, before["threads"], notes)
        shutil.rmtree(folder)
    if notes:
        notes.append("begins again with the base model")
    shutil.rmtree(state, ignore_errors=True)
    return ResumePoint(None, 0, training.threads, notes)


def mark_complete(checkpoint: Path, training: TrainingIdentity) -> None:
    """Mark a checkpoint as whole, when all processes have written it, and remove those before it.

    Args:
        checkpoint: The folder `checkpoint-N`.
        training: What it is a part of.
    """
    finish(checkpoint)  # a loss of power must not spare the mark and take the rest
    write_json(checkpoint / _COMPLETE, {**asdict(training), "files": file_records(checkpoint)})
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def problem_of(checkpoint: Path) -> str | None:
    """Return why a training cannot go on from a checkpoint, or None if all of it is what was written.

    Args:
        checkpoint: The folder `checkpoint-N`.
    """
    complete = read_complete(checkpoint)
    if complete is None:
        return f"{checkpoint} was not written to its end"
    return next(iter(file_problems(checkpoint, complete["files"], deep=True)), None)


def read_complete(checkpoint: Path) -> Complete | None:
    """Return what `mark_complete` has noted; None if it has not.

    Args:
        checkpoint: The folder `checkpoint-N`.
    """
    with suppress(OSError, ValueError):
        return _COMPLETE_FORM.validate_json((checkpoint / _COMPLETE).read_bytes())
    return None


def note_kept(partial: Path, step: int) -> None:
    """Note the digests of a model that was just kept; for the main process alone.

    Args:
        partial: The folder that is filled.
        step: The model's step.
    """
    name = f"{CHECKPOINTS}/step-{step}"
    files = {f"{name}/{file}": of for file, of in file_records(partial / name).items()}
    write_json(partial.parent / _KEPT, {**kept_files(partial), step: files})


def kept_files(partial: Path) -> dict[int, dict[str, FileRecord]]:
    """Return what `note_kept` has noted: by step, and by path below the folder that is filled.

    Args:
        partial: The folder that is filled.
    """
    with suppress(OSError, ValueError):
        return _KEPT_FORM.validate_json((partial.parent / _KEPT).read_bytes())
    return {}


@contextmanager
def workplace(step: Step) -> Iterator[Path | None]:
    """Yield the folder to fill, which becomes an order's when the block ends well; for all processes together.

    The main process holds the order's lock meanwhile. After a failure the folder stays, if there are training
    checkpoints.

    Args:
        step: The order.

    Yields:
        The folder; None if another process has trained the order while this one waited for it.

    Raises:
        UserError: If another process is training the order, or the folder cannot be written.
    """
    with ExitStack() as held:

        def begin() -> Path | None:
            held.enter_context(lock(step.output))
            # Whether it waited or not: between the plan and this, the order may have been finished.
            return None if step.is_done() else held.enter_context(new_directory(step.output, resumable=_STATE))

        partial = distributed.on_main(begin)
        yield partial
        distributed.wait()


def state_directory(partial: Path) -> Path:
    """Return where the training checkpoints go while a folder is filled.

    Args:
        partial: The folder that is filled.
    """
    return partial.parent / _STATE


def prepare_resume_point(partial: Path, training: TrainingIdentity) -> ResumePoint:
    """Find where to begin, and remove what an interrupted run made after that; for the main process alone.

    Args:
        partial: The folder to fill.
        training: What is to be trained.

    Raises:
        UserError: If what is there needs another number of processes.
    """
    start = find_resume_point(partial, training)
    if kept := kept_files(partial):
        write_json(partial.parent / _KEPT, {step: files for step, files in kept.items() if step <= start.step})
    for path in [*partial.glob(f"{CHECKPOINTS}/step-*"), *partial.iterdir()]:
        if start.step and _is_from_before(path, start.step):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return start


def plan_saves(
    section: CheckpointsSection, steps: int, epochs: int, *, begin: int = 0, end: int | None = None
) -> Saves:
    """Return after which steps something is saved.

    Args:
        section: The experiment's `checkpoints`.
        steps: The number of steps in the whole training.
        epochs: The number of epochs in it.
        begin: The step at which an order leaves the trunk.
        end: The last step of a trunk, whose orders go on from what is saved there.
    """
    kept = _marks(section.every, steps) if section.every is not None else frozenset()
    resumable = _marks(section.resume_every or steps // epochs, steps) | ({end} if end else set())
    part = frozenset(range(begin + 1, (end or steps) + 1))
    return Saves(kept & part, resumable & part)


def disk_needed(
    experiment: Experiment, model: nn.Module, saves: Saves, orders: int, *, controls: int = 0, branched: bool = False
) -> int:
    """Return how many bytes of disk the training of some orders takes at its height.

    Args:
        experiment: The experiment.
        model: The model to be trained, with its adapter if it has one.
        saves: What is saved of each training.
        orders: How many orders are to be trained, one after the other.
        controls: How many controls are to be trained too.
        branched: Whether a trunk's state is kept beside.
    """
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in model.parameters()]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    # AdamW holds two numbers for each weight; training checkpoints of a model with an adapter hold the adapter alone.
    state = (whole if experiment.lora is None else trained) + 2 * trained
    at_once = min(len(saves.resumable), 2) + branched  # one is removed when the next is whole
    models = orders * (1 + len(saves.kept)) + controls
    return models * (trained if experiment.saves_adapters else whole) + at_once * state


def require_disk(needed: int, saves: Saves, directory: Path, orders: int, controls: int = 0) -> None:
    """Say how much disk a training takes, and refuse it if that is not free.

    Args:
        needed: Bytes.
        saves: What is saved of each training.
        directory: Where it is saved.
        orders: How many orders are to be trained, one after the other.
        controls: How many controls are to be trained too.

    Raises:
        UserError: If it is not free.
    """
    counts = [counted(orders, "sub-model")] * bool(orders) + [counted(controls, "control")] * bool(controls)
    what = " and ".join(counts) or "the trunk"
    require_space(directory, needed, f"training {what}")
    each = f"each{' sub-model' * bool(controls)}"
    kept = f", with {counted(len(saves.kept), 'checkpoint')} of {each}" if saves.kept and orders else ""
    resumable = ", and what an interrupted order goes on from" if saves.resumable else ""
    say(f"training {what}{kept}{resumable}, takes up to {needed / 1e9:.3g} GB of disk")


def _kept_problem(partial: Path, last: int) -> str | None:
    """Return what is wrong with the models that were kept up to a step: they can only be made on the way there."""
    noted = kept_files(partial)
    for folder in partial.glob(f"{CHECKPOINTS}/step-*"):
        if (step := _step(folder)) <= last and step not in noted:
            return f"nothing says what {folder} held when it was made"
    files = {name: of for step, made in noted.items() if step <= last for name, of in made.items()}
    return next(iter(file_problems(partial, files, deep=True)), None)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_from_before(path: Path, step: int) -> bool:
    if path.name.startswith("step-"):
        return _step(path) <= step
    return path.name in (LOGS, CHECKPOINTS)


def _marks(every: int | float, steps: int) -> frozenset[int]:
    """Return each multiple of a number of steps, or of a fraction of all steps, below the last."""
    interval = every if isinstance(every, int) else every * steps
    marks = (round(interval * i) for i in range(1, int(steps / interval) + 1))
    return frozenset(step for step in marks if 0 < step < steps)
