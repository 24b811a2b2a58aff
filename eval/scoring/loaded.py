"""The tasks and their data, loaded once for all models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ordermerge.errors import UserError
from ordermerge.eval.scoring.explain import explained

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


def distinct_items(tasks: Iterable[LoadedTask]) -> list[Any]:
    """Return lm-eval's tasks and groups, each once, as `simple_evaluate` takes them.

    Args:
        tasks: From `load_tasks`.
    """
    return list({name: item for task in tasks for name, item in task.items.items()}.values())


def _outermost(loaded: Mapping[str, Any]) -> dict[str, Any]:
    groups = loaded["groups"]
    inner = {item.name for group in groups.values() for item in group.get_all_groups()}
    inner |= {item.task_name for group in groups.values() for item in group.get_all_tasks()}
    return {name: item for name, item in {**groups, **loaded["tasks"]}.items() if name not in inner}
