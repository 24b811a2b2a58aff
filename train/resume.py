"""Training checkpoints that an interrupted order goes on from: sealed when whole, and tried before they are used.

The Trainer writes straight into `checkpoint-N`. From a half-written one it would begin at step 0, on trained weights,
and say nothing.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import safe_globals

from ordermerge.errors import UserError
from ordermerge.files import write_json
from ordermerge.stages import changes

_SEAL = "whole.json"


@dataclass(frozen=True)
class Training:
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
class Start:
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


def find_start(state: Path, training: Training) -> Start:
    """Find where a training goes on, and remove training checkpoints that are of no use to it.

    Args:
        state: The folder of the training checkpoints.
        training: What is to be trained now.

    Raises:
        UserError: If there is a whole checkpoint, but of a training over another number of processes.
    """
    notes = []
    for folder in sorted(state.glob("checkpoint-*"), key=_step, reverse=True):
        step, before = _step(folder), _read(folder / _SEAL)
        if before and (changed := changes(before["inputs"], _as_json(training.inputs))):
            notes.append(f"was interrupted after step {step} of a training with other inputs: {'; '.join(changed)}")
        elif flaw := find_flaw(folder):
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
            return Start(folder, step, before["threads"], notes)
        shutil.rmtree(folder)
    if notes:
        notes.append("begins again with the base model")
    shutil.rmtree(state, ignore_errors=True)
    return Start(None, 0, training.threads, notes)


def seal(checkpoint: Path, training: Training) -> None:
    """Mark a checkpoint as whole, when all processes have written it, and remove those before it.

    Args:
        checkpoint: The folder `checkpoint-N`.
        training: What it is a part of.
    """
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for path in files:
        with open(path, "rb+") as file:
            os.fsync(file.fileno())  # a loss of power must not spare the seal and take these
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    write_json(checkpoint / _SEAL, {**asdict(training), "files": sizes})
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other)


def find_flaw(checkpoint: Path) -> str | None:
    """Return why a training cannot go on from a checkpoint, or None if it can.

    Its files are really loaded, though without reading all the numbers of weights and optimizer.

    Args:
        checkpoint: The folder `checkpoint-N`.
    """
    sealed = _read(checkpoint / _SEAL)
    if not sealed:
        return f"{checkpoint} was not written to its end"
    for name, size in sealed["files"].items():
        path = checkpoint / name
        try:
            if path.stat().st_size != size:
                return f"{path} has lost its end, or was changed"
            if path.parent == checkpoint and path.name != TRAINING_ARGS_NAME:
                _try_loading(path)
        except Exception as error:  # whatever a broken file makes its reader raise
            return f"{path} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _try_loading(path: Path) -> None:
    if path.name == TRAINER_STATE_NAME:
        TrainerState.load_from_json(str(path))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="np"):
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):
        with safe_globals():
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
