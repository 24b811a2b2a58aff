"""Score a list of models with lm-evaluation-harness: each once, none lost by another's failure."""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.config.schema import EvaluationSection
from ordermerge.console import say
from ordermerge.errors import UserError
from ordermerge.eval.scoring.checks import absent_models, model_problems, settings_problems
from ordermerge.eval.scoring.explain import explained
from ordermerge.eval.scoring.harness import LoadedTask, evaluate_model, free_memory, load_tasks
from ordermerge.eval.scoring.hub import offline_if_unreachable
from ordermerge.eval.scoring.quiet import quiet
from ordermerge.eval.scoring.saved import load_rows, marker_name
from ordermerge.eval.scoring.steps import KEYS, SIZES, ScoringStep, sizes
from ordermerge.eval.scoring.table import Row
from ordermerge.eval.scoring.task_files import local_data, local_identity, untold_reads
from ordermerge.eval.scoring.tasks import find_tasks, on_hub
from ordermerge.files import file_records, write_text
from ordermerge.folders import new_directory
from ordermerge.locks import lock
from ordermerge.models import Model, identity, members_of
from ordermerge.progress import Counted
from ordermerge.provenance import record
from ordermerge.stages import Step, mark_done, unfinished

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

STAGE = "eval"
ERROR_FILE = "error.txt"
# What does not change what is measured: scores made on another machine, or in smaller batches after an
# out-of-memory error, still count. lm-eval notes both in its results. Each task has a step of its own.
# The files that `metadata` may name count by their content, as those of the tasks do.
_ASIDE = ("tasks", "include_path", "batch_size", "max_batch_size", "device", "confirm_run_unsafe_code", "ensemble")
NOT_INPUTS: Any = {**dict.fromkeys(_ASIDE, True), "metadata": {"data_files"}}


class ScoringFailed(UserError):
    """Some models could not be scored; the others are saved.

    Args:
        problems: A sentence for each model that failed.
        rows: The scores of the others.
    """

    def __init__(self, problems: list[str], rows: list[Row]):
        super().__init__(problems)
        self.rows = rows


def score_models(
    models: Mapping[str, Model],
    settings: EvaluationSection,
    out: Path,
    *,
    steps: Sequence[Step] | None = None,
    made: Mapping[str, Callable[[], AbstractContextManager[str]]] | None = None,
) -> list[Row]:
    """Score models on the same tasks and save lm-eval's own files below `out/NAME/`.

    A model that was scored on a task with the same settings and inputs is not scored on it again. When a model fails,
    the others are scored nevertheless; its traceback is kept in `out/NAME/error.txt`.

    Args:
        models: Name of each model, and its folder or hub id; several are an ensemble.
        settings: What is asked of lm-eval; a relative include path starts at the working directory.
        out: Where the results go.
        steps: Of a plan, one for each model and task (`evaluation_steps`); by default a model is identified by the
            content of its files, which are read for it.
        made: Models that are made when their turn comes, and are gone after it: by name, what makes one and yields its
            folder. They need `steps`.

    Returns:
        The scores of all models, read from the saved files; in all but the first of several processes nothing.

    Raises:
        UserError: For problems seen before anything is loaded, and for saved scores that were made otherwise.
        ScoringFailed: After all others are scored and saved, naming each model that failed and why.
    """
    made = made or {}
    problems = settings_problems(settings, {name: model for name, model in models.items() if name not in made})
    problems += model_problems(models, settings, out) if steps is None else []
    if problems:
        raise UserError(problems)
    progress = Counted("request")
    with quiet(progress if _is_main_process() else None), ExitStack() as network:
        if steps is None:
            steps = evaluation_steps({name: model_identity(model) for name, model in models.items()}, settings, out)
        # Decided for all at once, so that several processes decide alike.
        todo: dict[str, list[Step]] = {}
        for step in unfinished(steps):
            todo.setdefault(step.name, []).append(step)
        kept = {name: models[name] for name in todo if name not in made}
        used = [member for model in kept.values() for member in members_of(model)]
        network.enter_context(offline_if_unreachable(bool(todo) and on_hub(settings, used)))
        if problems := absent_models(used, settings):
            raise UserError(problems)
        for sentence in untold_reads(settings) if todo else []:
            _say(f"warning: {sentence}")
        manager, tasks = _ready(kept, settings, out, todo) if todo else (None, {})
        progress.count, failures = len(todo), {}
        for position, (name, model) in enumerate(models.items(), start=1):
            where = f"[{position}/{len(models)}] {name}"
            if name not in todo:
                _say(f"{where}: already scored")
                continue
            what = model if isinstance(model, str) else f"the ensemble of {len(model)} models"
            _say(f"{where}: scoring {what}{_part(todo[name], settings)}")
            started = time.perf_counter()
            progress.next(where)
            with _locked(todo[name]) as left:
                if not left:
                    _say(f"{where}: scored by another process meanwhile")
                    continue
                opened = made[name]() if name in made else nullcontext(model)
                failures[name] = _score_or_explain(opened, manager, tasks, settings, left)
            progress.end()
            _say(f"{where}: {'failed' if failures[name] else 'scored'} after {time.perf_counter() - started:.1f} s")
    rows = load_rows(out, models, settings.tasks) if _is_main_process() else []
    failed = [f"{name} ({models[name]}) could not be scored: {reason}" for name, reason in failures.items() if reason]
    if failed:
        raise ScoringFailed(failed, rows)
    return rows


def model_identity(model: Model) -> dict[str, Any]:
    """Return what tells a model, or an ensemble of models, from another.

    Args:
        model: Folder or hub id; several are an ensemble.
    """
    return identity(model) if isinstance(model, str) else {"ensemble": [identity(member) for member in model]}


def evaluation_steps(
    models: Mapping[str, dict[str, Any] | Step | tuple[Step, ...]], settings: EvaluationSection, out: Path
) -> list[Step]:
    """Return a step for each model and each task that it is to be scored on.

    Args:
        models: For each model what identifies it, or the step that makes it; an ensemble's members have one each.
        settings: What is asked of lm-eval; a relative include path starts at the working directory.
        out: Where the results go.
    """
    common, data = settings.model_dump(exclude=NOT_INPUTS), local_data(settings)
    tasks = {
        task: {"evaluation": common, "task": task, "files": files} for task, files in local_identity(settings).items()
    }
    steps: list[Step] = []
    for name, model in models.items():
        needs = (model,) if isinstance(model, Step) else model if isinstance(model, tuple) else ()
        identity = {"model": model} if isinstance(model, dict) else {}
        steps += [
            ScoringStep(
                STAGE, name, out / name, marker_name(task), {**inputs, **identity}, needs, KEYS, data=data[task]
            )
            for task, inputs in tasks.items()
        ]
    return steps


def _ready(
    models: Mapping[str, Model], settings: EvaluationSection, out: Path, todo: Mapping[str, list[Step]]
) -> tuple["TaskManager", dict[str, LoadedTask]]:
    """Return the tasks, after everything has been checked that can go wrong before a model is loaded."""
    problems = model_problems(models, settings, out)
    if problems:
        raise UserError(problems)
    manager, names = find_tasks(settings)
    wanted = {step.inputs["task"] for steps in todo.values() for step in steps}
    asked = {task: names[task] for task in names if task in wanted}
    return manager, load_tasks(manager, asked, unsafe_code=settings.confirm_run_unsafe_code)


def _part(steps: list[Step], settings: EvaluationSection) -> str:
    """Return what to say if a model is scored on some of the tasks only."""
    tasks = [step.inputs["task"] for step in steps]
    return "" if len(tasks) == len(set(settings.tasks)) else f" on {', '.join(tasks)}"


@contextmanager
def _locked(steps: list[Step]) -> Iterator[list[Step]]:
    """Hold the lock of a model's scores in the first of several processes; yield the steps that are still to do."""
    if not _is_main_process():
        yield steps
        return
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # the others have decided already, and go on
    with lock(steps[0].output):
        yield steps if several else unfinished(steps)


def _score_or_explain(
    model: AbstractContextManager[Model],
    manager: Any,
    tasks: Mapping[str, LoadedTask],
    settings: EvaluationSection,
    steps: list[Step],
) -> str | None:
    """Score one model, and return why that failed, or None."""
    folder = steps[0].output
    chosen = {step.inputs["task"]: tasks[step.inputs["task"]] for step in steps}
    began = {step.marker: (step.made_from(), sizes(step)) for step in steps}
    try:
        with model as opened, _filled(folder) as partial:
            files = evaluate_model(opened, manager, chosen.values(), settings, partial)
            made = record(Path.cwd())
            for step in steps if files is not None else []:
                made_from, bytes_read = began[step.marker]
                noted = {"tasks": chosen[step.inputs["task"]].names, **(files or {}), **made, SIZES: bytes_read}
                written = file_records(partial, [noted["results"], *noted["samples"].values()])
                mark_done(partial / step.marker, step.inputs, noted, files=written, made_from=made_from)
    except Exception as error:  # whatever a checkpoint or backend raises must not lose the models after it
        write_text(folder / ERROR_FILE, traceback.format_exc())
        return f"{explained(error)} (traceback: {folder / ERROR_FILE})"
    finally:
        free_memory()
    (folder / ERROR_FILE).unlink(missing_ok=True)
    return None


def _filled(folder: Path) -> AbstractContextManager[Path]:
    """Return what yields the folder to write scores to; but for the first of several processes, no one writes."""
    return new_directory(folder, beside=True) if _is_main_process() else nullcontext(folder)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun and `accelerate launch`


def _say(text: str) -> None:
    if _is_main_process():
        say(text)
