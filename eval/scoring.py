"""Score a list of models with lm-evaluation-harness: each once, none lost by another's failure."""

import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.errors import UserError, did_you_mean
from ordermerge.eval.harness import evaluate_model, free_memory
from ordermerge.eval.models import identity, local_folder, model_problem
from ordermerge.eval.quiet import quiet
from ordermerge.eval.saved import MARKER, load_rows
from ordermerge.eval.table import Row
from ordermerge.eval.tasks import find_tasks, load_problems, local_identity
from ordermerge.experiment import EvaluationSection
from ordermerge.files import write_text
from ordermerge.provenance import record
from ordermerge.stages import Step, mark_done, unfinished

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

STAGE = "eval"
ERROR_FILE = "error.txt"
# What does not change what is measured: scores made on another machine, or in smaller batches after an
# out-of-memory error, still count. lm-eval notes both in its results.
NOT_INPUTS = {"include_path", "batch_size", "device", "confirm_run_unsafe_code"}
RESERVED_ARGS = {"pretrained": "the list of models", "batch_size": "`batch_size`", "device": "`device`"}


class ScoringFailed(UserError):
    """Some models could not be scored; the others are saved.

    Args:
        problems: A sentence for each model that failed.
        rows: The scores of the others.
    """

    def __init__(self, problems: list[str], rows: list[Row]):
        super().__init__(problems)
        self.rows = rows


def check_evaluation(settings: EvaluationSection, models: Mapping[str, str] | None = None) -> list[str]:
    """Return every problem that can be seen without loading a model or a dataset.

    Args:
        settings: What is asked of lm-eval; a relative include path starts at the working directory.
        models: Name of each model, and its folder or hub id; leave out those that are still to be made.

    Returns:
        One sentence for each problem.
    """
    found = (model_problem(model, settings.model) for model in (models or {}).values())
    problems = [*_settings_problems(settings), *(problem for problem in found if problem)]
    try:
        with quiet():
            find_tasks(settings)
    except UserError as error:
        problems += error.problems
    return problems


def score_models(
    models: Mapping[str, str],
    settings: EvaluationSection,
    out: Path,
    *,
    inputs: Mapping[str, dict[str, Any]] | None = None,
) -> list[Row]:
    """Score models on the same tasks and save lm-eval's own files below `out/NAME/`.

    A model that was scored with the same settings, tasks and inputs is not scored again. When a model fails, the
    others are scored nevertheless; its traceback is kept in `out/NAME/error.txt`.

    Args:
        models: Name of each model, and its folder or hub id.
        settings: What is asked of lm-eval; a relative include path starts at the working directory.
        out: Where the results go.
        inputs: What identifies each model, such as the inputs of the stage that made it. By default it is the
            content of its files, which are read for it.

    Returns:
        The scores of all models, read from the saved files; in all but the first of several processes nothing.

    Raises:
        UserError: For problems seen before anything is loaded, and for saved scores that were made otherwise.
        ScoringFailed: After all others are scored and saved, naming each model that failed and why.
    """
    given = inputs or {}
    problems = _settings_problems(settings)
    problems += _model_problems({name: model for name, model in models.items() if name not in given}, settings, out)
    if problems:
        raise UserError(problems)
    with quiet():
        identities = {name: given.get(name) or identity(model) for name, model in models.items()}
        # Decided for all at once, so that several processes decide alike.
        todo = {step.name: step for step in unfinished(evaluation_steps(identities, settings, out))}
        manager, tasks = _ready({name: models[name] for name in todo}, settings, out) if todo else (None, [])
        failures = {}
        for position, (name, model) in enumerate(models.items(), start=1):
            where = f"[{position}/{len(models)}] {name}"
            if name not in todo:
                _say(f"{where}: already scored")
                continue
            _say(f"{where}: scoring {model}")
            started = time.perf_counter()
            failures[name] = _score_or_explain(model, manager, tasks, settings, todo[name])
            _say(f"{where}: {'failed' if failures[name] else 'scored'} after {time.perf_counter() - started:.1f} s")
    rows = load_rows(out, models) if _is_main_process() else []
    failed = [f"{name} ({models[name]}) could not be scored: {reason}" for name, reason in failures.items() if reason]
    if failed:
        raise ScoringFailed(failed, rows)
    return rows


def evaluation_steps(identities: Mapping[str, dict[str, Any]], settings: EvaluationSection, out: Path) -> list[Step]:
    """Return a step for each model to be scored.

    Args:
        identities: For each model what identifies it.
        settings: What is asked of lm-eval; a relative include path starts at the working directory.
        out: Where the results go.
    """
    common = {"evaluation": settings.model_dump(exclude=NOT_INPUTS), "tasks": local_identity(settings)}
    return [
        Step(STAGE, name, out / name, MARKER, {**common, "model": identity}) for name, identity in identities.items()
    ]


def _settings_problems(settings: EvaluationSection) -> list[str]:
    from lm_eval.models import MODEL_MAPPING

    problems = [
        f"model_args: `{key}` comes from {source}; remove it from model_args"
        for key, source in RESERVED_ARGS.items()
        if key in settings.model_args
    ]
    if settings.model not in MODEL_MAPPING:
        problems.append(f"model: unknown backend {settings.model!r}{did_you_mean(settings.model, list(MODEL_MAPPING))}")
    if settings.limit is not None and settings.limit <= 0:
        problems.append(f"limit: must be above 0; got {settings.limit:g}; leave it out to score every document")
    return problems


def _model_problems(models: Mapping[str, str], settings: EvaluationSection, out: Path) -> list[str]:
    problems = [model_problem(model, settings.model) for model in models.values()]
    for name, model in models.items():
        if (folder := local_folder(model)) and folder == Path(os.path.abspath(out / name)):
            problems.append(f"{folder} is the model's own folder; choose another folder for the results")
    return [problem for problem in problems if problem]


def _ready(models: Mapping[str, str], settings: EvaluationSection, out: Path) -> tuple["TaskManager", list[str]]:
    """Return the tasks, after everything has been checked that can go wrong before a model is loaded."""
    problems = _model_problems(models, settings, out)
    if problems:
        raise UserError(problems)
    manager, names = find_tasks(settings)
    problems = load_problems(manager, names, unsafe_code=settings.confirm_run_unsafe_code)
    if problems:
        raise UserError(problems)
    return manager, names


def _score_or_explain(
    model: str, manager: Any, tasks: list[str], settings: EvaluationSection, step: Step
) -> str | None:
    """Score one model, and return why that failed, or None."""
    folder = step.output
    try:
        files = evaluate_model(model, manager, tasks, settings, folder)
        if files is not None:
            mark_done(folder / step.marker, step.inputs, {**files, **record(Path.cwd())})
    except Exception as error:  # whatever a checkpoint or backend raises must not lose the models after it
        write_text(folder / ERROR_FILE, traceback.format_exc())
        return f"{type(error).__name__}: {_first_sentence(str(error))} (traceback: {folder / ERROR_FILE})"
    finally:
        free_memory()
    (folder / ERROR_FILE).unlink(missing_ok=True)
    return None


def _first_sentence(text: str, length: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun and `accelerate launch`


def _say(text: str) -> None:
    if _is_main_process():
        print(text, file=sys.stderr, flush=True)
