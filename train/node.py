"""One order on a node of a cluster: is the node fit for it, and then `train_orders`."""

import contextlib
import io
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.provenance import versions


@dataclass(frozen=True)
class Task:
    """An order to train, and what its node must see.

    Attributes:
        experiment: The experiment.
        run_directory: Its run directory.
        order: The order's number.
        threads: How many threads to train with.
        gpus: How many GPUs were asked for.
        working_directory: Where the command was given; the experiment's paths may be relative to it.
        probe: A file that the command made in the run directory.
        seen: The order's inputs and the versions, as the command's machine sees them.
    """

    experiment: Experiment
    run_directory: Path
    order: int
    threads: int
    gpus: float
    working_directory: Path
    probe: Path
    seen: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        said: The lines that `train_orders` said.
        problems: Of the UserError that it raised; empty if the order is trained.
    """

    said: list[str]
    problems: list[str]


def train_task(task: Task) -> Iterator[str | Outcome]:
    """Train an order; this is what runs on a node.

    Args:
        task: The order.

    Yields:
        Where it runs, when it starts, and then how it ended.
    """
    yield f"{socket.gethostname()} (process {os.getpid()})"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as the command line does
    if not task.gpus:  # else the process sees all that the node has
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from ordermerge.train.sft import train_orders

    torch.set_num_threads(task.threads)
    said, problems = io.StringIO(), []
    try:
        _check_node(task)
        with contextlib.redirect_stderr(said):
            train_orders(task.experiment, task.run_directory, only=task.order)
    except UserError as error:
        problems = error.problems
    # How far the order was is of no interest when it has ended.
    yield Outcome([line for line in said.getvalue().splitlines() if "): step " not in line], problems)


def _check_node(task: Task) -> None:
    """Refuse a node that would train something else, or leave the result where nobody finds it."""
    from ordermerge.train.sft import order_steps

    host = socket.gethostname()
    for path, known in ((task.run_directory, task.probe), (task.working_directory, task.working_directory)):
        if not known.exists():
            raise UserError(
                f"node {host} does not see {path} of the machine where the command was given; the run directory "
                "(`--runs-dir`) and the working directory must be on a file system that all nodes share"
            )
    os.chdir(task.working_directory)
    seen = order_steps(task.experiment, task.run_directory)[task.order].inputs | versions()
    names = {**task.seen, **seen}
    if differing := [name for name in names if task.seen.get(name) != seen.get(name)]:
        raise UserError(
            f"node {host} has another {', '.join(differing)} than the machine where the command was given; all nodes "
            "must see the same base model and data, and have the same versions installed"
        )
