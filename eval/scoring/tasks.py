"""The tasks that are scored: found and checked."""

import fnmatch
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.explain import unknown_tasks
from ordermerge.eval.task_data import PACK
from ordermerge.models import FOLDER_BACKENDS, local_folder, parts_of

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

GLOB = set("*?[")
LOCAL_READERS = ("json", "csv", "parquet", "text", "arrow", "pandas", "xml")  # of datasets, by their name


def find_tasks(settings: EvaluationSection) -> tuple["TaskManager", dict[str, list[str]]]:
    """Find the tasks by name: in the include path, in ours, and only where that is needed in lm-eval's own collection.

    Args:
        settings: What is asked of lm-eval.

    Returns:
        lm-eval's task manager, and for each task asked for its name, or those that its glob pattern stands for.

    Raises:
        UserError: For every unknown task: where it was looked for, the nearest name, local files that cannot be read.
    """
    manager = _manager(settings, own_collection=False)
    reached = _reach(settings.tasks, manager.task_index)
    if None in reached.values():
        # Thousands of files are read for this: seconds, which local tasks need not wait for.
        local, manager = manager.task_index, _manager(settings, own_collection=True)
        if missing := _missing(settings, manager.task_index):
            raise UserError(unknown_tasks(missing, settings.include_path, manager.task_index, local))
    return manager, {task: _expand(task, manager.task_index) for task in settings.tasks}


def found_entries(settings: EvaluationSection) -> dict[str, dict[str, Any]]:
    """Return for each task asked for the entries that it comes down to; lm-eval's own, and unknown ones, are None.

    Args:
        settings: What is asked of lm-eval.

    Raises:
        UserError: If the include path does not exist.
    """
    index = _manager(settings, own_collection=False).task_index
    return {task: _reach(_expand(task, index), index) for task in settings.tasks}


def on_hub(settings: EvaluationSection, models: Iterable[str]) -> bool:
    """Return whether a model, or the data of a task, comes from the hub.

    Args:
        settings: What is asked of lm-eval.
        models: Folders or hub ids.
    """
    if settings.model in FOLDER_BACKENDS and not all(
        local_folder(part) for model in models for part in parts_of(model) if part
    ):
        return True
    entries = [entry for found in found_entries(settings).values() for entry in found.values()]
    paths = [entry.cfg.get("dataset_path") if entry else "a task of lm-eval's own" for entry in entries]
    return any(path and path not in LOCAL_READERS and not Path(path).exists() for path in paths)


def leaf_tasks(settings: EvaluationSection) -> set[str]:
    """Return the names of the tasks that groups, tags and patterns come down to.

    Args:
        settings: What is asked of lm-eval.

    Raises:
        UserError: For every unknown task.
    """
    manager, names = find_tasks(settings)
    reached = _reach((name for found in names.values() for name in found), manager.task_index)
    return {name for name, entry in reached.items() if entry.kind.name in ("TASK", "PY_TASK")}


def listed_tasks(include_path: str | None) -> str:
    """Return the names of all tasks, groups and tags, one a line: the user's and ours, then lm-eval's own.

    Args:
        include_path: Folder of the user's tasks.

    Raises:
        UserError: If there is no such folder.
    """
    settings = EvaluationSection(tasks=["list"], include_path=include_path)
    local = sorted(_manager(settings, own_collection=False).task_index)
    everything = sorted(_manager(settings, own_collection=True).task_index)
    return "\n".join(dict.fromkeys([*local, *everything]))


def _manager(settings: EvaluationSection, *, own_collection: bool) -> "TaskManager":
    path = settings.include_path
    if path is not None and not Path(path).is_dir():
        raise UserError(f"include_path: no such folder: {path} (looked in {Path(path).absolute().parent})")
    # lm-eval's command hands the model arguments on as metadata; tasks that make their data by a tokenizer read it.
    metadata = json.dumps({**settings.model_args, **settings.metadata}, sort_keys=True, default=str)
    folder = None if path is None else Path(path).absolute()
    return _scanned(folder, _state(folder), own_collection, metadata)


@functools.lru_cache(maxsize=2)
def _scanned(folder: Path | None, state: tuple[Any, ...], own_collection: bool, metadata: str) -> "TaskManager":
    """Return lm-eval's index of tasks: a scan of its own collection takes seconds, and a soup asks for it many times.

    Args:
        folder: That of local tasks.
        state: What tells whether that folder's files have changed.
        own_collection: Whether lm-eval's own tasks are among them.
        metadata: As JSON.
    """
    from lm_eval.tasks import TaskManager

    paths: list[str | Path] = [PACK] if folder is None else [PACK, folder]
    return TaskManager(include_path=paths, include_defaults=own_collection, metadata=json.loads(metadata) or None)


def _state(folder: Path | None) -> tuple[Any, ...]:
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder else []
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _reach(names: Iterable[str], index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the index entry, None where there is none, of each name and of all that groups and tags lead to."""
    found: dict[str, Any] = {}
    todo: list[Any] = list(names)
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            name = str(item.get("group") or item.get("task"))
            if name not in index and "group" in item:
                todo += item.get("task") or []  # a group defined inside its parent
                continue
            if name not in index and {"dataset_path", "custom_dataset"} & item.keys():
                continue  # a task defined inside its parent
        else:
            name = item
        if name in found:
            continue
        entry = found[name] = index.get(name)
        if entry is not None and entry.kind.name == "TAG":
            todo += entry.tags
        elif entry is not None and isinstance(entry.cfg.get("task"), list):
            todo += entry.cfg["task"]
    return found


def _expand(name: str, index: Mapping[str, Any]) -> list[str]:
    if name in index or not GLOB & set(name):
        return [name]
    return sorted(fnmatch.filter(index, name))


def _missing(settings: EvaluationSection, index: Mapping[str, Any]) -> list[str]:
    """Return the tasks that do not exist, those that groups and tags lead to included."""
    expanded = {task: _expand(task, index) for task in settings.tasks}
    reached = _reach((name for names in expanded.values() for name in names), index)
    return [name for name, entry in reached.items() if not entry] + [task for task in expanded if not expanded[task]]
