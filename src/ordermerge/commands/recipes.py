"""Complete mergekit recipes from an experiment's merges, each runnable by the stock command on its own."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import ConfigYamlDumper
from mergekit.merge_methods import registered_methods
from mergekit.merge_methods.base import BasePolicy

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, quoted
from ordermerge.files import write_text
from ordermerge.merge_methods.recipe_check.check import needs_first_pass
from ordermerge.run_directory import last_validation_loss, order_folder

# mergekit draws for these methods from the global generator, which only this option fixes.
_GLOBAL_DRAW = ("dare_", "della")
RANDOM_SEED = 0


def complete_recipe(
    experiment: Experiment, run_directory: Path, name: str, *, models: Sequence[Path] | None = None
) -> dict[str, Any]:
    """Return the mergekit recipe of one of an experiment's merges.

    The sub-models are filled in, in order, and what the experiment leaves out: the dtype, and the base model for the
    methods that need it or, with `resample`, compare with it. (mergekit would average a base model that it is given
    and does not need.) `weights: {validation_loss: T}` fills in each sub-model's `weight`; until all orders are trained
    these are alike.

    Args:
        experiment: The experiment.
        run_directory: Where its sub-models are, or will be; absolute.
        name: The merge.
        models: Other folders in place of the run's sub-models.
    """
    given = dict(experiment.merges[name])
    recipe: dict[str, Any] = {"merge_method": given.pop("merge_method", None)}
    policies = {method.spec.name: method.spec.contract.base for method in registered_methods()}
    if "base_model" in given:
        recipe["base_model"] = _reference(given.pop("base_model"))
    elif policies.get(str(recipe["merge_method"])) == BasePolicy.REQUIRED or _resamples(given.get("parameters")):
        recipe["base_model"] = _reference(experiment.model.reference)
    folders = models or [order_folder(run_directory, order) for order in range(experiment.orders.count)]
    base = experiment.model.reference if experiment.saves_adapters else None
    recipe["models"] = [{"model": _reference(str(folder), base)} for folder in folders]
    if (weights := given.pop("weights", None)) is not None:
        for entry, weight in zip(recipe["models"], _weights(weights, name, folders), strict=True):
            entry["parameters"] = {"weight": weight}
    return {**recipe, "dtype": experiment.model.dtype, **given}


def _weights(given: Any, name: str, folders: Sequence[Path]) -> list[float]:
    """Return the weights that a merge's `weights` stand for, rounded to six digits."""
    if not isinstance(given, Mapping) or set(given) != {"validation_loss"}:
        raise UserError(
            f"merges.{name}.weights: must be `{{validation_loss: T}}`, with a temperature T such as 0.1; got "
            f"{quoted(given)}"
        )
    temperature = given["validation_loss"]
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise UserError(f"merges.{name}.weights.validation_loss: must be a number above 0; got {quoted(temperature)}")
    losses = [loss for folder in folders if (loss := last_validation_loss(folder)) is not None]
    weights = loss_weights(losses if len(losses) == len(folders) else [0.0] * len(folders), temperature)
    return [round(weight, 6) for weight in weights]


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


def loss_weights(losses: Sequence[float], temperature: float) -> list[float]:
    """Return the weights of a merge's models from their validation losses: softmax(-loss / temperature).

    A small temperature leaves the best model alone, a large one weighs all alike. From LM-Cocktail (Xiao et al.,
    arXiv 2311.13534, equation 3), where the losses are those on a few examples of the task.

    Args:
        losses: Mean validation loss of each model, in nats; shape [K].
        temperature: Above 0, in nats.

    Returns:
        K weights that sum to 1.

    Raises:
        UserError: If the temperature is not above 0, or a loss is not finite.
    """
    if not 0 < temperature < math.inf:
        raise UserError(f"`weights.validation_loss` is a temperature, a number above 0; got {temperature!r}")
    if bad := [loss for loss in losses if not math.isfinite(loss)]:
        raise UserError(f"`weights.validation_loss` needs a finite validation loss of every model; got {bad[0]!r}")
    smallest = min(losses)
    terms = [math.exp((smallest - loss) / temperature) for loss in losses]  # the smallest loss cannot overflow
    return [term / sum(terms) for term in terms]
