"""`ordermerge noise`: how much of a score's spread over repeated runs is order noise, and what follows from it."""

from collections.abc import Sequence
from pathlib import Path

from ordermerge.config.trainings import sub_models
from ordermerge.eval.comparison.documents import ModelValues
from ordermerge.eval.comparison.folders import find_all, read_models
from ordermerge.eval.comparison.noise import NoiseReport, order_noise
from ordermerge.eval.scoring.saved import SavedScores
from ordermerge.files import user_path
from ordermerge.run_directory import EXPERIMENT, open_run, order_name

REPEATS = "repeats"


def measure_noise(
    results: Sequence[str], *, tasks: Sequence[str] = (), differences: Sequence[float] = ()
) -> NoiseReport:
    """Return the noise of each score over runs that differ in nothing but what is repeated, such as the order.

    Args:
        results: Run directories, each a family of its orders; all other folders of results (see `find_scores`) are
            repeats of one another, and one family together.
        tasks: The tasks and groups that count; all, if none is given.
        differences: Of mean scores, to tell what they amount to.

    Raises:
        UserError: If results are missing, cannot be read, or were not made alike; if a family has a single run.
    """
    found: dict[str, SavedScores] = {}
    families: dict[str, list[str]] = {}
    merges: dict[str, list[str]] = {}
    for given, new in find_all(results).items():
        found.update(new)
        if not (user_path(given) / EXPERIMENT).is_file():
            families.setdefault(REPEATS, []).extend(new)
            continue
        family = given.rstrip("/")
        experiment = open_run(Path(given))
        trainings, count = sub_models(experiment), experiment.orders.count
        for first in range(0, len(trainings), count):
            own = "".join(f" {name}={value}" for name, value in trainings[first].fields.items())
            orders = [f"{family}/{order_name(k)}" for k in range(first, first + count)]
            families[family + own] = [name for name in orders if name in new]
        if not experiment.vary:  # a merge of all values has no family of its own
            merges[family] = [f"{family}/{name}" for name in experiment.merges if f"{family}/{name}" in new]
    used = {name for names in (*families.values(), *merges.values()) for name in names}
    models = {model.name: model for model in read_models({name: found[name] for name in found if name in used}, tasks)}

    def chosen(names: dict[str, list[str]]) -> dict[str, list[ModelValues]]:
        return {family: [models[name] for name in of] for family, of in names.items()}

    return order_noise(chosen(families), chosen(merges), differences)
