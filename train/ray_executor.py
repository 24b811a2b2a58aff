"""The orders on a Ray cluster: Ray finds a place for each, and a process of its own there trains it.

Ray is an optional dependency, imported when it is asked for.
"""

import contextlib
import io
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import click

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.folders import scratch_directory
from ordermerge.locks import waits
from ordermerge.provenance import versions
from ordermerge.run_directory import TRUNK

if TYPE_CHECKING:
    from ordermerge.train.steps import TrainStep

_PROGRESS = re.compile(r": \d+/\d+( \(\d+ %\))?, ")
RETRIES = 2  # of an order whose process died or raised anything but a UserError


@dataclass(frozen=True)
class Resources:
    """What each order asks of a Ray cluster.

    Attributes:
        cpus: CPUs; also the number of threads, which results on CPUs depend on.
        gpus: GPUs, at most 1, as one process trains an order; None for 1 if any node has one, else 0.
    """

    cpus: int = 1
    gpus: float | None = None


@dataclass(frozen=True)
class Task:
    """An order to train, and what its node must see.

    Attributes:
        experiment: The experiment.
        run_directory: Its run directory.
        name: Of what is trained: an order, a control or the trunk.
        threads: How many threads to train with.
        gpus: How many GPUs were asked for.
        working_directory: Where the command was given; the experiment's paths may be relative to it.
        probe: A folder that the command made in the run directory.
        seen: The order's inputs and the versions, as the command's machine sees them.
        waits: Whether to wait for another process that trains the order, as `--wait` says.
    """

    experiment: Experiment
    run_directory: Path
    name: str
    threads: int
    gpus: float
    working_directory: Path
    probe: Path
    seen: dict[str, Any]
    waits: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        said: The lines that `train_orders` said.
        problems: Of the UserError that it raised; empty if the order is trained.
    """

    said: list[str]
    problems: list[str]


def train_on_ray(
    experiment: Experiment, run_directory: Path, *, only: int | str | None = None, resources: Resources | None = None
) -> list[Path]:
    """Do what `train_orders` does on a Ray cluster, as many orders at a time as it has room for.

    The cluster is the one that `RAY_ADDRESS` names, else the one that `ray start` started on this machine, else one
    that is started here and ends with the call. An order that fails is tried again, unless the user has to mend
    something; the others go on.

    Args:
        experiment: The experiment.
        run_directory: Gets the sub-models; it must be on a file system that all nodes share.
        only: Train this order, or this run of a control, alone.
        resources: What each order asks for.

    Returns:
        The folders of the sub-models asked for.

    Raises:
        UserError: If Ray is missing, the cluster cannot be reached or has no room for an order, or orders failed.
    """
    from ordermerge.train.sft import choose_orders, orders_to_train
    from ordermerge.train.trunk import remove_used_states

    ray, resources = _import_ray(), resources or Resources()
    steps = choose_orders(experiment, run_directory, only)
    todo = orders_to_train(steps)
    if todo:
        with _cluster(ray), _probe(run_directory) as probe:
            gpus = _gpus([node["Resources"] for node in ray.nodes() if node["Alive"]], resources)
            _say(
                f"training {len(todo)} of {len(steps)} orders on {_describe(ray)}: {_amount(resources.cpus, gpus)} each"
            )
            place = (resources.cpus, gpus, Path.cwd(), probe)
            tasks = {
                step.name: Task(
                    experiment, run_directory, step.name, *place, seen=step.inputs | versions(), waits=waits.get()
                )
                for step in todo
            }
            # A process of its own for each order: its memory on the GPU goes when it ends.
            remote = ray.remote(num_cpus=resources.cpus, num_gpus=gpus, max_calls=1, max_retries=0)(train_task)
            failed = dict[str, str]()
            trunk = [name for name in tasks if name == TRUNK]
            for names in (trunk, [name for name in tasks if name != TRUNK]):
                failed = failed or _watch(ray, lambda name: remote.remote(tasks[name]), names)
            remove_used_states(steps)
        if failed:
            reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
            raise UserError(
                f"{len(failed)} of {len(todo)} orders failed: {reasons}. The same command goes on with these; "
                "what is trained is kept"
            )
    return [step.output for step in steps if step.name != TRUNK]


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

    from ordermerge.train.sft import train_steps

    torch.set_num_threads(task.threads)
    said, problems = io.StringIO(), []
    token = waits.set(task.waits)
    try:
        _check_node(task)
        with contextlib.redirect_stderr(said):
            train_steps(task.experiment, [_find_step(task)])
    except UserError as error:
        problems = error.problems
    finally:
        waits.reset(token)
    # How far the order was is of no interest when it has ended.
    yield Outcome([line for line in said.getvalue().splitlines() if not _PROGRESS.search(line)], problems)


def _watch(ray: ModuleType, submit: Callable[[str], Any], names: Sequence[str]) -> dict[str, str]:
    """Say how the orders get on, try again those that fail, and return why the ones did that failed for good."""
    running = {submit(name): name for name in names}
    tries, failed, said = Counter(names), dict[str, str](), set[str]()
    while running:
        (stream, *_), _ = ray.wait(list(running), num_returns=1)
        name, retry, problems = running[stream], False, list[str]()
        try:
            event = ray.get(next(stream))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            problems = [f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"]
            retry = tries[name] <= RETRIES
            if not retry:
                _say(str(error))  # with the traceback, if there is one
        else:
            if isinstance(event, str):
                _say(f"{name}: started on {event}")
                continue
            problems = event.problems
            for line in event.said:
                if line not in said:  # what is said of the data is the same for all orders
                    _say(line)
            said.update(event.said)
        del running[stream]
        if retry:
            _say(f"{name}: {problems[0]}; trying again ({tries[name]} of {RETRIES})")
            tries[name] += 1
            running[submit(name)] = name
            continue
        if problems:
            failed[name] = "; ".join(problems)
        _say(f"{name}: {'failed: ' + failed[name] if problems else 'finished'}; {len(running)} of {len(names)} left")
    return failed


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported and when a cluster is started
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError('`--executor ray` needs Ray, which is not installed: pip install "ray>=2.40"') from None
    return ray


@contextlib.contextmanager
def _cluster(ray: ModuleType) -> Iterator[None]:
    """Connect to the cluster; when the connection ends, by an exception too, Ray ends what still runs."""
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS must be the HOST:PORT that `ray start` said; got {address!r}; give the command on "
            "a node of the cluster, as a Ray client is not one"
        )
    try:
        ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"no connection to the Ray cluster at {address or 'this machine'}: {str(error).strip()} (a cluster with "
            "token authentication needs RAY_AUTH_MODE=token here, and its token where Ray's documentation says)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _probe(run_directory: Path) -> Iterator[Path]:
    """Yield a folder of the run directory whose name no other file system has."""
    with scratch_directory(run_directory, "seen-by-nodes") as folder:
        yield folder


def _gpus(nodes: Sequence[dict[str, float]], resources: Resources) -> float:
    """Return how many GPUs an order gets, if a node has room for it."""
    gpus = resources.gpus
    if gpus is None:
        gpus = 1 if any(node.get("GPU") for node in nodes) else 0
    have = [(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
    if not any(cpus >= resources.cpus and devices >= gpus for cpus, devices in have):
        raise UserError(
            f"no node of the Ray cluster has the {_amount(resources.cpus, gpus)} that an order asks for (nodes have "
            f"{'; '.join(sorted({_amount(*node) for node in have}))}); change `--cpus-per-order` or `--gpus-per-order`"
        )
    return gpus


def _describe(ray: ModuleType) -> str:
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    address = ray.get_runtime_context().gcs_address
    have = _amount(total.get("CPU", 0), total.get("GPU", 0))
    return f"the Ray cluster at {address} ({nodes} node{'s' * (nodes != 1)} with {have})"


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"


def _say(line: str) -> None:
    click.echo(line, err=True)


def _find_step(task: Task) -> "TrainStep":
    """Return the step of a task, as this machine sees its inputs."""
    from ordermerge.train.sft import order_steps

    steps = order_steps(task.experiment, task.run_directory)
    trunk = cast("tuple[TrainStep, ...]", steps[0].needs)
    return next(step for step in (*trunk, *steps) if step.name == task.name)


def _check_node(task: Task) -> None:
    """Refuse a node that would train something else, or leave the result where nobody finds it."""
    host = socket.gethostname()
    for path, known in ((task.run_directory, task.probe), (task.working_directory, task.working_directory)):
        if not known.exists():
            raise UserError(
                f"node {host} does not see {path} of the machine where the command was given; the run directory "
                "(`--runs-dir`) and the working directory must be on a file system that all nodes share"
            )
    os.chdir(task.working_directory)
    seen = _find_step(task).inputs | versions()
    names = {**task.seen, **seen}
    if differing := [name for name in names if task.seen.get(name) != seen.get(name)]:
        raise UserError(
            f"node {host} has another {', '.join(differing)} than the machine where the command was given; all nodes "
            "must see the same base model and data, and have the same versions installed"
        )
