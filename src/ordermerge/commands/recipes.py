"""Complete mergekit recipes from an experiment's merges, each runnable by the stock command on its own."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import ConfigYamlDumper
from mergekit.merge_methods import registered_methods
from mergekit.merge_methods.base import BasePolicy

from ordermerge.commands.coefficients import ALONG_TRAINING, exponential_moving_average, loss_weights
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, quoted
from ordermerge.files import write_text
from ordermerge.ingredients import Ingredients, ingredients_of
from ordermerge.merge_methods.recipe_check.check import needs_first_pass
from ordermerge.run_directory import CHECKPOINTS, TRUNK, order_folder, order_record

# mergekit draws for these methods from the global generator, which only this option fixes.
_GLOBAL_DRAW = ("dare_", "della")
RANDOM_SEED = 0
_DIGITS = 9  # of a weight


@dataclass(frozen=True)
class _Source:
    """A model that goes into a merge.

    Attributes:
        folder: Its folder.
        order: The folder of the order that it is of.
        step: The step after which it was kept; None for the end, and while that is not known.
    """

    folder: Path
    order: Path
    step: int | None = None


def complete_recipe(
    experiment: Experiment,
    run_directory: Path,
    name: str,
    *,
    models: Sequence[Path] | None = None,
    planned: bool = False,
) -> dict[str, Any]:
    """Return the mergekit recipe of one of an experiment's merges.

    Its `ingredients` are filled in, by order and oldest first, and what the experiment leaves out: the dtype, and the
    base model for the methods that need it or, with `resample`, compare with it. (mergekit would average a base model
    that it is given and does not need.) Its `weights` become each model's `weight`; with `ingredients` these are
    uniform, if the recipe gives no `weight` itself. A model of a trunk, which goes in for several orders, is listed
    once, with the sum of its weights.

    Args:
        experiment: The experiment.
        run_directory: Where its sub-models are, or will be; absolute.
        name: The merge.
        models: Other folders in place of the run's K sub-models.
        planned: Whether it is still to be trained: checkpoints then have made-up names, and weights that come from
            losses are alike.

    Raises:
        UserError: If `ingredients` or `weights` are wrong, or, unless `planned`, what they need is not there.
    """
    given, chosen = dict(experiment.merges[name]), ingredients_of(experiment, name)
    recipe: dict[str, Any] = {"merge_method": given.pop("merge_method", None)}
    methods = {method.spec.name: method.spec for method in registered_methods()}
    method = methods.get(str(recipe["merge_method"]))
    if "base_model" in given:
        recipe["base_model"] = _reference(given.pop("base_model"))
    elif (method and method.contract.base == BasePolicy.REQUIRED) or _resamples(given.get("parameters")):
        recipe["base_model"] = _reference(experiment.model.reference)
    sources = [_sources(run_directory, chosen, order, models, planned=planned) for order in chosen.orders]
    weights, fills = given.pop("weights", None), given.pop("ingredients", None) is not None
    if weights is None and fills and method and "weight" in {parameter.name for parameter in method.parameters}:
        weights = None if "weight" in (given.get("parameters") or {}) else "uniform"
    entries: dict[Path, dict[str, Any]] = {}
    base = experiment.model.reference if experiment.saves_adapters else None
    shares = _weights(weights, chosen, sources, planned=planned) if weights is not None else None
    for place, source in enumerate(source for of in sources for source in of):
        entry = entries.setdefault(source.folder, {"model": _reference(str(source.folder), base)})
        if shares is not None:
            before = entry.get("parameters", {}).get("weight", 0.0)
            entry["parameters"] = {"weight": round(before + shares[place], _DIGITS)}
    return {**recipe, "models": [*entries.values()], "dtype": experiment.model.dtype, **given}


def _sources(
    run: Path, chosen: Ingredients, order: int, models: Sequence[Path] | None, *, planned: bool
) -> list[_Source]:
    """Return the models of an order that go into a merge, oldest first."""
    folder = order_folder(run, order)
    if models is not None:
        kept = models[order]
        step = int(kept.name.removeprefix("step-")) if kept.parent.name == CHECKPOINTS else None
        return [_Source(kept, folder, step)]
    if chosen.checkpoints == "end":
        return [_Source(folder, folder)]
    try:
        return _kept_models(folder, chosen)
    except UserError:
        if not planned:
            raise
    steps = chosen.checkpoints
    names = [f"last-{n}" for n in range(steps, 0, -1)] if isinstance(steps, int) else [f"step-{n}" for n in steps]
    return [_Source(folder / CHECKPOINTS / name, folder) for name in names]


def _kept_models(order: Path, chosen: Ingredients) -> list[_Source]:
    """Return the models of a trained order, and of its trunk, that go into a merge."""
    record = order_record(order)
    if record is None:
        raise UserError(f"merges.{chosen.merge}: {order} is not trained yet; `ordermerge train` trains it")
    trunk = order_record(order.with_name(TRUNK)) if record.get("branch") else None
    owners = ((order.with_name(TRUNK), trunk), (order, record))
    kept = {at["step"]: folder / at["folder"] for folder, of in owners if of for at in of.get("checkpoints", [])}
    kept[record["steps"]] = order
    steps = chosen.steps(sorted(kept))
    if gone := [step for step in steps if not kept[step].is_dir()]:
        raise UserError(
            f"merges.{chosen.merge}: the model after step {gone[0]} of order {order.name} is gone ({kept[gone[0]]}); "
            "restore it, or train anew: `ordermerge run --force train`"
        )
    return [_Source(kept[step], order, step) for step in steps]


def _weights(given: Any, chosen: Ingredients, sources: Sequence[Sequence[_Source]], *, planned: bool) -> list[float]:
    """Return the weights that a merge's `weights` stand for, of all models in turn."""
    where = f"merges.{chosen.merge}.weights"
    kind, value = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, None)
    if kind == "validation_loss" and isinstance(value, int | float) and not isinstance(value, bool):
        losses = [_validation_loss(source, where, planned=planned) for of in sources for source in of]
        return loss_weights([0.0 if None in losses else loss or 0.0 for loss in losses], value)
    if isinstance(given, str) and given in ALONG_TRAINING:
        coefficients = ALONG_TRAINING[given]
    elif kind == "ema" and isinstance(value, float) and 0 < value < 1:
        coefficients = partial(exponential_moving_average, rate=value)
    else:
        raise UserError(
            f"{where}: must be `{{validation_loss: T}}`, with a temperature T such as 0.1, `{{ema: A}}`, with A < 1, "
            f"or {', '.join(f'`{name}`' for name in ALONG_TRAINING)}; got {quoted(given)}"
        )
    if kind != "uniform" and not chosen.along:
        raise UserError(
            f"{where}: {quoted(given)} weighs the checkpoints of an order, and this merge has one of each; set "
            f"`ingredients: {{checkpoints: N}}`"
        )
    return [weight / len(sources) for of in sources for weight in coefficients(len(of))]


def _validation_loss(source: _Source, where: str, *, planned: bool) -> float | None:
    """Return the loss after a model's step, of the end the last; None where `planned` and not known."""
    record = order_record(source.order)
    taken = record["eval_losses"] if record else []
    losses = [at["loss"] for at in taken if source.step in (None, at["step"])]
    if losses or planned:
        return losses[-1] if losses else None
    raise UserError(
        f"{where}.validation_loss: no validation loss was taken of order {source.order.name} "
        f"{'at all' if source.step is None else f'after step {source.step}'}; set `sft.eval_strategy: steps`, with the "
        "`eval_steps` that `checkpoints.every` has, and train anew: `ordermerge run --force train`"
    )


def _reference(model: Any, base: str | None = None) -> Any:
    """Return a model, or an adapter on a base model, as mergekit names it.

    mergekit splits a text at + and @, for adapters and revisions; where a folder's own name holds one, the model is
    given as the mapping that such a text stands for.
    """
    paths = [path for path in (base, model) if path is not None]
    if not any(isinstance(path, str) and path.startswith("/") and {"+", "@"} & set(path) for path in paths):
        return model if base is None else f"{base}+{model}"
    return dict(zip(("model", "lora"), map(_part, paths), strict=False))


def _resamples(parameters: Any) -> bool:
    return isinstance(parameters, Mapping) and bool(parameters.get("resample"))


def _part(path: str) -> dict[str, str]:
    name, _, revision = (path, "", "") if path.startswith("/") else path.partition("@")
    return {"path": name, "revision": revision} if revision else {"path": name}


def merge_options(experiment: Experiment, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return mergekit's options that a recipe needs to give the same model twice.

    Args:
        experiment: The experiment.
        recipe: One of its recipes.

    Returns:
        Among `random_seed`; `lora_merge_dtype`: adapters are added to the base model in the dtype they were trained
        on, whatever its files are stored in; and `trust_remote_code`, as the training was allowed it.
    """
    options: dict[str, Any] = {}
    if str(recipe["merge_method"]).startswith(_GLOBAL_DRAW):
        options["random_seed"] = RANDOM_SEED
    if experiment.saves_adapters:
        options["lora_merge_dtype"] = experiment.model.dtype
    if experiment.sft.get("trust_remote_code"):
        options["trust_remote_code"] = True
    return options


def write_recipe(
    recipe: dict[str, Any], path: Path, out: Path, options: dict[str, Any], *, by_name: bool = False
) -> None:
    """Write a recipe with a header that gives the exact command: the stock one, where that merges the whole model.

    Args:
        recipe: The recipe.
        path: File to write.
        out: Where the command is to write the model.
        options: mergekit's options (see `merge_options`).
        by_name: Whether it is merged by tensor name.
    """
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    parts = (part for flag, value in flags.items() for part in ([flag] if value is True else [flag, str(value)]))
    ours = ["ordermerge", "merge", *(["--by-name"] if by_name else [])]
    program = ours if by_name or needs_first_pass(recipe) else ["mergekit-yaml"]
    command = shlex.join([*program, str(path), str(out), *parts])
    if "lora_merge_dtype" in options:  # a fresh cache, as mergekit trusts an old one
        command += ' --lora-merge-cache "$(mktemp -d)"'
    # The order of the keys is the order to be read in: what, inputs, parameters.
    body = yaml.dump(recipe, Dumper=ConfigYamlDumper, sort_keys=False)
    write_text(path, f"# {command}\n{body}")
