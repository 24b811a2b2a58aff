"""Scores of any models on disk: folders of `ordermerge eval`, of `ordermerge run`, or of lm-eval's own command."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ordermerge.errors import UserError, did_you_mean
from ordermerge.eval.comparison.documents import ModelValues, mismatch, read_values
from ordermerge.eval.scoring.saved import MARKERS, SavedScores, lm_eval_results, load_lm_eval, load_scores
from ordermerge.files import user_path
from ordermerge.run_directory import BASE, EXPERIMENT, evaluation_folder


def find_scores(given: str) -> dict[str, SavedScores]:
    """Return the scores of the models in a folder of results, by name.

    A single model has the folder's name as it was given; of several each has that and its own folder's below it.

    Args:
        given: A run directory, the `--out` of `ordermerge eval`, the `--output_path` of `lm_eval`, the folder of one
            model below these, or one of lm-eval's results files, for results of an earlier date.

    Raises:
        UserError: If there are no such results, or they cannot be read.
    """
    name, path = given.rstrip("/") or given, user_path(given)
    if not path.exists():
        raise UserError(f"{given}: no such folder of results (looked in {path.resolve().parent})")
    is_run = (path / EXPERIMENT).is_file()
    root = evaluation_folder(path) if is_run else path
    folders = sorted({file.parent for file in root.rglob("*.json")}, key=lambda folder: (folder.name != BASE, folder))
    found = {folder: saved for folder in ([path] if path.is_file() else folders) if (saved := _read(folder)).rows}
    if not found:
        scored = "the run has no scores yet: `ordermerge run` makes them" if is_run else (
            "it holds no results of lm-eval; give the folder that `ordermerge eval --out`, `ordermerge run` or "
            "`lm_eval --log_samples --output_path` wrote"
        )  # fmt: skip
        raise UserError(f"{given}: {scored}")
    alone = not is_run and len(found) == 1
    names = {folder: name if alone else f"{name}/{folder.relative_to(root).as_posix()}" for folder in found}
    return {
        names[folder]: replace(saved, rows=[replace(row, model=names[folder]) for row in saved.rows])
        for folder, saved in found.items()
    }


def find_all(results: Sequence[str]) -> dict[str, dict[str, SavedScores]]:
    """Return what `find_scores` finds in each of several folders of results.

    Args:
        results: The folders.

    Raises:
        UserError: As `find_scores`; and if a model is listed twice, however its folder is written.
    """
    found = {given: find_scores(given) for given in results}
    names: dict[frozenset[Path], str] = {}
    for given in results:
        for name, saved in found[given].items():
            if before := names.get(saved.place):
                also = "" if before == name else f", as {before} too"
                raise UserError(f"{name}: listed more than once{also}; list each folder once")
            names[saved.place] = name
    return found


def read_models(found: dict[str, SavedScores], tasks: Sequence[str] = ()) -> list[ModelValues]:
    """Read the documents' values of models that are to be scored alike.

    Args:
        found: Scores by model.
        tasks: The tasks and groups that count; all, if none is given.

    Raises:
        UserError: If a task is unknown, a model has no samples, or models were scored on different documents, prompts,
            few-shot examples or versions of a task.
    """
    known = {row.task for saved in found.values() for row in saved.rows}
    if unknown := [task for task in tasks if task not in known]:
        raise UserError(f"task {task!r} has no scores here{did_you_mean(task, sorted(known))}" for task in unknown)
    models = [read_values(name, _only(saved, tasks) if tasks else saved) for name, saved in found.items()]
    if missing := [model.name for model in models if not model.documents]:
        raise UserError(
            f"{name}: has scores but no samples of its documents; score it with `lm_eval --log_samples`"
            for name in missing
        )
    every = dict.fromkeys(task for model in models for task in model.documents)
    having = {task: [model for model in models if task in model.documents] for task in every}
    if problems := [reason for task in every if (reason := mismatch(having[task], task))]:
        raise UserError(f"{reason}; score them alike, or leave the task out with `--tasks`" for reason in problems)
    return models


def _read(place: Path) -> SavedScores:
    if place.is_dir() and any(place.glob(MARKERS)):
        return load_scores(place)
    if place.is_file() or lm_eval_results(place):
        return load_lm_eval(place)
    return SavedScores([], {}, {}, {})


def _only(saved: SavedScores, tasks: Iterable[str]) -> SavedScores:
    """Return the scores on some tasks and groups, and on what these groups come down to."""
    asked = set(tasks)
    leaves = {leaf for task in asked for leaf in saved.subtasks.get(task, [task])}
    return replace(
        saved,
        rows=[row for row in saved.rows if row.task in asked],
        results={task: path for task, path in saved.results.items() if task in asked},
        samples={task: path for task, path in saved.samples.items() if task in leaves},
    )
