"""Reads and checks the experiment file: all problems at once, one sentence each.

The schema is pydantic's; unknown keys are refused, and all problems are reported together.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ordermerge.config.changes import change, described
from ordermerge.config.schema import (
    EVALUATION_OWNED,
    MADE_WITH,
    EvaluationSection,
    Experiment,
)
from ordermerge.errors import UserError, did_you_mean, quoted
from ordermerge.yaml_json import read_yaml


def load_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: The YAML file; or the resolved one of a run directory, whose relative paths start where the original's do.
        changes: Keys to set otherwise than the file does, `KEY=VALUE` each.

    Returns:
        The experiment, with defaults filled in, and with absolute paths for the files and folders that are there: found
        from the experiment file, else from the working directory. What is not there stays as written: a hub id, or a
        problem for whoever needs it.

    Raises:
        UserError: With every problem found: unreadable file, unknown keys, missing or wrong values.
    """
    content = read_yaml(path)
    original = path.resolve()
    if _is_record(content.get(MADE_WITH)):
        original = Path(content.pop(MADE_WITH)["file"])
    content, where = change(content, changes), described(path, changes)
    # `directory` is ours to fill in; as a key of the file it is unknown like any other.
    ours = [f"unknown key `directory`{did_you_mean('directory', _keys_at(()))}"] if "directory" in content else []
    try:
        experiment = Experiment.model_validate({**content, "directory": original.parent})
    except ValidationError as error:
        raise UserError([*ours, *(_sentence(detail) for detail in error.errors())], where=where) from None
    if ours:
        raise UserError(ours, where=where)
    return _with_absolute_paths(experiment)


def evaluation_section(values: Mapping[str, Any]) -> EvaluationSection:
    """Return an evaluation section made of single values, such as a command line's.

    Args:
        values: By key of the section; `model_args`, `gen_kwargs` and `metadata` may be text as for lm-eval's command,
            `key=value,key=value` or a JSON object.

    Raises:
        UserError: With every problem found.
    """
    try:
        return EvaluationSection.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(detail) for detail in error.errors()) from None


def _is_record(value: Any) -> bool:
    """Return whether this is what a run notes in its resolved experiment, and no user's key of the same name."""
    return isinstance(value, dict) and isinstance(value.get("file"), str) and "versions" in value


def _with_absolute_paths(experiment: Experiment) -> Experiment:
    """Return an experiment with every file and folder that it names found."""

    def found(section: Any, *keys: str) -> Any:
        named = {key: getattr(section, key) for key in keys}
        return section.model_copy(
            update={key: _find(text, experiment.directory) for key, text in named.items() if isinstance(text, str)}
        )

    evaluation = experiment.evaluation and found(experiment.evaluation, "include_path")
    if evaluation and "data_files" in evaluation.metadata:
        files = _find_all(evaluation.metadata["data_files"], experiment.directory)
        evaluation = evaluation.model_copy(update={"metadata": {**evaluation.metadata, "data_files": files}})
    if evaluation and experiment.sft.get("trust_remote_code"):  # the same code, in the sub-models and the merges
        evaluation = evaluation.model_copy(update={"trust_remote_code": True})
    merges = {
        name: {key: _find(item, experiment.directory) if key == "base_model" and isinstance(item, str) else item
               for key, item in recipe.items()}
        for name, recipe in experiment.merges.items()
    }  # fmt: skip
    return experiment.model_copy(
        update={
            "model": found(experiment.model, "path"),
            "data": found(experiment.data, "train", "validation"),
            "orders": found(experiment.orders, "file"),
            "merges": merges,
            "evaluation": evaluation,
        }
    )


def _find(named: str, directory: Path) -> str:
    """Return the absolute path of a file or folder, looked for in a folder and in the working one.

    What is in neither stays a name, unless it is written as a path (`../base`), which starts in that folder.
    """
    path = Path(os.path.expanduser(named))
    absent = os.path.abspath(directory / path) if named.startswith(("./", "../")) else named
    return next((str(p.resolve()) for p in (directory / path, path) if os.path.exists(p)), absent)


def _find_all(named: Any, directory: Path) -> Any:
    """Return a `data_files` entry (a name, a list, or either by split) with every file found."""
    if isinstance(named, dict):
        return {split: _find_all(files, directory) for split, files in named.items()}
    return [_find_all(file, directory) for file in named] if isinstance(named, list) else _find(str(named), directory)


def _sentence(detail: ErrorDetails) -> str:
    """Turn one of pydantic's errors into a sentence that names the key, and the remedy where there is one."""
    where = ".".join(str(part) for part in detail["loc"] if not str(part).startswith("constrained-"))
    if detail["type"] == "extra_forbidden":
        if detail["loc"][0] == "evaluation" and (why := EVALUATION_OWNED.get(str(detail["loc"][-1]))):
            return f"`{where}` cannot be set: {why}; got {quoted(detail['input'])}, remove it"
        return f"unknown key `{where}`{did_you_mean(str(detail['loc'][-1]), _keys_at(detail['loc'][:-1]))}"
    if detail["type"] == "missing":
        return f"key `{where}` is missing"
    if detail["type"] == "value_error":
        return f"`{where}` {detail['ctx']['error']}"
    if detail["type"] == "string_pattern_mismatch":
        return f"`{where}` must be a plain name (letters, digits, `.`, `_`, `-`); got {quoted(detail['input'])}"
    return f"`{where}`: {detail['msg'][0].lower()}{detail['msg'][1:]}; got {quoted(detail['input'])}"


def _keys_at(location: Sequence[int | str]) -> list[str]:
    """Return the keys the schema knows at a place of the file."""
    fields = Experiment.model_fields
    for part in location:
        annotation = fields[str(part)].annotation
        sections = [annotation, *getattr(annotation, "__args__", ())]
        fields = next(s for s in sections if isinstance(s, type) and issubclass(s, BaseModel)).model_fields
    return [name for name in fields if name != "directory"]
