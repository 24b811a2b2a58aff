"""What a file or folder is, where a command was given one of another kind: the message names the right command."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError
from ordermerge.models import RUN_FILE
from ordermerge.yaml_json import read_yaml

RECIPE, EXPERIMENT, RUN, MODEL, DATA = (
    *("a mergekit recipe", "an experiment", "a run directory", "a model's folder", "data"),
)
_DATA_NAMES = (".jsonl", ".json", ".csv", ".parquet")
_MODEL_FILES = ("config.json", "adapter_config.json")
_RUN_FOLDERS = ("orders", "merges", "eval")
_RUNS = Path("runs")  # where `--runs-dir` is, unless it is given
# By what it is, the commands that take it.
_COMMANDS = {
    RECIPE: "`ordermerge merge {path} OUT` merges it, `ordermerge check {path}` checks it",
    EXPERIMENT: "`ordermerge run {path}` trains, merges and scores what it says",
    RUN: "`ordermerge report {path}` writes its report anew, `ordermerge check {path}` checks its files",
    MODEL: "`ordermerge eval {path} --tasks TASKS` scores it",
    DATA: "an experiment names it, as `data: {{train: {path}}}`, and `ordermerge init` writes one",
}


def wrong_kind(path: Path, wanted: str) -> str | None:
    """Return a sentence that says what a path is and which commands take it; None if it is wanted, or unclear.

    Args:
        path: A file or folder that a command was given.
        wanted: What the command takes, one of this module's constants.
    """
    kind, content = _kind(path)
    if kind is None or kind == wanted:
        return None
    takes = _COMMANDS[kind].format(path=path)
    run = _RUNS / str(content.get("name"))
    if kind == EXPERIMENT and wanted == RUN and (run / RUN_FILE).is_file():
        takes = f"its run directory is {run}"
    elif kind == RUN and wanted == EXPERIMENT and isinstance(made := content.get("made_with"), dict):
        takes = f"it was made from {made.get('file')}; {takes}"
    elif kind == RUN and wanted == MODEL:
        takes = f"a model in it is such as {path / 'orders' / '0'}; {takes}"
    return f"{path}: is {kind}, not {wanted}; {takes}"


def _kind(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return what a path is by its names and keys, None where that is not clear, and the keys."""
    if path.is_dir():
        if any((path / name).is_file() for name in _MODEL_FILES):
            return MODEL, {}
        is_run = (path / RUN_FILE).is_file() and any((path / name).is_dir() for name in _RUN_FOLDERS)
        return (RUN, _content(path / RUN_FILE)) if is_run else (None, {})
    content = _content(path)
    if not content and path.suffix in _DATA_NAMES and path.is_file():
        return DATA, {}
    if "merge_method" in content:
        return RECIPE, content
    return EXPERIMENT if {"data", "orders"} <= content.keys() else None, content


def _content(path: Path) -> dict[str, Any]:
    with suppress(UserError):
        return read_yaml(path)
    return {}
