"""The tasks that are scored: found, checked, and identified by what they read."""

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.errors import UserError, did_you_mean
from ordermerge.experiment import DATA_SUFFIXES, EvaluationSection
from ordermerge.files import fingerprint, fingerprint_file

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

GLOB = set("*?[")


def find_tasks(settings: EvaluationSection) -> tuple["TaskManager", dict[str, list[str]]]:
    """Find the tasks by name: in the include path, and in lm-eval's own collection only where that is needed.

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
        problems = _unknown(settings, manager.task_index, local)
        if problems:
            raise UserError(problems)
    return manager, {task: _expand(task, manager.task_index) for task in settings.tasks}


def local_identity(settings: EvaluationSection) -> dict[str, dict[str, Any]]:
    """Return what tells the local tasks from other ones: their configuration, and the code and data beside it.

    A task of lm-eval's own collection is told by its name alone.

    Args:
        settings: What is asked of lm-eval.

    Returns:
        For each task asked for the local tasks that it comes down to, each with the fingerprints of its configuration
        and of its files; nothing of each without an include path.

    Raises:
        UserError: If the include path does not exist.
    """
    if settings.include_path is None:
        return {task: {} for task in settings.tasks}
    index = _manager(settings, own_collection=False).task_index
    found = {}
    for task in settings.tasks:
        entries = _reach(_expand(task, index), index)
        found[task] = {name: _entry_identity(entry) for name, entry in sorted(entries.items()) if _is_local(entry)}
    return found


def _is_local(entry: Any) -> bool:
    return bool(entry and entry.yaml_path)


def _manager(settings: EvaluationSection, *, own_collection: bool) -> "TaskManager":
    path = settings.include_path
    if path is not None and not Path(path).is_dir():
        raise UserError(f"include_path: no such folder: {path} (looked in {Path(path).absolute().parent})")
    from lm_eval.tasks import TaskManager

    # lm-eval's command hands the model arguments on as metadata; tasks that make their data by a tokenizer read it.
    metadata: Any = settings.model_args or None
    return TaskManager(include_path=path, include_defaults=own_collection, metadata=metadata)


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


def _unknown(settings: EvaluationSection, index: Mapping[str, Any], local: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each task that does not exist, and for each local file that may be the reason."""
    expanded = {task: _expand(task, index) for task in settings.tasks}
    missing = [
        name for name, entry in _reach((n for names in expanded.values() for n in names), index).items() if not entry
    ]
    missing += [task for task, names in expanded.items() if not names]
    if not missing:
        return []
    places = f"lm-eval's own {len(index) - len(local)} tasks"
    if settings.include_path is not None:
        places = f"{settings.include_path} ({', '.join(sorted(local)) or 'no task'}) and {places}"
    problems = [
        f"task {name!r} is unknown{_nearest(name, local) or _nearest(name, index)}; looked in {places}"
        for name in missing
    ]
    return problems + _unreadable(settings.include_path)


def _nearest(name: str, index: Mapping[str, Any]) -> str:
    if Path(name).suffix in (".yaml", ".yml"):
        return ": it looks like a file; give its folder as the include path, and the name after `task:` in it"
    hint = did_you_mean(name, list(index))
    return hint if hint.startswith(" (did you mean") else ""  # else it lists thousands of names


def _unreadable(include_path: str | None) -> list[str]:
    """Return a sentence for each file of the include path that lm-eval passes over in silence."""
    if include_path is None:
        return []
    from lm_eval.tasks.manager import load_yaml

    problems = []
    for path in sorted(Path(include_path).rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # YAML errors, a missing `include`, a root that is no mapping
            problems.append(f"{path} cannot be read as a task: {' '.join(str(error).split())}")
    named_yml = [str(path) for path in sorted(Path(include_path).rglob("*.yml"))]
    return problems + [f"{path} is not read: lm-eval looks for *.yaml; rename it" for path in named_yml]


def _entry_identity(entry: Any) -> dict[str, str]:
    folder = entry.yaml_path.parent
    beside = {p for p in folder.iterdir() if p.is_file() and p.suffix in (".py", *DATA_SUFFIXES)}
    named = {Path(file) for file in _data_files((entry.cfg.get("dataset_kwargs") or {}).get("data_files"))}
    files = {path.name: fingerprint_file(path) for path in sorted(beside | named) if path.is_file()}
    # lm-eval writes the folder into the names of functions; a moved task is the same task.
    config = {key: str(value).replace(str(folder.resolve()), "") for key, value in (entry.cfg or {}).items()}
    return {"configuration": fingerprint(config), **files}


def _data_files(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [file for item in value.values() for file in _data_files(item)]
    if isinstance(value, list):
        return [file for item in value for file in _data_files(item)]
    return [value] if isinstance(value, str) else []
