"""Recipes in the place of models: merged for as long as they are scored, so that the disk holds one at a time."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from ordermerge.commands.merging import merge
from ordermerge.commands.recipes import RANDOM_SEED
from ordermerge.folders import scratch_directory
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.references import read_recipe
from ordermerge.models import identity


@contextmanager
def temporary_merge(
    recipe: Path, out: Path, name: str, options: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[str]:
    """Merge a recipe, and remove the model afterwards.

    Args:
        recipe: The mergekit recipe.
        out: The folder in which it is merged, in a sub-folder of its own.
        name: Of the model.
        options: mergekit's options that the recipe needs (`merge_options`).

    Yields:
        The model's folder.

    Raises:
        UserError: As `merge`.
    """
    with scratch_directory(out, "merging") as place:
        merge_recipe(recipe, place / name, options)
        yield str(place / name)


def merge_recipe(recipe: Path, folder: Path, options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Merge a recipe so that it gives the same model each time, by tensor name where it must be.

    Args:
        recipe: The mergekit recipe.
        folder: Where the model goes.
        options: mergekit's options that the recipe needs (`merge_options`).

    Raises:
        UserError: As `merge`.
    """
    settings = MergeOptions(**{"quiet": True, "random_seed": RANDOM_SEED, **options})
    merge(recipe, folder, settings, by_name=None)


def is_recipe(model: str) -> bool:
    """Return whether what stands for a model is a mergekit recipe: a YAML file, by its name.

    Args:
        model: A folder, hub id or file.
    """
    return Path(model).suffix in (".yml", ".yaml") and not Path(model).is_dir()


def recipe_problems(models: Iterable[str]) -> list[str]:
    """Return what is wrong with the recipes among models, and with merging them here.

    Args:
        models: Folders, hub ids and recipes.

    Raises:
        UserError: If a recipe cannot be read.
    """
    recipes = [model for model in models if is_recipe(model)]
    if recipes and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ["recipes are merged by one process; score them without torchrun, or merge them first"]
    problems = {recipe: check_recipe(read_recipe(Path(recipe)), by_name=None) for recipe in recipes}
    return [f"{recipe}: {problem}" for recipe, found in problems.items() for problem in found]


def recipe_identity(recipe: Path) -> dict[str, Any]:
    """Return what tells the model that a recipe makes from another: the recipe, and the content of its models.

    Args:
        recipe: The mergekit recipe, well-formed.
    """
    content = read_recipe(recipe)
    models = MergeConfiguration.model_validate(content).referenced_models()
    parts = {str(part): identity(str(part)) for model in models for part in (model.model, model.lora) if part}
    return {"recipe": content, "models": parts}
