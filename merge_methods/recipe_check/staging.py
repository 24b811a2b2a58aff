"""A folder of links for each model of a recipe: just the files that transformers would load, wherever the model is.

mergekit is handed these folders. It then finds hub ids that are in the local cache without asking the hub, reads the
weights that count where a folder holds two saves, and is not led astray by `@`, `+` and `~` in a path.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration

from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint, open_checkpoint
from ordermerge.merge_methods.recipe_check.references import map_models, with_absolute_paths
from ordermerge.models import local_folder
from ordermerge.weights import WEIGHT_FILES, weight_like


@dataclass(frozen=True)
class Staged:
    """A recipe whose models are folders of links.

    Args:
        config: The recipe, in which models that are not here are named as they were.
        models: The models that are here, by the name that they have in `config`.
    """

    config: MergeConfiguration
    models: Mapping[ModelReference, Checkpoint]

    @property
    def complete(self) -> bool:
        """Whether all models are here, and their tensors are known."""
        return all(ref in self.models for ref in self.config.referenced_models()) and all(
            model.tensors is not None for model in self.models.values()
        )

    @property
    def sub_models(self) -> dict[ModelReference, Checkpoint]:
        """The models without the base model, in the recipe's order; the base model too where it is the only one."""
        listed = [entry.model for entry in self.config.models or ()] or list(self.models)
        subs = [ref for ref in listed if ref in self.models and ref != self.config.base_model]
        return {ref: self.models[ref] for ref in subs or listed if ref in self.models}

    @property
    def folders(self) -> list[Path]:
        """The folders of the models that are here, and of their adapters."""
        parts = [part for model in self.models.values() for part in (model.folder, model.adapter) if part]
        return list(dict.fromkeys(parts))

    def in_words(self, text: str) -> str:
        """Return a message of mergekit's with the models as the recipe names them.

        Args:
            text: The message, which names folders of links.
        """
        for ref, model in self.models.items():
            text = text.replace(str(ref.model.path), model.path)
        return text


@contextmanager
def staged(
    config: MergeConfiguration, *, cache_dir: str | None = None, stand_in: str | None = None
) -> Iterator[Staged]:
    """Yield a recipe with its models as folders of links, for as long as the block runs.

    An adapter is represented by its base model, whose tensors the merged adapter will have.

    Args:
        config: The recipe.
        cache_dir: The Hugging Face cache, if it is not the usual one.
        stand_in: A model that represents those that are still to be made.

    Yields:
        The recipe.
    """
    with tempfile.TemporaryDirectory(prefix="ordermerge-") as directory:
        yield stage(config, Path(directory), cache_dir=cache_dir, stand_in=stand_in)


def stage(
    config: MergeConfiguration, directory: Path, *, cache_dir: str | None = None, stand_in: str | None = None
) -> Staged:
    """Return a recipe with its models as folders of links (see `staged`).

    Args:
        config: The recipe.
        directory: Where the folders are made.
        cache_dir: The Hugging Face cache, if it is not the usual one.
        stand_in: A model that represents those that are still to be made.
    """
    models: dict[ModelReference, Checkpoint] = {}
    taken: dict[ModelReference, ModelReference] = {}
    base = _open_base(stand_in, cache_dir) if stand_in else None

    def place(reference: ModelReference) -> ModelReference:
        key = with_absolute_paths(reference)
        if key in taken:
            return taken[key]
        found = open_checkpoint(reference, cache_dir) or base
        if found is None:
            return key
        folder = directory / f"{len(taken)}_{_plain(found.folder.name)}"
        _link(found, folder)
        architecture = reference.override_architecture
        taken[key] = ModelReference(model=ModelPath(path=str(folder)), override_architecture=architecture)
        models[taken[key]] = found
        return taken[key]

    config = map_models(config, place)
    return Staged(config, models)


def _open_base(model: str, cache_dir: str | None) -> Checkpoint | None:
    local = local_folder(model)  # whose name may hold what mergekit splits a text at
    return open_checkpoint(ModelReference(model=ModelPath(path=model) if local else model), cache_dir)


def _link(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir(parents=True)
    tensors = checkpoint.tensors or {}
    files = {stored.file for stored in tensors.values()}
    for file in checkpoint.folder.iterdir():
        if file in files or not (weight_like(file.name) or file.name.startswith("adapter_")):
            (folder / file.name).symlink_to(file)
    if len(files) == 1 and next(iter(files)).name in WEIGHT_FILES:
        return
    kind = "model.safetensors" if any(file.suffix == ".safetensors" for file in files) else "pytorch_model.bin"
    weight_map = {name: stored.file.name for name, stored in tensors.items()}
    (folder / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]
