"""A run that is finished, and has not changed since: what `ordermerge run` shows of it, with no library loaded."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from typing_extensions import TypedDict

from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.eval.comparison.record import FILE as COMPARISON
from ordermerge.eval.comparison.record import load_comparison
from ordermerge.eval.comparison.table import print_comparison
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.scoring.table import print_table
from ordermerge.files import FileStates, file_states, fingerprint, write_json
from ordermerge.provenance import versions
from ordermerge.run_directory import DIGESTS, FINISHED, REPORT, evaluation_folder, scored_models
from ordermerge.yaml_json import read_json

_OWN = (FINISHED, DIGESTS)


class Finished(TypedDict):
    """What is noted of a finished run.

    Attributes:
        key: Fingerprint of the experiment, where it is from, and the versions it was checked and carried out with.
        plan: The lines that say that nothing is left to do.
        inputs: What it was made from, before it was.
        outputs: The files of the run directory.
    """

    key: str
    plan: list[str]
    inputs: FileStates
    outputs: FileStates


def show_if_finished(path: Path, runs_dir: Path, changes: Sequence[str]) -> bool:
    """Show plan and scores of a run, if all of it is done and neither it nor what it was made from has changed.

    Args:
        path: The experiment file.
        runs_dir: Holds the run directories.
        changes: Keys to set otherwise than the file does, `KEY=VALUE` each.

    Returns:
        Whether it is so; else nothing was shown.

    Raises:
        UserError: If the experiment file has problems.
    """
    experiment = load_experiment(path, changes)
    run_directory = (runs_dir / experiment.name).resolve()
    try:
        noted: Finished = read_json(run_directory / FINISHED, Finished, remedy="")
        same = noted["key"] == _key(experiment, path, changes)
        same = same and noted["inputs"] == input_states(experiment, run_directory, noted["inputs"])
        if not same or noted["outputs"] != _states_below(run_directory):
            return False
    except (UserError, OSError):  # not finished, damaged, or a file is gone
        return False
    for line in noted["plan"]:
        click.echo(line, err=True)
    settings, out = experiment.evaluation, evaluation_folder(run_directory)
    print_table(load_rows(out, scored_models(experiment, run_directory), settings.tasks) if settings else [])
    if (out / COMPARISON).exists():
        print_comparison(load_comparison(out / COMPARISON))
    click.echo(f"report: {run_directory / REPORT}")
    return True


def note_finished(
    experiment: Experiment,
    path: Path,
    run_directory: Path,
    changes: Sequence[str],
    *,
    plan: list[str],
    inputs: FileStates,
) -> None:
    """Note that a run is finished, as the last thing that is done of it.

    Args:
        experiment: The experiment.
        path: The experiment file.
        run_directory: Its run directory.
        changes: Keys that were set otherwise than the file does.
        plan: The lines that say that nothing is left to do.
        inputs: `input_states`, from before it was carried out.
    """
    try:
        outputs = _states_below(run_directory)
    except FileNotFoundError:  # another process is at work here
        return
    noted = Finished(key=_key(experiment, path, changes), plan=plan, inputs=inputs, outputs=outputs)
    write_json(run_directory / FINISHED, noted)


def input_states(experiment: Experiment, run_directory: Path, others: Iterable[str]) -> FileStates:
    """Return the state of each file that an experiment is made from, those in folders that it names included.

    Args:
        experiment: The experiment.
        run_directory: Its run directory, which may lie in one of these folders.
        others: Files beside those.
    """
    evaluation = experiment.evaluation
    named = [experiment.model.path, experiment.data.train, experiment.data.validation, experiment.orders.file]
    named += [recipe.get("base_model") for recipe in experiment.merges.values()]
    named += [evaluation.include_path] if evaluation else []
    folders = {Path(name) for name in named if isinstance(name, str) and Path(name).is_dir()}
    found = {**file_states(map(Path, others))}
    for folder in folders:
        found |= _states_below(folder, but=run_directory.parent)
    return found


def _states_below(folder: Path, but: Path | None = None) -> FileStates:
    """Return the states of a folder's files, less hidden ones and those in another folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc" and path.name not in _OWN)
    visible = (p for p in paths if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return file_states(path for path in visible if but is None or not path.is_relative_to(but))


def _key(experiment: Experiment, path: Path, changes: Sequence[str]) -> str:
    return fingerprint([experiment.model_dump(mode="json"), str(path.resolve()), list(changes), versions()])
