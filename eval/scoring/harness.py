"""One model through lm-evaluation-harness."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.eval.scoring.loaded import LoadedTask, distinct_items
from ordermerge.eval.scoring.models import HF_BACKENDS, loading_args
from ordermerge.eval.scoring.quiet import no_git_complaint
from ordermerge.eval.scoring.saved import new_tracker, save_results
from ordermerge.sections import EvaluationSection

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def evaluate_model(
    model: str, manager: "TaskManager", tasks: Iterable[LoadedTask], settings: EvaluationSection, folder: Path
) -> dict[str, Any] | None:
    """Run one model on the tasks, and save lm-eval's results and samples.

    Args:
        model: Folder or hub id.
        manager: lm-eval's task manager.
        tasks: What to score it on.
        settings: What is asked of lm-eval.
        folder: Where the files go.

    Returns:
        The names of the files as `save_results` gives them; None in all but one of several processes.
    """
    from lm_eval import simple_evaluate

    tracker = new_tracker(folder)
    with no_git_complaint():
        results = simple_evaluate(
            model=settings.model,
            model_args={**settings.model_args, **loading_args(model, settings.model)},
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


def _default_device(backend: str) -> str | None:
    """Return "cpu" where lm-eval's Hugging Face backend would insist on a CUDA that is not there."""
    import torch

    return "cpu" if backend in HF_BACKENDS and not torch.cuda.is_available() else None
