"""Orders that the user supplies (`strategy: file`): from a safetensors or JSON file, or an earlier run.

They name samples by their row in the data as loaded, which a user can know beforehand; which samples the tokenizer
leaves over, and so their places in the prepared data, is known to training alone.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from trl import SFTConfig

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.files import fingerprint, fingerprint_file
from ordermerge.run_directory import PERMUTATIONS
from ordermerge.train.orders import DEPEND_ON_COUNT


def check_orders(experiment: Experiment) -> list[str]:
    """Return what is wrong with `orders.file`, as far as can be told without the training data.

    Args:
        experiment: The experiment; without problems unless its strategy is `file`.
    """
    if experiment.orders.file is None:
        return []
    try:
        rows = _read_rows(experiment)
    except UserError as error:
        return error.problems
    return _check_shape(experiment, rows) or _check_repeats(rows)


def order_inputs(experiment: Experiment) -> dict[str, Any]:
    """Return what an order is made from; `orders.count` is not among it if order k is the same for each count.

    Args:
        experiment: The experiment.

    Raises:
        UserError: If `orders.file` is not there.
    """
    section = experiment.orders
    left_out = {"file"} if section.strategy in DEPEND_ON_COUNT else {"count", "file"}
    left_out = left_out if section.branch_at else {*left_out, "branch_at"}
    inputs = section.model_dump(exclude=left_out if section.unit == "pack" else {*left_out, "unit"})
    if section.strategy != "file":
        return inputs
    path = _path_of(experiment)
    files = _files_of_run(path) if path.is_dir() else [path]
    return {**inputs, "file": fingerprint([fingerprint_file(file) for file in files])}


def given_orders(experiment: Experiment, sample_ids: torch.Tensor, loaded: int) -> torch.Tensor:
    """Return the user's orders over the prepared samples.

    Rows that are not trained on may be in the user's permutations; they are passed over.

    Args:
        experiment: An experiment of the strategy `file`.
        sample_ids: int64 of shape [n]: the row in the data as loaded of each sample.
        loaded: How many rows were loaded, those that are held out or were dropped included.

    Returns:
        int64 tensor of shape [count, epochs, n], indices into `sample_ids`.

    Raises:
        UserError: If the file is wrong, or names rows that are not there, or lacks one that is trained on.
    """
    if problems := check_orders(experiment):
        raise UserError(problems)
    rows = _read_rows(experiment)
    if len(outside := rows[(rows < 0) | (rows >= loaded)]):
        raise UserError(f"`orders.file` names row {outside[0]}; the training data has rows 0 to {loaded - 1}")
    index = torch.full((loaded,), -1)
    index[sample_ids] = torch.arange(len(sample_ids))
    orders = torch.empty(*rows.shape[:2], len(sample_ids), dtype=torch.int64)
    for order, epochs in enumerate(index[rows]):
        for epoch, places in enumerate(epochs):
            if len(kept := places[places >= 0]) < len(sample_ids):
                missing = sample_ids[~torch.isin(sample_ids, rows[order, epoch])]
                raise UserError(
                    f"`orders.file`: order {order} epoch {epoch} lacks {len(missing)} of the {len(sample_ids)} rows "
                    f"that are trained on, such as {missing[0]}; each epoch must name each row once"
                )
            orders[order, epoch] = kept
    return orders


def _path_of(experiment: Experiment) -> Path:
    path = Path(str(experiment.orders.file))
    if not path.is_absolute() or not path.exists():
        places = dict.fromkeys((str(experiment.directory.resolve()), str(Path.cwd())))
        raise UserError(f"`orders.file`: no file {path} in {' or '.join(places)}")
    return path


def _files_of_run(directory: Path) -> list[Path]:
    """Return the files of a run's `orders` folder, in the order of their numbers."""
    folders = sorted((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    files = [folder / PERMUTATIONS for folder in folders]
    if not files or not all(file.is_file() for file in files):
        raise UserError(
            f"`orders.file`: {directory} is a folder without {PERMUTATIONS} in each of its folders 0, 1, ...; "
            "name a .safetensors or .json file, or the `orders` folder of a finished run"
        )
    return files


def _read_rows(experiment: Experiment) -> torch.Tensor:
    """Return the user's permutations as rows of the data, int64 of a shape that is yet to be checked."""
    path = _path_of(experiment)
    if path.is_dir():
        read = [_read_safetensors(file) for file in _files_of_run(path)]
        if len({rows.shape for rows in read}) > 1:
            shapes = ", ".join(str(list(rows.shape)) for rows in read)
            raise UserError(f"`orders.file`: the orders in {path} differ in epochs or samples: {shapes}")
        return torch.stack(read)
    if path.suffix.lower() not in _READERS:
        raise UserError(f"`orders.file`: unknown kind of file {path}; use {' or '.join(_READERS)}")
    return _READERS[path.suffix.lower()](path)


def _read_json(path: Path) -> torch.Tensor:
    try:
        rows = torch.tensor(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RuntimeError) as error:  # not JSON, or ragged, or not numbers
        raise UserError(f"`orders.file`: {path} must hold {_LISTS}; {' '.join(str(error).split())[:200]}") from None
    if rows.numel() and rows.dtype != torch.int64:
        raise UserError(f"`orders.file`: {path} must hold {_LISTS}; got numbers that are not whole")
    return rows


def _read_safetensors(path: Path) -> torch.Tensor:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"`orders.file`: {path} is not a valid safetensors file: {error}") from None
    rows, ids = tensors.get("permutations"), tensors.get("sample_ids")
    if rows is None or rows.dtype != torch.int64:
        held = ", ".join(f"{name} ({str(value.dtype).removeprefix('torch.')})" for name, value in tensors.items())
        raise UserError(f"`orders.file`: {path} must hold `permutations`, int64; it holds {held or 'nothing'}")
    if "packs" in tensors:
        raise UserError(f"`orders.file`: {path} holds orders of packs (`unit: pack`), and these are of samples")
    if ids is None:
        return rows
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(ids):
        raise UserError(f"`orders.file`: {path}: `permutations` must be indices into its {len(ids)} `sample_ids`")
    return ids[rows].long()


def _check_shape(experiment: Experiment, rows: torch.Tensor) -> list[str]:
    if rows.ndim != 3 or rows.numel() == 0:
        return [f"`orders.file` must have the shape [orders, epochs, samples]; got {list(rows.shape)}"]
    problems = []
    count, epochs = experiment.orders.count, experiment.sft.get("num_train_epochs", SFTConfig.num_train_epochs)
    if len(rows) != count:
        problems.append(f"`orders.file` holds {len(rows)} orders, and `orders.count` is {count}; they must agree")
    if str(epochs).removesuffix(".0") != str(rows.shape[1]):
        problems.append(
            f"`orders.file` holds orders of {rows.shape[1]} epochs, and `sft.num_train_epochs` is {epochs}; "
            "they must agree"
        )
    return problems


def _check_repeats(rows: torch.Tensor) -> list[str]:
    values = rows.sort(dim=-1).values
    repeats = (values[..., 1:] == values[..., :-1]).nonzero()
    if len(repeats) == 0:
        return []
    order, epoch, place = repeats[0].tolist()
    return [
        f"`orders.file`: order {order} epoch {epoch} names row {int(values[order, epoch, place])} more than once; "
        "each epoch must name each row once"
    ]


_LISTS = "lists of row numbers, [orders][epochs][samples]"
_READERS = {".safetensors": _read_safetensors, ".json": _read_json}
