"""Reads and checks the experiment file: all problems at once, one sentence each.

The schema is pydantic's; unknown keys are refused, and all problems are reported together.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ordermerge.config.changes import change, described
from ordermerge.config.placement import section_schema, unknown_key
from ordermerge.config.schema import (
    EVALUATION_OWNED,
    MADE_WITH,
    EvaluationSection,
    Experiment,
)
from ordermerge.errors import UserError, quoted
from ordermerge.file_kinds import EXPERIMENT, wrong_kind
from ordermerge.mistakes import MAPPING, Mistake, mistakes, shown
from ordermerge.yaml_json import read_yaml

EVALUATION = "evaluation"


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
    if problem := wrong_kind(path, EXPERIMENT):
        raise UserError(problem)
    content = read_yaml(path)
    original = path.resolve()
    if _is_record(content.get(MADE_WITH)):
        original = Path(content.pop(MADE_WITH)["file"])
    content, where = change(content, changes), described(path, changes)
    # `directory` is ours to fill in; as a key of the file it is unknown like any other.
    ours = [unknown_key("directory", "", "directory", None)] if "directory" in content else []
    content = {**content, "directory": original.parent}
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        raise UserError([*ours, *map(_sentence, mistakes(error, content))], where=where) from None
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
        found = [one._replace(keys=(EVALUATION, *one.keys)) for one in mistakes(error, values)]
        raise UserError(_sentence(one).replace(f"`{EVALUATION}.", "`") for one in found) from None


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


def _sentence(mistake: Mistake) -> str:
    """Return the sentence about one thing that is wrong with an experiment, with the remedy where there is one."""
    name, section = str(mistake.keys[-1]) if mistake.keys else "", ".".join(map(str, mistake.keys[:-1]))
    if mistake.kind == "extra_forbidden":
        if section == EVALUATION and (why := EVALUATION_OWNED.get(name)):
            return f"`{mistake.place}` cannot be set: {why}; got {quoted(mistake.value)}, remove it"
        return unknown_key(mistake.place, section, name, mistake.value)
    example = _example(section, name, mistake.value)
    written = f"; write for instance `{example}`" if example else ""
    if mistake.kind == "missing":
        return f"key `{mistake.place}` is missing{written}"
    return mistake.sentence() + (written if mistake.is_kind(MAPPING) else "")


def _example(section: str, name: str, value: Any) -> str:
    """Return how a key may be written; "" where the schema has no example.

    Args:
        section: The section that it is in, "" at the top.
        name: The key.
        value: What was given in place of a whole section: if that is one value, it is the one that the section needs.
    """
    if not section and (schema := section_schema(name)):
        needed, field = next(((key, of) for key, of in schema.model_fields.items() if of.is_required()), ("", None))
        example = field.examples[0] if field and field.examples else None
        if isinstance(value, str | int) and not isinstance(value, bool):
            example = [value] if isinstance(example, list) else value
        return shown({name: {needed: example}}) if needed else ""
    outer = section_schema(section)
    if outer and name in outer.model_fields and (examples := outer.model_fields[name].examples):
        return shown({name: examples[0]})
    if section in Experiment.model_fields and isinstance(examples := Experiment.model_fields[section].examples, list):
        return shown({name: next(iter(examples[0].values()))})
    return ""
