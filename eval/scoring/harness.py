"""One model through lm-evaluation-harness, on tasks that are loaded once for all models."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.explain import explained
from ordermerge.eval.scoring.quiet import no_git_complaint
from ordermerge.eval.scoring.saved import new_tracker, save_results
from ordermerge.eval.scoring.task_templates import template_problems
from ordermerge.eval.scoring.tasks import LOCAL_READERS
from ordermerge.models import HF_BACKENDS, Model, loading_args, members_of

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True)
class LoadedTask:
    """What one name that was asked for stands for.

    Attributes:
        items: lm-eval's tasks and groups of tasks by name, none of them part of another.
        names: Names of all that gets a score: tasks and groups.
    """

    items: dict[str, Any]
    names: list[str]


def evaluate_model(
    model: Model, manager: "TaskManager", tasks: Iterable[LoadedTask], settings: EvaluationSection, folder: Path
) -> dict[str, Any] | None:
    """Run one model on the tasks, and save lm-eval's results and samples.

    Args:
        model: Folder or hub id; several are an ensemble.
        manager: lm-eval's task manager.
        tasks: What to score it on.
        settings: What is asked of lm-eval.
        folder: Where the files go.

    Returns:
        The names of the files as `save_results` gives them; None in all but one of several processes.
    """
    from lm_eval import simple_evaluate

    tracker = new_tracker(folder)
    members = members_of(model)
    trusted = {"trust_remote_code": True} if settings.trust_remote_code else {}
    arguments = [{**settings.model_args, **trusted, **loading_args(member, settings.model)} for member in members]
    ensemble = None if isinstance(model, str) else _load_ensemble(arguments, settings)
    with no_git_complaint():
        results = simple_evaluate(
            model=ensemble or settings.model,
            model_args={**arguments[0], "pretrained": members} if ensemble else arguments[0],
            tasks=distinct_items(tasks),
            num_fewshot=settings.num_fewshot,
            batch_size=settings.batch_size,
            max_batch_size=settings.max_batch_size,
            device=settings.device or _default_device(settings.model),
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.fewshot_as_multiturn is not False,
            system_instruction=settings.system_instruction,
            gen_kwargs=dict(settings.gen_kwargs) or None,
            task_manager=manager,
            evaluation_tracker=tracker,
            confirm_run_unsafe_code=settings.confirm_run_unsafe_code,
            log_samples=True,
        )
    if results is None:  # one of several processes, and not the one that holds the results
        return None
    return save_results(tracker, results, folder)


def free_memory() -> None:
    """Give the last model's memory back before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_tasks(
    manager: "TaskManager", asked: Mapping[str, Sequence[str]], *, unsafe_code: bool
) -> dict[str, LoadedTask]:
    """Load tasks and their data.

    Args:
        manager: From `find_tasks`.
        asked: From `find_tasks`: names of lm-eval's by name asked for.
        unsafe_code: Whether the user consents to run code that a model wrote.

    Returns:
        By name asked for.

    Raises:
        UserError: For every task that cannot be loaded, runs code without consent, or is asked for twice.
    """
    found, problems = {}, []
    for task, names in asked.items():
        try:
            loaded = manager.load(list(names))
        except Exception as error:  # whatever the YAML, its functions or the data loader raise
            problems.append(f"task {task!r} cannot be loaded: {explained(error)}")
            continue
        found[task] = LoadedTask(_outermost(loaded), [*loaded["tasks"], *loaded["groups"]])
        for name, item in loaded["tasks"].items():
            problems += _template_problems(name, item)
        unsafe = [name for name, item in loaded["tasks"].items() if getattr(item, "UNSAFE_CODE", False)]
        if unsafe and not unsafe_code:
            problems.append(
                f"task {', '.join(unsafe)} runs code that the model wrote; "
                "consent with `confirm_run_unsafe_code`, best inside a sandbox"
            )
    try:
        manager.load(distinct_items(found.values()))  # lm-eval takes no task twice; nothing is read again
    except ValueError as error:
        problems.append(f"{error}; ask for one of the two")
    if problems:
        raise UserError(problems)
    return found


def _template_problems(name: str, task: Any) -> list[str]:
    """Return what is wrong with a local task's templates: lm-eval's own know what their documents lack."""
    config = getattr(task, "config", None)
    if config is None or (getattr(config, "custom_dataset", None) is None and config.dataset_path not in LOCAL_READERS):
        return []
    try:
        return template_problems(name, task)
    except UserError as error:
        return [f"task {name!r}: {problem}" for problem in error.problems]


def distinct_items(tasks: Iterable[LoadedTask]) -> list[Any]:
    """Return lm-eval's tasks and groups, each once, as `simple_evaluate` takes them.

    Args:
        tasks: From `load_tasks`.
    """
    return list({name: item for task in tasks for name, item in task.items.items()}.values())


def _default_device(backend: str) -> str | None:
    """Return "cpu" where lm-eval's Hugging Face backend would insist on a CUDA that is not there."""
    import torch

    return "cpu" if backend in HF_BACKENDS and not torch.cuda.is_available() else None


def _load_ensemble(arguments: Sequence[dict[str, Any]], settings: EvaluationSection) -> Any:
    """Return lm-eval's own Hugging Face model of the first member, with the ensemble in the place of the member."""
    from lm_eval.api.registry import get_model

    from ordermerge.eval.scoring.ensemble import combine

    where = {
        "batch_size": settings.batch_size,
        "max_batch_size": settings.max_batch_size,
        "device": settings.device or _default_device(settings.model),
    }
    members = [get_model(settings.model).create_from_arg_obj(one, where) for one in arguments]
    vocabulary = members[0].tokenizer.get_vocab()
    if other := next((m for m in members if m.tokenizer.get_vocab() != vocabulary), None):
        raise UserError(
            f"an ensemble is of models with one vocabulary, and {members[0].tokenizer.name_or_path} and "
            f"{other.tokenizer.name_or_path} differ; leave one out"
        )
    members[0]._model = combine([member.model for member in members])
    return members[0]


def _outermost(loaded: Mapping[str, Any]) -> dict[str, Any]:
    groups = loaded["groups"]
    inner = {item.name for group in groups.values() for item in group.get_all_groups()}
    inner |= {item.task_name for group in groups.values() for item in group.get_all_tasks()}
    return {name: item for name, item in {**groups, **loaded["tasks"]}.items() if name not in inner}
