"""What each model of an experiment costs: the samples that were trained on for it, and that in runs of one order."""

import math
from dataclasses import dataclass
from pathlib import Path

from ordermerge.config.schema import Experiment
from ordermerge.config.trainings import EPOCHS, branched_price, control_runs, epochs_of, lacks_annealing, shared_part
from ordermerge.run_directory import BASE, ENSEMBLE, order_folder, order_name, order_record


@dataclass(frozen=True)
class Price:
    """What a model costs to make.

    Attributes:
        runs: In trainings of one order: 1 for an order, 0 for the base model.
        samples: The samples that were trained on, those of a common trunk once; None where no order is trained yet.
    """

    runs: float
    samples: int | None


def model_prices(
    experiment: Experiment, *, branch: int = 0, steps: int = 1, samples: int | None = None
) -> dict[str, Price]:
    """Return the price of every model of an experiment.

    An order costs 1, also one of a branched run; several orders cost 1 + (K - 1)(1 - f), where f is the share of a
    training that lies before the branch; a control its epochs over an order's; a merge what the orders that it takes
    cost together, and the ensemble what all of them cost. In a later round all of them cost what the merges before did,
    too.

    Args:
        experiment: The experiment.
        branch: The optimizer step after which orders part, as `order.json` notes it; 0 for none.
        steps: The optimizer steps of an order.
        samples: How many samples an order is trained on, all epochs together; None where that is not known.

    Returns:
        By the model's name in tables: base, orders, controls, merges, ensemble if there is one; in this order.
    """
    shared, nominal = branch / steps, shared_part(experiment, branch, steps)
    epochs = int(float(experiment.sft.get("num_train_epochs", EPOCHS)))
    runs = {BASE: 0.0, **{order_name(k): 1.0 for k in range(experiment.count)}}
    runs |= {run.folder: epochs_of(experiment, run, nominal) / epochs for run in control_runs(experiment)}
    runs |= {name: branched_price(len(merged_orders(experiment, name)), shared) for name in experiment.merges}
    if experiment.evaluation and experiment.evaluation.ensemble:
        runs[ENSEMBLE] = branched_price(experiment.count, shared)
    # What a later round starts from has its price.
    before = (experiment.rounds.number - 1) * runs[experiment.rounds.merge] if experiment.rounds else 0.0
    return {
        name: Price(cost + before, None if samples is None else round((cost + before) * samples))
        for name, cost in runs.items()
    }


def run_prices(experiment: Experiment, run_directory: Path) -> dict[str, Price]:
    """Return the price of every model of a run, by what its first order was trained on.

    Before an order is trained, samples are not known, and a branch only if it is written as a fraction.

    Args:
        experiment: The experiment.
        run_directory: Its run directory.
    """
    record = order_record(order_folder(run_directory, 0))
    if record is None:
        at = experiment.orders.branch_at
        part = (round(at * 1_000_000), 1_000_000) if isinstance(at, float) else (0, 1)
        return model_prices(experiment, branch=part[0], steps=part[1])
    branch, steps, samples = record.get("branch") or 0, record["steps"], record["samples_consumed"]
    return model_prices(experiment, branch=branch, steps=steps, samples=samples)


def merged_orders(experiment: Experiment, name: str) -> list[int]:
    """Return the orders that a merge takes models of.

    Args:
        experiment: The experiment.
        name: The merge.
    """
    ingredients = experiment.merges[name].get("ingredients") or {}
    named = ingredients.get("orders", "all")
    return list(range(experiment.count)) if named == "all" else list(named)


def controls_within(experiment: Experiment, prices: dict[str, Price], price: float) -> list[list[str]]:
    """Return the controls that cost no more than a price, which counts in whole epochs as that of `longer` does.

    Args:
        experiment: The experiment.
        prices: Of its models.
        price: In runs.

    Returns:
        For each control the names of its runs.
    """
    epochs = int(float(experiment.sft.get("num_train_epochs", EPOCHS)))
    most = math.ceil(round(epochs * price, 6)) / epochs
    runs: dict[str, list[str]] = {}
    for run in control_runs(experiment):
        if prices[run.folder].runs <= most:
            runs.setdefault(str(run.control), []).append(run.folder)
    return list(runs.values())


def annealing_note(experiment: Experiment) -> str | None:
    """Return a sentence for an experiment of which nothing of an order's price is annealed; None for others.

    Args:
        experiment: The experiment, without problems.
    """
    if not lacks_annealing(experiment):
        return None
    schedule = experiment.sft.get("lr_scheduler_type", "varied")
    return (
        f"The learning rate ({schedule}) does not decay to 0, in the orders or in a control of their price: one "
        "annealed run may give what merging gives here, at the price of one order; `controls: {annealed: true}` trains "
        "it beside."
    )
