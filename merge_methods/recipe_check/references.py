"""The models that a recipe names, in every way that mergekit lets one write them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mergekit.common import ModelPath, ModelReference
from pydantic import BaseModel

from ordermerge.errors import UserError
from ordermerge.file_kinds import RECIPE, wrong_kind
from ordermerge.files import user_path
from ordermerge.models import local_folder, model_folder
from ordermerge.yaml_json import read_yaml

T = TypeVar("T")
_MODEL_KEYS = frozenset({"model", "base_model", "lora", "path"})


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe, with the models found that it names by relative paths, as recipes that are shared need it.

    mergekit looks from the working directory. What is not there is looked for in the recipe's folder.

    Args:
        path: The recipe.

    Returns:
        The recipe as written, but for models found in its folder, which are absolute paths.

    Raises:
        UserError: If it cannot be read, or if models are in both places and these differ.
    """
    if problem := wrong_kind(path, RECIPE):
        raise UserError(problem)
    folder = Path(os.path.abspath(path)).parent
    problems: list[str] = []

    def found(part: str) -> str:
        here, there = user_path(part), folder / part
        if not part or here.is_absolute() or not os.path.isdir(there):
            return part
        if not here.is_dir():
            return str(there)
        if not here.samefile(there):
            problems.append(
                f"`{part}` is both in the working directory ({here.resolve()}) and beside the recipe ({there}), which "
                "differ; give the one you mean as an absolute path"
            )
        return part

    def walk(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: walk(item, str(name)) for name, item in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        if isinstance(node, str) and key in _MODEL_KEYS:
            whole = found(node)  # a folder's name may hold a plus
            return whole if whole != node else "+".join(map(found, node.split("+")))
        return node

    recipe: dict[str, Any] = walk(read_yaml(path))
    if problems:
        raise UserError(list(dict.fromkeys(problems)), where=path)
    return recipe


def map_models(node: T, change: Callable[[ModelReference], ModelReference]) -> T:
    """Return a copy of a recipe, or of a part of one, with every model in it changed.

    Args:
        node: The recipe, as mergekit's schema reads it.
        change: Returns what takes a model's place.
    """
    made: Any = node
    if isinstance(node, ModelReference):
        made = change(node)
    elif isinstance(node, BaseModel):
        made = node.model_copy(
            update={name: map_models(getattr(node, name), change) for name in type(node).model_fields}
        )
    elif isinstance(node, dict):
        made = {key: map_models(item, change) for key, item in node.items()}
    elif isinstance(node, (list, tuple)):
        made = type(node)(map_models(item, change) for item in node)
    return made  # type: ignore[no-any-return]


def with_absolute_paths(reference: ModelReference) -> ModelReference:
    """Return a model with the folders that it names as absolute paths.

    mergekit takes a bare relative name for a hub id when it writes the model card, and looks it up online.

    Args:
        reference: The model, relative to the working directory.
    """

    def absolute(part: ModelPath) -> ModelPath:
        path = user_path(part.path)
        return ModelPath(path=os.path.abspath(path)) if path.exists() and not part.revision else part

    if (reference.lora or reference.model.revision) and (whole := local_folder(str(reference))):
        return reference.model_copy(update={"model": ModelPath(path=str(whole)), "lora": None})  # one folder's name
    lora = absolute(reference.lora) if reference.lora else None
    return reference.model_copy(update={"model": absolute(reference.model), "lora": lora})


def folder_of(part: ModelPath, cache_dir: str | None = None) -> Path | None:
    """Return where a model or an adapter is: its folder, or its snapshot in the Hugging Face cache; None if not here.

    Args:
        part: The model or adapter.
        cache_dir: The Hugging Face cache, if it is not the usual one.
    """
    if part.revision is None and (folder := user_path(part.path)).is_dir():
        return Path(os.path.abspath(folder))
    return model_folder(str(part), cache_dir) or local_folder(part.path)
