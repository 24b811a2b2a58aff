"""What can be wrong with an evaluation, found before a model or a dataset is loaded."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError, did_you_mean
from ordermerge.eval.scoring.argument_checks import argument_problems, number_problems
from ordermerge.eval.scoring.harness import load_tasks
from ordermerge.eval.scoring.quiet import quiet
from ordermerge.eval.scoring.task_files import data_problems
from ordermerge.eval.scoring.tasks import find_tasks, on_hub
from ordermerge.models import (
    FOLDER_BACKENDS,
    HF_BACKENDS,
    Model,
    is_offline,
    local_folder,
    members_of,
    missing_package,
    model_folder,
    model_problem,
    near_folder,
    parts_of,
)

RESERVED_ARGS = {"pretrained": "the list of models", "batch_size": "`batch_size`", "device": "`device`"}


def check_evaluation(settings: EvaluationSection, models: Mapping[str, str] | None = None) -> list[str]:
    """Return every problem that can be seen without loading a model, or asking the hub for a dataset.

    Args:
        settings: What is asked of lm-eval; a relative include path starts at the working directory.
        models: Name of each model, and its folder or hub id; leave out those that are still to be made.

    Returns:
        One sentence for each problem.
    """
    found = (model_problem(model, settings.model) for model in (models or {}).values())
    problems = [*settings_problems(settings, models), *(problem for problem in found if problem)]
    try:
        with quiet():
            manager, names = find_tasks(settings)
            problems += (missing := data_problems(settings))
            # Offline, what is in the local cache can be tried, and what is not cannot be had later either.
            asked = {task: found for task, found in names.items() if is_offline() or not _on_hub(task, settings)}
            if not missing:
                load_tasks(manager, asked, unsafe_code=settings.confirm_run_unsafe_code)
    except UserError as error:
        problems += error.problems
    return problems


def _on_hub(task: str, settings: EvaluationSection) -> bool:
    return on_hub(settings.model_copy(update={"tasks": [task]}), ())


def settings_problems(settings: EvaluationSection, models: Mapping[str, Model] | None = None) -> list[str]:
    """Return a sentence for each setting that lm-eval would stumble over.

    Args:
        settings: What is asked of lm-eval.
        models: Name of each model, and its folder or hub id, as far as they are known.
    """
    from lm_eval.models import MODEL_MAPPING

    problems = [
        f"model_args: `{key}` comes from {source}; remove it from model_args"
        for key, source in RESERVED_ARGS.items()
        if key in settings.model_args
    ]
    if settings.model not in MODEL_MAPPING:
        problems.append(f"model: unknown backend {settings.model!r}{did_you_mean(settings.model, list(MODEL_MAPPING))}")
    elif missing := missing_package(settings.model):
        problems.append(missing)
    if settings.ensemble and settings.model not in HF_BACKENDS:
        problems.append(f"ensemble: needs the backend hf, got {settings.model!r}; leave out `ensemble`, or `model`")
    if settings.fewshot_as_multiturn and not settings.apply_chat_template:
        problems.append("fewshot_as_multiturn: needs `apply_chat_template`; leave one out, or give both")
    members = {member: member for model in (models or {}).values() for member in members_of(model)}
    return [*problems, *number_problems(settings), *argument_problems(settings, members)]


def absent_models(models: Iterable[str], settings: EvaluationSection) -> list[str]:
    """Return a sentence for each model that is neither a folder nor in the local cache, while the hub is out of reach.

    Args:
        models: Folders or hub ids.
        settings: What is asked of lm-eval.
    """
    if settings.model not in FOLDER_BACKENDS or not is_offline():
        return []
    problems, named = [], [part for model in models for part in parts_of(model) if part]
    for model in dict.fromkeys(named):
        if model_folder(model, settings.model_args.get("cache_dir")) is None:
            near = near_folder(model)
            meant = f"; did you mean {near!r}?" if near else ""
            problems.append(
                f"{model}: no such model folder (looked in {Path.cwd()}){meant}; nor is it in the Hugging Face cache, "
                "and the hub cannot be reached"
            )
    return problems


def model_problems(models: Mapping[str, Model], settings: EvaluationSection, out: Path) -> list[str]:
    """Return a sentence for each model that cannot be scored with its results in `out/NAME/`.

    Args:
        models: Name of each model, and its folder or hub id.
        settings: What is asked of lm-eval.
        out: Where the results go.
    """
    members = [(name, member) for name, model in models.items() for member in members_of(model)]
    problems = [model_problem(member, settings.model) for _, member in dict.fromkeys(members)]
    for name, member in members:
        if (folder := local_folder(member)) and folder == Path(os.path.abspath(out / name)):
            problems.append(f"{folder} is the model's own folder; choose another folder for the results")
    return [problem for problem in problems if problem]
