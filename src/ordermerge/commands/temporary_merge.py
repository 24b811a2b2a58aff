"""A merge that is there for as long as it is scored: the disk holds one at a time."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from ordermerge.commands.merging import merge
from ordermerge.commands.recipes import RANDOM_SEED
from ordermerge.models import identity
from ordermerge.readers import read_yaml


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
    out.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".merging-", dir=out))
    try:
        settings = MergeOptions(**{"quiet": True, "random_seed": RANDOM_SEED, **options})
        merge(recipe, place / name, settings, by_name=None)
        yield str(place / name)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def recipe_identity(recipe: Path) -> dict[str, Any]:
    """Return what tells the model that a recipe makes from another: the recipe, and the content of its models.

    Args:
        recipe: The mergekit recipe, well-formed.
    """
    content = read_yaml(recipe)
    models = MergeConfiguration.model_validate(content).referenced_models()
    parts = {str(part): identity(str(part)) for model in models for part in (model.model, model.lora) if part}
    return {"recipe": content, "models": parts}
