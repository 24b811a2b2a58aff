"""The folder in which a sub-model is made, and which an interruption leaves behind."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ordermerge.files import new_directory, partial_directory
from ordermerge.train import processes
from ordermerge.train.checkpoints import KEPT
from ordermerge.train.resume import Start, Training, find_start

LOGS = "logs"
_STATE = "state"


@contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """Yield the folder to fill, which becomes `output` when the block ends well; for all processes together.

    After a failure it stays, if there are training checkpoints.

    Args:
        output: The sub-model's folder.
    """
    main = processes.rank() == 0
    with new_directory(output, survivor=_STATE) if main else nullcontext(partial_directory(output)) as partial:
        processes.wait()
        yield partial
        processes.wait()


def state_directory(partial: Path) -> Path:
    """Return where the training checkpoints go while a folder is filled.

    Args:
        partial: The folder that is filled.
    """
    return partial.parent / _STATE


def prepare_start(partial: Path, training: Training) -> Start:
    """Find where to begin, and remove what an interrupted run made after that; for the main process alone.

    Args:
        partial: The folder to fill.
        training: What is to be trained.

    Raises:
        UserError: If what is there needs another number of processes.
    """
    start = find_start(state_directory(partial), training)
    for path in [*partial.glob(f"{KEPT}/step-*"), *partial.iterdir()]:
        if start.step and _is_from_before(path, start.step):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return start


def _is_from_before(path: Path, step: int) -> bool:
    if path.name.startswith("step-"):
        return int(path.name.removeprefix("step-")) <= step
    return path.name in (LOGS, KEPT)
