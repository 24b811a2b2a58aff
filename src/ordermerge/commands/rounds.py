"""Rounds: an experiment that is merged, trained on from the merge in new orders, and merged again."""

import json
from pathlib import Path

from ordermerge.config.schema import Experiment
from ordermerge.errors import did_you_mean
from ordermerge.run_directory import merge_folder

_SEEDS = 1_000_000_007  # between the orders of two rounds: seeds that users choose lie closer


def check_rounds(experiment: Experiment) -> list[str]:
    """Return the problems of `rounds`, one sentence each.

    Args:
        experiment: The experiment.
    """
    rounds = experiment.rounds
    if rounds is None:
        return []
    problems = []
    if rounds.merge not in experiment.merges:
        known = did_you_mean(rounds.merge, list(experiment.merges)) or "; there is none of that name"
        problems.append(f"rounds.merge: must be one of `merges`; got {rounds.merge}{known}")
    if experiment.orders.strategy == "file" and rounds.count > 1:
        problems.append("rounds: each round needs new orders, and `strategy: file` has yours; choose another strategy")
    return problems


def changes_of_round(experiment: Experiment, runs_dir: Path, number: int) -> list[str]:
    """Return what is set otherwise in a round, as `--set` takes it: the base model, the orders' seed, the name.

    Args:
        experiment: The experiment, of round 1.
        runs_dir: Holds the run directories.
        number: The round, from 1.
    """
    if experiment.rounds is None or number == 1:
        return []
    before = _name(experiment, number - 1)
    base = merge_folder((runs_dir / before).resolve(), experiment.rounds.merge)
    changes = {
        "name": _name(experiment, number),
        "model.path": str(base),
        "model.revision": None,
        "orders.seed": experiment.orders.seed + (number - 1) * _SEEDS,
        "rounds.number": number,
    }
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _name(experiment: Experiment, number: int) -> str:
    return experiment.name if number == 1 else f"{experiment.name}_round_{number}"
