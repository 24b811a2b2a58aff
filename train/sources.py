"""Where the training data comes from: files, or datasets on the hub."""

from collections.abc import Mapping
from pathlib import Path

import datasets

from ordermerge.errors import UserError
from ordermerge.experiment import DATA_SUFFIXES, Experiment
from ordermerge.sections import DataSection
from ordermerge.train.records import Record, read_records, require_mappings
from ordermerge.train.templates import Template


def check_data(experiment: Experiment) -> list[str]:
    """Return what is wrong with the `data` section, without reading the data.

    Args:
        experiment: The experiment.
    """
    data = experiment.data
    problems = []
    for name in ("prompt", "completion"):
        try:
            template = Template.parse(f"data.{name}", getattr(data, name) or "")
            if name == "completion" and data.completion is not None and not template.fields:
                problems.append(
                    f"`data.completion`: template {data.completion!r} names no field, so all samples would teach the "
                    "same; write the field in braces, such as {answer}"
                )
        except UserError as error:
            problems += error.problems
    files = {}
    for name in ("train", "validation"):
        try:
            files[name] = data_file(experiment, name)
        except UserError as error:
            problems += error.problems
    return problems + _misplaced_hub_keys(data, files)


def data_file(experiment: Experiment, name: str) -> Path | None:
    """Return the file that `data.train` or `data.validation` names, or None for a hub id, a fraction or nothing.

    Args:
        experiment: The experiment.
        name: "train" or "validation".

    Raises:
        UserError: If what is named looks like a file and is not there, is a folder, or of an unknown kind.
    """
    named = getattr(experiment.data, name)
    if not isinstance(named, str):
        return None
    found = experiment.locate(named)
    looks_like_file = named.lower().endswith(DATA_SUFFIXES) or Path(named).is_absolute() or named.startswith(".")
    if found is not None and found.is_dir():
        raise UserError(f"`data.{name}`: {found} is a folder; name a {', '.join(DATA_SUFFIXES)} file in it")
    if found is not None and found.suffix.lower() not in DATA_SUFFIXES:
        raise UserError(f"`data.{name}`: unknown kind of data file {found}; use one of {', '.join(DATA_SUFFIXES)}")
    if found is None and looks_like_file:
        places = dict.fromkeys((str(experiment.directory.resolve()), str(Path.cwd())))
        raise UserError(f"`data.{name}`: no file {named} in {' or '.join(places)}")
    return found


def load_records(experiment: Experiment, name: str) -> list[Record]:
    """Read the records of `data.train` or `data.validation`, from a file or from the hub.

    Args:
        experiment: An experiment whose `data` section has been checked.
        name: "train" or "validation".

    Raises:
        UserError: If they cannot be read.
    """
    path = data_file(experiment, name)
    if path is not None:
        return read_records(path)
    data = experiment.data
    named, split = getattr(data, name) or data.train, data.split
    if name == "validation":
        split = data.validation_split or "validation"
    try:
        revision = data.revision if named == data.train else None
        loaded = datasets.load_dataset(named, data.config, split=split, revision=revision)
    except Exception as error:  # whatever the hub, the network or the dataset's own files raise
        raise UserError(
            f"`data.{name}`: {named!r} is no file here and cannot be loaded from the hub: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}; check the name and the connection, or name a file"
        ) from error
    return require_mappings(loaded, named)


def _misplaced_hub_keys(data: DataSection, files: Mapping[str, Path | None]) -> list[str]:
    """Return a sentence for each key that is for hub datasets, and would do nothing."""
    problems = []
    named_files = [path for path in files.values() if path]
    if files.get("train") and (not isinstance(data.validation, str) or files.get("validation")):
        given = {"config": data.config, "revision": data.revision}
        given["split"] = None if data.split == "train" else data.split
        problems += [
            f"`data.{key}` is for datasets on the hub, and {named_files[0]} is a file; remove it"
            for key, value in given.items()
            if value is not None
        ]
    if data.validation_split is not None:
        if isinstance(data.validation, float):
            problems.append("`data.validation_split` names a split, and `data.validation` a fraction; remove one")
        elif path := files.get("validation" if data.validation else "train"):
            problems.append(f"`data.validation_split` is for datasets on the hub, and {path} is a file; remove it")
    return problems
