"""What goes into a merge of an experiment: which orders, and which checkpoints of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, did_you_mean, quoted

_KEYS = ("orders", "checkpoints")
_PLACE = re.compile(r"/orders/(\w+)(?:/checkpoints/step-(\d+))?(?![\w/])")


@dataclass(frozen=True)
class Ingredients:
    """The models that go into a merge.

    Attributes:
        merge: The merge's name.
        orders: Numbers of the orders.
        checkpoints: Of each order: its end, the last so many models kept of it (the end is the newest), or those after
            some steps, in ascending order.
    """

    merge: str
    orders: list[int]
    checkpoints: Literal["end"] | int | list[int]

    @property
    def along(self) -> bool:
        """Whether it takes models along the training, and not the ends alone."""
        return self.checkpoints != "end"

    def steps(self, kept: Sequence[int]) -> list[int]:
        """Return the steps of an order whose models go in, oldest first.

        Args:
            kept: The steps after which its model was or will be kept, in ascending order; the last is the end.

        Raises:
            UserError: If the model after a step that goes in is not among them.
        """
        there = f"an order keeps the models after steps {', '.join(map(str, kept))}, of which the last is its end"
        where, remedy = f"merges.{self.merge}.ingredients.checkpoints", "change it, or `checkpoints.every`"
        if not isinstance(self.checkpoints, list):
            count = 1 if self.checkpoints == "end" else self.checkpoints
            if count > len(kept):
                raise UserError(f"{where}: asks for the last {count}, and {there}; {remedy}")
            return list(kept[-count:])
        if missing := [step for step in self.checkpoints if step not in kept]:
            raise UserError(f"{where}: asks for step {', '.join(map(str, missing))}, and {there}; {remedy}")
        return self.checkpoints


def ingredients_of(experiment: Experiment, merge: str) -> Ingredients:
    """Return what goes into one of an experiment's merges: if it does not say, the end of every order.

    Args:
        experiment: The experiment.
        merge: The merge's name.

    Raises:
        UserError: With every problem of its `ingredients`.
    """
    given, count, where = experiment.merges[merge].get("ingredients"), experiment.count, f"merges.{merge}"
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise UserError(f"{where}.ingredients: must be `{{orders: ..., checkpoints: ...}}`; got {quoted(given)}")
    problems = [
        f"unknown key `{where}.ingredients.{key}`{did_you_mean(str(key), _KEYS)}" for key in given if key not in _KEYS
    ]
    orders, checkpoints = given.get("orders", "all"), given.get("checkpoints", "end")
    if orders != "all" and not _are_numbers(orders, range(count)):
        problems.append(
            f"{where}.ingredients.orders: must be `all`, or a list of different orders from 0 to {count - 1}; got "
            f"{quoted(orders)}"
        )
    if checkpoints != "end" and not _is_number(checkpoints) and not _are_numbers(checkpoints):
        problems.append(
            f"{where}.ingredients.checkpoints: must be `end`, a number (the last so many, the end included), or a list "
            f"of different steps; got {quoted(checkpoints)}"
        )
    elif checkpoints != "end" and experiment.checkpoints.every is None:
        problems.append(
            f"{where}.ingredients.checkpoints: needs models that are kept along the training; set `checkpoints: "
            "{every: ...}`, a number of steps or a fraction of the training"
        )
    if problems:
        raise UserError(problems)
    return Ingredients(
        merge,
        list(range(count)) if orders == "all" else orders,
        sorted(checkpoints) if isinstance(checkpoints, list) else checkpoints,
    )


def models_in_words(models: Sequence[Mapping[str, Any]]) -> str:
    """Return which models a recipe of a run merges, and their weights.

    Args:
        models: The recipe's `models`.
    """
    found: dict[str, list[str]] = {}
    for entry in models:
        place = _PLACE.search(str(entry["model"]))
        folder, step = place.groups() if place else (str(entry["model"]), None)
        weight = (entry.get("parameters") or {}).get("weight")
        at = f"step {step}" if step else "end"
        owner = f"order_{folder}" if folder.isdigit() else folder
        found.setdefault(owner, []).append(at if weight is None else f"{at} ({weight:.6g})")
    return "; ".join(f"{owner}: {', '.join(at)}" for owner, at in found.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_numbers(value: Any, among: range | None = None) -> bool:
    """Return whether this is a list, not empty, of different whole numbers, within a range or above 0."""
    if not isinstance(value, list) or not value or len({str(item) for item in value}) < len(value):
        return False
    return all(
        isinstance(item, int) and not isinstance(item, bool) and (item in among if among is not None else item >= 1)
        for item in value
    )
