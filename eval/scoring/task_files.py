"""What local tasks consist of: their configuration, the code beside it, and the data they read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ordermerge.config.schema import DATA_SUFFIXES, EvaluationSection
from ordermerge.eval.scoring.task_code import task_code
from ordermerge.eval.scoring.tasks import GLOB, found_entries
from ordermerge.eval.task_data import PACK, located
from ordermerge.files import fingerprint, fingerprint_path

LINE_SUFFIXES = (".jsonl", ".csv")
_MOST_NAMED = 20  # files that a marker lists by name


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


def untold_reads(settings: EvaluationSection) -> list[str]:
    """Return a sentence for each local task whose data cannot be told from its configuration and code.

    Args:
        settings: What is asked of lm-eval.
    """
    found = ((name, entry, task_code(entry.cfg)) for name, entry in _local_entries(settings).items())
    return [
        f"task {name!r}: what {', '.join(sorted(path.name for path in code.untold))} reads is not named in it; scores "
        "are kept when that changes: redo them with `--force eval`, or delete them"
        for name, entry, code in found
        if code.untold and not _beside(entry, DATA_SUFFIXES)
    ]


def local_data(settings: EvaluationSection) -> dict[str, dict[str, Path]]:
    """Return the files of one document a line that the local tasks read: their documents may be added to.

    Args:
        settings: What is asked of lm-eval.

    Returns:
        For each task asked for, its files by where `local_identity` has their fingerprints: "NAME.FILE".
    """
    return {
        task: {
            f"{name}.{path.name}": path
            for name, entry in found.items()
            if _is_local(entry)
            for path in _entry_paths(entry, settings)
            if path.suffix in LINE_SUFFIXES
        }
        for task, found in found_entries(settings).items()
    }


def _entry_paths(entry: Any, settings: EvaluationSection) -> list[Path]:
    """Return the code and the data that a local task reads."""
    code = task_code(entry.cfg)
    paths = {*code.files, *code.reads, *_data_paths(entry), *(_read_by_us(entry, settings) or ())}
    paths |= _beside(entry, (".py", *DATA_SUFFIXES) if code.untold else (".py",))
    return sorted({path.resolve() for path in paths if path.exists()})


def _entry_identity(entry: Any, settings: EvaluationSection) -> dict[str, str]:
    content = {path: fingerprint_path(path) for path in _entry_paths(entry, settings)}
    files: dict[str, str] = {}
    for path, digest in content.items():
        files[path.name] = files.get(path.name, "") + digest
    if len(files) > _MOST_NAMED:
        files = {"files": fingerprint(files)}
    # lm-eval writes the folder into the names of functions; a moved task is the same task.
    config = {
        key: str(value).replace(str(entry.yaml_path.parent.resolve()), "").replace(str(PACK), "")
        for key, value in entry.cfg.items()
    }
    return {"configuration": fingerprint(config), **files}


def _beside(entry: Any, suffixes: Sequence[str]) -> set[Path]:
    return {path for path in entry.yaml_path.parent.iterdir() if path.suffix in suffixes and path.is_file()}


def _data_paths(entry: Any) -> set[Path]:
    """Return the local files and folders that a task's configuration names as its data."""
    path = str(entry.cfg.get("dataset_path") or "")
    folders = {Path(text) for text in (path, *_below(entry.cfg, "data_dir")) if text and Path(text).exists()}
    files: set[Path] = set()
    for text in _below(entry.cfg, "data_files"):
        for place in (Path(), *folders):
            files |= set(place.glob(text)) if GLOB & set(text) and not text.startswith("/") else {place / text}
    return folders | files


def _read_by_us(entry: Any, settings: EvaluationSection) -> list[Path] | None:
    """Return the data files of a task that uses our reader, None of other tasks."""
    if not str(entry.cfg.get("custom_dataset")).endswith("ordermerge.eval.task_data.load"):
        return None
    return located([*_below(entry.cfg, "data_files"), *_below(settings.metadata, "data_files")], entry.yaml_path)


def _below(node: Any, name: str, *, within: bool = False) -> list[str]:
    """Return the texts below every key of a name in a configuration."""
    if isinstance(node, Mapping):
        return [text for key, item in node.items() for text in _below(item, name, within=within or key == name)]
    if isinstance(node, list):
        return [text for item in node for text in _below(item, name, within=within)]
    return [node] if within and isinstance(node, str) else []
