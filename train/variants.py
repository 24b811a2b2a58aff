"""Checks of `controls` and `vary`: the `sft` fields in which trainings of one experiment differ."""

from collections.abc import Iterator, Set

from ordermerge.config.schema import ANNEALED, LONGER, Experiment
from ordermerge.config.trainings import SCHEDULE, control_runs, decays_to_zero, sub_models
from ordermerge.errors import quoted
from ordermerge.run_directory import BASE, ENSEMBLE, TRUNK
from ordermerge.train.sft_config import PREPARATION, STEPS, WITHOUT_EFFECT, check_sft
from ordermerge.train.steps import experiment_of


def check_variants(experiment: Experiment) -> list[str]:
    """Return all problems of `controls` and `vary`, one sentence each.

    Args:
        experiment: The experiment; where its `sft` section has problems, only those that go beyond them are found.
    """
    problems = [*_check_vary(experiment), *_check_names(experiment)]
    if problems:
        return problems
    for name in experiment.controls:
        problems += [f"controls.{name}: {problem}" for problem in _check_control(experiment, name)]
    known = check_sft(experiment)
    tried = {"vary": [model for model in sub_models(experiment) if model.fields]}
    tried |= {f"controls.{run.control}": [run] for run in control_runs(experiment)}
    for where, trainings in tried.items():
        found = [problem for one in trainings for problem in check_sft(experiment_of(experiment, one))]
        own = {name for one in trainings for name in one.fields}
        problems += [_placed(problem, where, own) for problem in dict.fromkeys(found) if problem not in known]
    if not problems and not known and ANNEALED in experiment.controls:
        problems += _check_annealed(experiment)
    return problems


def _placed(problem: str, where: str, own: Set[str]) -> str:
    """Return a problem of the `sft` section as one of the place where the field is given."""
    named = next((name for name in own if problem.startswith(f"`sft.{name}`")), None)
    return problem.replace(f"`sft.{named}`", f"`{where}.{named}`", 1) if named else f"{where}: {problem}"


def _check_vary(experiment: Experiment) -> Iterator[str]:
    for name, values in experiment.vary.items():
        where = f"`vary.{name}`"
        if name in experiment.sft:
            yield f"{where} is in `sft` too; leave it to one of them"
        elif name in STEPS:
            yield f"{where} cannot be varied: all sub-models train for the same steps; got {quoted(values)}, remove it"
        elif name in PREPARATION:
            yield f"{where} cannot be varied: all sub-models train on the same data; got {quoted(values)}, remove it"
        elif name in WITHOUT_EFFECT:
            yield f"{where} does not change what is learned; got {quoted(values)}, put it into `sft`"
        elif len({str(value) for value in values}) < len(values):
            yield f"{where} names a value twice, whose sub-models would be the same; got {quoted(values)}"
    if experiment.vary and experiment.orders.branch_at:
        yield "`orders.branch_at` does not go with `vary`: sub-models of different `sft` fields have no common trunk"


def _check_names(experiment: Experiment) -> Iterator[str]:
    taken = {BASE, ENSEMBLE, TRUNK, *experiment.merges}
    for run in control_runs(experiment):
        if run.folder in taken or run.folder.isdigit() or run.folder.startswith("order_"):
            yield f"controls.{run.control}: the name {run.folder} is taken by something else; choose another"
        taken.add(run.folder)


def _check_control(experiment: Experiment, name: str) -> Iterator[str]:
    section = experiment.controls[name]
    if section.count > experiment.count:
        yield (
            f"`count` is {section.count}, and there are {experiment.count} sub-models, whose orders its runs have; "
            "they are at most as many"
        )
    if name in (LONGER, ANNEALED) and "num_train_epochs" in section.sft:
        price = "all orders together" if name == LONGER else "one order"
        yield f"its `num_train_epochs` follows from its price, that of {price}; leave it out, or choose another name"
    for key in section.sft.keys() & {*PREPARATION}:
        yield f"`{key}` cannot be set: controls are trained on the samples that orders are trained on; remove it"


def _check_annealed(experiment: Experiment) -> list[str]:
    run = next(run for run in control_runs(experiment) if run.control == ANNEALED)
    if not decays_to_zero(experiment.sft | run.fields):
        schedule = quoted(run.fields["lr_scheduler_type"])
        return [f"controls.{ANNEALED}: its schedule, {schedule}, does not decay to 0; choose another, or another name"]
    first = experiment.sft | sub_models(experiment)[0].fields
    if not experiment.controls[ANNEALED].sft and decays_to_zero(first):
        return [
            f"controls.{ANNEALED}: the schedule of the orders ({first.get('lr_scheduler_type', SCHEDULE)}) decays to 0 "
            "already, so that each order is such a control; leave it out, or give the `sft` fields that differ"
        ]
    return []
