"""The run directory: its files' names, and their readers."""

import time
import traceback
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment
from ordermerge.config.trainings import control_runs
from ordermerge.errors import UserError, printable
from ordermerge.file_kinds import RUN, wrong_kind
from ordermerge.files import Digest, FileRecord, digests, file_problems, fingerprint_file, write_json, write_text
from ordermerge.models import MERGE_MARKER, RUN_FILE, Model
from ordermerge.yaml_json import read_json

if TYPE_CHECKING:
    import torch

EXPERIMENT = RUN_FILE
REPORT = "report.md"
FAILURE = "last_failure.log"  # the traceback of what the last command here ended with
BASE = "base"  # the base model's name in tables
ENSEMBLE = "ensemble"  # the name in tables of all sub-models at once
TRUNK = "trunk"  # in the folder of the orders: the steps that they share
ORDER_RECORD = "order/order.json"  # in a sub-model's folder: its record, and its marker
PERMUTATIONS = "order/permutations.safetensors"  # in a sub-model's folder
FINISHED = "finished.json"  # what a finished run and what it was made from looked like
DIGESTS = "digests.json"  # of the files that models are made from
CHECKPOINTS = "checkpoints"  # in a sub-model's folder: one folder `step-N` for each that was kept

_YOUNG = 2 * 10**9  # nanoseconds


class LossAt(TypedDict):
    """A loss along the training."""

    step: int
    loss: float


class Kept(TypedDict):
    """A model that was kept along the training.

    Attributes:
        step: After which step.
        folder: Below the order's.
    """

    step: int
    folder: str


@with_config(ConfigDict(extra="allow"))
class OrderRecord(TypedDict):
    """What is read again of `order.json`; a trunk is of no order."""

    order: int | None
    control: NotRequired[str | None]
    permutations_of: NotRequired[int]
    fields: NotRequired[dict[str, Any]]
    batch_size: Annotated[int, Field(gt=0)]
    dataset_fingerprint: str | None
    steps: int
    samples_consumed: int
    seconds: float
    losses: list[LossAt]
    eval_losses: list[LossAt]
    branch: NotRequired[int | None]
    checkpoints: NotRequired[list[Kept]]
    versions: NotRequired[dict[str, str]]
    git_commit: NotRequired[str | None]
    platform: NotRequired[str]
    files: NotRequired[dict[str, FileRecord]]


@dataclass(frozen=True)
class OrderPositions:
    """One order.

    Attributes:
        sample_ids: int64 of shape [n]: the rows of the data as loaded.
        positions: int64 of shape [epochs, n]: when each, or its pack, was visited, 0 (first) to `units` - 1.
        batch: Samples of one optimizer step; 1 where that is not recorded.
        data: Fingerprint of the training data, None where that is not recorded.
        packs: int64 of shape [n]: the pack of each, None where samples were not packed.
    """

    sample_ids: "torch.Tensor"
    positions: "torch.Tensor"
    batch: int
    data: str | None
    packs: "torch.Tensor | None" = None

    @property
    def units(self) -> int:
        """The number of places in an epoch: that of the samples, or of the packs."""
        return len(self.sample_ids) if self.packs is None else int(self.packs.max()) + 1


def order_name(order: int) -> str:
    """Return the name of a sub-model in tables.

    Args:
        order: The order's number.
    """
    return f"order_{order}"


def order_folder(run: Path, order: int) -> Path:
    """Return the folder of a sub-model.

    Args:
        run: The run directory.
        order: The order's number.
    """
    return run / "orders" / str(order)


def control_folder(run: Path, name: str) -> Path:
    """Return the folder of a run of a control.

    Args:
        run: The run directory.
        name: The control run's name.
    """
    return run / "orders" / name


def merge_folder(run: Path, name: str) -> Path:
    """Return the folder of a merged model.

    Args:
        run: The run directory.
        name: The merge.
    """
    return run / "merges" / name


def recipe_file(run: Path, name: str) -> Path:
    """Return the mergekit recipe of a merge.

    Args:
        run: The run directory.
        name: The merge.
    """
    return run / "recipes" / f"{name}.yml"


def evaluation_folder(run: Path) -> Path:
    """Return the folder of the scores, which has a folder for each model, and the comparison.

    Args:
        run: The run directory.
    """
    return run / "eval"


def curve_folder(run: Path, merge: str) -> Path:
    """Return the folder of a merge's score by the number of orders.

    Args:
        run: The run directory.
        merge: The merge.
    """
    return run / "curve" / merge


def imbalance_folder(run: Path) -> Path:
    """Return the folder of losses and of the imbalance analysis.

    Args:
        run: The run directory.
    """
    return run / "imbalance"


@contextmanager
def failure_noted(run: Path) -> Iterator[None]:
    """Write what the block ends with, if it is an error, to the run directory, with its traceback.

    Args:
        run: The run directory; if it is not there, nothing is written.

    Yields:
        Nothing.
    """
    try:
        yield
    except Exception:
        with suppress(OSError, UserError):  # a full disk must not hide the error
            if run.is_dir():
                write_text(run / FAILURE, printable(traceback.format_exc()))
        raise
    with suppress(OSError):
        (run / FAILURE).unlink(missing_ok=True)


@contextmanager
def digests_kept(run: Path, *, write: bool) -> Iterator[dict[str, Digest]]:
    """Let a run directory keep the digests of the files that its models are made from, so that each is read once.

    Args:
        run: The run directory; processes may share it.
        write: Whether to note what was read meanwhile, if nothing fails.

    Yields:
        The digests that are asked for in the block.
    """
    asked: dict[str, Digest] = {}
    noted = _read_digests(run / DIGESTS)
    token = digests.set(ChainMap(asked, noted))
    try:
        yield asked
    finally:
        digests.reset(token)
        digests.get().update(asked)
    # A file that is being written as it is read can keep its time of change, so young ones are read once more.
    settled = time.time_ns() - _YOUNG
    kept = {name: of for name, of in asked.items() if all(state[1] < settled for state in of["files"].values())}
    if write and any(noted.get(name) != of for name, of in kept.items()):
        write_json(run / DIGESTS, {**_read_digests(run / DIGESTS), **kept})


def _read_digests(path: Path) -> dict[str, Digest]:
    """Return what is noted; nothing where that is damaged, as it can all be had again."""
    try:
        found: dict[str, Digest] = read_json(path, dict[str, Digest], remedy="") if path.exists() else {}
    except UserError:
        return {}
    return found


def open_run(run: Path) -> Experiment:
    """Return the experiment that a run directory was made from.

    Args:
        run: The run directory.

    Raises:
        UserError: If it is none.
    """
    if not (run / EXPERIMENT).is_file():
        near = next((place for place in (Path("runs") / run, *run.glob("*")) if (place / EXPERIMENT).is_file()), None)
        raise UserError(
            wrong_kind(run, RUN)
            or f"{run}: no run directory: it has no {EXPERIMENT} (looked in {run.resolve()}); give the folder that "
            f"`ordermerge run` or `ordermerge train` made, such as {near or 'runs/NAME'}"
        )
    return load_experiment(run / EXPERIMENT)


def read_positions(run: Path, count: int) -> tuple[dict[int, OrderPositions], list[str]]:
    """Read the orders of a run's sub-models.

    Args:
        run: The run directory.
        count: K, the number of orders.

    Returns:
        The orders that could be read, by number; and a sentence on each that could not.
    """
    found, problems = {}, []
    for order in range(count):
        try:
            found[order] = _read_order(order_folder(run, order))
        except UserError as error:
            problems += error.problems
    return found, problems


def order_record(folder: Path) -> OrderRecord | None:
    """Read the record of an order; None where there is none, as in a sub-model of someone else's or an unfinished one.

    Args:
        folder: The sub-model.

    Raises:
        UserError: If it is damaged.
    """
    path = folder / ORDER_RECORD
    if not path.exists():
        return None
    found: OrderRecord = read_json(path, OrderRecord, remedy="train the order anew: `ordermerge run --force train`")
    return found


def last_validation_loss(folder: Path) -> float | None:
    """Return the last validation loss of a sub-model's training; None where there is none.

    Args:
        folder: The sub-model's folder.
    """
    record = order_record(folder)
    return record["eval_losses"][-1]["loss"] if record and record["eval_losses"] else None


def losses_file(run: Path, model: str) -> Path:
    """Return where the losses of a model are.

    Args:
        run: The run directory.
        model: The model's name: "base", "order_0", or a merge's.
    """
    return imbalance_folder(run) / "losses" / f"{model}.parquet"


def model_marker(path: str) -> str | None:
    """Return the fingerprint of the marker of a model that a run made: another, if it was made again.

    Args:
        path: The model.
    """
    markers = (Path(path) / name for name in (ORDER_RECORD, MERGE_MARKER))
    return next((fingerprint_file(marker) for marker in markers if marker.is_file()), None)


def changed_models(experiment: Experiment, run: Path, markers: Mapping[str, str | None]) -> list[str]:
    """Return the names of models that were made anew, or removed, since something was made of them.

    Args:
        experiment: The experiment.
        run: Its run directory.
        markers: By name, what `model_marker` said then.
    """
    paths = model_paths(experiment, run)
    return [name for name, then in markers.items() if name not in paths or model_marker(paths[name]) != then]


def steps_folder(run: Path) -> Path:
    """Return the folder of the losses along the training.

    Args:
        run: The run directory.
    """
    return imbalance_folder(run) / "steps"


def steps_file(run: Path, step: int) -> Path:
    """Return where the losses after a step are.

    Args:
        run: The run directory.
        step: The step.
    """
    return steps_folder(run) / f"{step}.json"


def model_paths(experiment: Experiment, run_directory: Path) -> dict[str, str]:
    """Return name and place of every model of an experiment: base, sub-models, controls, merges.

    Args:
        experiment: The experiment.
        run_directory: Its run directory.
    """
    orders = {order_name(k): str(order_folder(run_directory, k)) for k in range(experiment.count)}
    controls = {run.folder: str(control_folder(run_directory, run.folder)) for run in control_runs(experiment)}
    merges = {name: str(merge_folder(run_directory, name)) for name in experiment.merges}
    return {BASE: experiment.model.reference, **orders, **controls, **merges}


def scored_models(experiment: Experiment, run_directory: Path) -> dict[str, Model]:
    """Return name and place of all that an experiment scores: its models and, where asked for, the ensemble.

    Args:
        experiment: The experiment.
        run_directory: Its run directory.
    """
    models: dict[str, Model] = dict(model_paths(experiment, run_directory))
    if experiment.evaluation and experiment.evaluation.ensemble:
        models[ENSEMBLE] = tuple(str(order_folder(run_directory, k)) for k in range(experiment.count))
    return models


def _read_order(folder: Path) -> OrderPositions:
    import torch  # not at the top: what only reads scores is quick
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / PERMUTATIONS
    try:
        tensors = load_file(path)
        ids, permutations = tensors["sample_ids"], tensors["permutations"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so nothing says when this sub-model met which sample") from None
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read as an order ({error}); it needs `permutations`, `sample_ids`"
        ) from None
    packs = tensors.get("packs")
    units = len(ids) if packs is None else int(packs.max()) + 1
    everyone = torch.arange(units)
    if permutations.ndim != 2 or not all(torch.equal(row.sort().values, everyone) for row in permutations):
        raise UserError(f"{path}: `permutations` must hold, in each line, each number from 0 to {units - 1} once")
    record = order_record(folder)
    noted = record.get("files", {}) if record else {}
    if problems := file_problems(folder, {name: of for name, of in noted.items() if name == PERMUTATIONS}, deep=True):
        raise UserError(f"{problem}; restore it: these are not the positions it was trained in" for problem in problems)
    batch, data = (record["batch_size"], record["dataset_fingerprint"]) if record else (1, None)
    positions = permutations.argsort(dim=1)
    return OrderPositions(ids, positions if packs is None else positions[:, packs], batch, data, packs)
