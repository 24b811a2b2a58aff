"""Which of an experiment's models is compared with which."""

import json
from pathlib import Path
from typing import Any

from ordermerge.eval.comparison.comparing import Roles
from ordermerge.experiment import Experiment
from ordermerge.files import fingerprint

AVERAGE_METHOD = "linear"


def model_roles(experiment: Experiment, run_directory: Path) -> Roles:
    """Return the roles of an experiment's models.

    The weighted average is the first merge with mergekit's method `linear`. The best sub-model is chosen by the last
    validation loss of its training, if all have one (`data.validation`, and `eval_strategy` in `sft`).

    Args:
        experiment: The experiment.
        run_directory: Its run directory, with the orders trained.
    """
    single = [f"order_{k}" for k in range(experiment.orders.count)]
    folders = [run_directory / "orders" / str(k) for k in range(experiment.orders.count)]
    last = {name: _last_loss(folder) for name, folder in zip(single, folders, strict=True)}
    losses = {name: loss for name, loss in last.items() if loss is not None}
    averages = [name for name, recipe in experiment.merges.items() if recipe.get("merge_method") == AVERAGE_METHOD]
    return Roles(
        single=single,
        merged=list(experiment.merges),
        average=next(iter(averages), None),
        draws=_draws(experiment.merges),
        validation_loss=losses if len(losses) == len(single) else {},
    )


def _last_loss(folder: Path) -> float | None:
    record = json.loads((folder / "order" / "order.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in record.get("eval_losses", [])]
    return losses[-1] if losses else None


def _draws(merges: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the sets of merges whose recipes differ in nothing but `parameters.seed`."""
    sets: dict[str, dict[Any, str]] = {}
    for name, recipe in merges.items():
        parameters = dict(recipe.get("parameters") or {})
        seed = parameters.pop("seed", 0)
        sets.setdefault(fingerprint({**recipe, "parameters": parameters}), {}).setdefault(str(seed), name)
    return [list(names.values()) for names in sets.values() if len(names) > 1]
