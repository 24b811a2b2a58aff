"""What local tasks consist of: their configuration, the code beside it, and the data they read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ordermerge.config.schema import DATA_SUFFIXES, EvaluationSection
from ordermerge.eval.scoring.tasks import found_entries
from ordermerge.eval.task_data import PACK, located
from ordermerge.files import fingerprint, fingerprint_file


def data_problems(settings: EvaluationSection) -> list[str]:
    """Return one sentence for each task that uses our reader and whose data files are missing; nothing is read.

    Args:
        settings: What is asked of lm-eval.
    """
    problems = []
    for name, entry in _local_entries(settings).items():
        files = _read_by_us(entry, settings)
        if files == [] and name in settings.tasks:
            problems.append(f"task {name!r} needs `data_files`, under `dataset_kwargs` in its file or in `metadata`")
        missing = [str(path) for path in files or () if not path.is_file()]
        if missing:
            places = dict.fromkeys([str(entry.yaml_path.parent), str(Path.cwd())])
            problems.append(f"task {name!r}: no such data file: {', '.join(missing)} (looked in {', '.join(places)})")
    return problems


def data_paths(settings: EvaluationSection) -> set[Path]:
    """Return the files that the tasks read by our reader.

    Args:
        settings: What is asked of lm-eval.
    """
    files = (_read_by_us(entry, settings) or () for entry in _local_entries(settings).values())
    return {path.resolve() for paths in files for path in paths}


def local_identity(settings: EvaluationSection) -> dict[str, dict[str, Any]]:
    """Return what tells the local tasks from other ones: their configuration, and the code and data they read.

    A task of lm-eval's own collection is told by its name alone.

    Args:
        settings: What is asked of lm-eval.

    Returns:
        For each task asked for the local tasks that it comes down to, each with the fingerprints of its configuration
        and of its files.

    Raises:
        UserError: If the include path does not exist.
    """
    return {
        task: {name: _entry_identity(entry, settings) for name, entry in sorted(found.items()) if _is_local(entry)}
        for task, found in found_entries(settings).items()
    }


def _local_entries(settings: EvaluationSection) -> dict[str, Any]:
    """Return all local entries by name."""
    entries = {name: entry for found in found_entries(settings).values() for name, entry in found.items()}
    return {name: entry for name, entry in entries.items() if _is_local(entry)}


def _is_local(entry: Any) -> bool:
    return bool(entry and entry.yaml_path)


def _entry_identity(entry: Any, settings: EvaluationSection) -> dict[str, str]:
    folder = entry.yaml_path.parent
    paths = {p for p in folder.iterdir() if p.is_file() and p.suffix in (".py", *DATA_SUFFIXES)}
    paths |= {Path(file) for file in _data_files(entry.cfg)} | set(_read_by_us(entry, settings) or ())
    files: dict[str, str] = {}
    for path in sorted({path.resolve() for path in paths if path.is_file()}):
        files[path.name] = files.get(path.name, "") + fingerprint_file(path)
    # lm-eval writes the folder into the names of functions; a moved task is the same task.
    config = {
        key: str(value).replace(str(folder.resolve()), "").replace(str(PACK), "") for key, value in entry.cfg.items()
    }
    return {"configuration": fingerprint(config), **files}


def _read_by_us(entry: Any, settings: EvaluationSection) -> list[Path] | None:
    """Return the data files of a task that uses our reader, None of other tasks."""
    if not str(entry.cfg.get("custom_dataset")).endswith("ordermerge.eval.task_data.load"):
        return None
    return located([*_data_files(entry.cfg), *_data_files(settings.metadata)], entry.yaml_path)


def _data_files(node: Any, *, within: bool = False) -> list[str]:
    """Return the texts below every key `data_files` of a configuration."""
    if isinstance(node, Mapping):
        return [file for key, item in node.items() for file in _data_files(item, within=within or key == "data_files")]
    if isinstance(node, list):
        return [file for item in node for file in _data_files(item, within=within)]
    return [node] if within and isinstance(node, str) else []
