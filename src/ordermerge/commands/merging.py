"""Merges one recipe to one model by mergekit, and makes the result whole or absent."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from ordermerge.commands.model_card import complete_card
from ordermerge.errors import UserError
from ordermerge.files import checkpoint_bytes, file_records, fingerprint, new_directory, require_space
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings
from ordermerge.models import MERGE_MARKER
from ordermerge.provenance import record
from ordermerge.readers import read_yaml
from ordermerge.stages import Step, mark_done

# What makes a checkpoint's text come out right, taken from the first sub-model: mergekit takes it from the base.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_GENERATION_CONFIG = "generation_config.json"


def merge(recipe_path: Path, out: Path, options: MergeOptions, *, step: Step | None = None) -> None:
    """Check a recipe, merge it with mergekit, and put the finished model in place.

    Config, tokenizer, chat template and generation config come from the first listed sub-model, unless the recipe
    itself says what the tokenizer or the layers are to be.

    Args:
        recipe_path: The mergekit recipe.
        out: Folder to make; an earlier merge there is replaced when the new one is whole.
        options: mergekit's options.
        step: The step of a plan that this is, for the model's marker; of the recipe alone, if not given.

    Raises:
        UserError: If the recipe has problems, mergekit refuses it, or `out` holds something that is no merge.
    """
    source = recipe_path.read_text(encoding="utf-8") if recipe_path.is_file() else ""
    recipe = read_yaml(recipe_path)
    if problems := check_recipe(recipe, options=options):
        raise UserError(problems, where=recipe_path)
    for warning in recipe_warnings(recipe, own_companions=True):
        click.echo(f"warning: {warning}", err=True)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not (out / "mergekit_config.yml").exists():
        raise UserError(f"{out}: exists and was not made by a merge; name a new folder")
    started, made_from = time.time(), step.made_from() if step else {}
    config = MergeConfiguration.model_validate(with_absolute_paths(recipe))
    require_space(out, _bytes_needed(config, options.lora_merge_cache), f"the merge of {recipe_path}")
    with new_directory(out) as partial:
        LoaderCache.loaders.clear()  # kept by name: a model that was rewritten would be read as it was
        cache = options.lora_merge_cache or str(partial.parent / "lora")
        try:
            run_merge(config, str(partial), options.model_copy(update={"lora_merge_cache": cache}), source)
        except Exception as error:  # mergekit and the file formats below it raise many kinds
            raise UserError(f"{recipe_path}: mergekit could not merge it: {error}{_remedy(str(error))}") from error
        config = MergeConfiguration.model_validate(with_absolute_paths(recipe))  # run_merge rewrites its own
        if not (config.slices or config.modules or config.tokenizer or config.tokenizer_source or config.chat_template):
            _copy_companions(partial, config, copy_tokenizer=options.copy_tokenizer)
        complete_card(partial, config)
        seconds = round(time.time() - started, 1)
        noted = {"recipe": recipe, "seconds": seconds, **record(recipe_path.resolve().parent)}
        step_inputs = step.inputs if step else {"recipe": fingerprint(recipe)}
        mark_done(partial / MERGE_MARKER, step_inputs, noted, files=file_records(partial), made_from=made_from)


@contextmanager
def adapter_cache(directory: Path) -> Iterator[Path]:
    """Yield a folder for the dense copies of adapters, which the merges made meanwhile share.

    It is new each time: mergekit takes any copy that it finds, from another adapter or half-written.

    Args:
        directory: Where to make it.

    Yields:
        The folder, which mergekit makes when it needs it.
    """
    cache = directory / ".adapters.partial"
    shutil.rmtree(cache, ignore_errors=True)
    try:
        yield cache
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _bytes_needed(config: MergeConfiguration, cache: str | None) -> int:
    """Estimate the disk a merge takes: as much as its largest input, and a dense copy of each model with an adapter."""
    models = config.referenced_models()
    dtype = config.out_dtype or config.dtype
    result = max((checkpoint_bytes(Path(model.model.path), dtype) for model in models), default=0)
    copies = sum(checkpoint_bytes(Path(model.model.path)) for model in models if model.lora)
    held = sum(map(checkpoint_bytes, Path(cache).iterdir())) if cache and Path(cache).is_dir() else 0
    return result + max(0, copies - held)


def _remedy(message: str) -> str:
    if "required but not present" not in message:
        return ""
    return ". If transformers loads that model, saving it once with `save_pretrained` gives its tensors the usual names"


def with_absolute_paths(node: Any) -> Any:
    """Return a recipe with every existing local model named by its absolute path.

    mergekit takes a bare relative name for a hub id when it writes the model card, and looks it up online.

    Args:
        node: A recipe, or a part of one.
    """
    if isinstance(node, list):
        return [with_absolute_paths(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {
        key: _absolute(item) if _names_model(key, item) else with_absolute_paths(item) for key, item in node.items()
    }


def _names_model(key: str, item: Any) -> bool:
    words = {"tokenizer_source": ("union", "base"), "source": ("union", "base"), "model": (), "base_model": ()}
    return isinstance(item, str) and key in words and item not in words[key]


def _absolute(reference: str) -> str:
    parsed = ModelReference.parse(reference)
    parts = [part for part in (parsed.model, parsed.lora) if part]
    texts = [str(Path(p.path).resolve()) if Path(p.path).exists() and not p.revision else str(p) for p in parts]
    return "+".join(texts)


def _copy_companions(merged: Path, config: MergeConfiguration, *, copy_tokenizer: bool) -> None:
    """Give a merged model the config, tokenizer, chat template and generation config of the first sub-model."""
    assert config.models is not None
    first = next((entry.model for entry in config.models if entry.model != config.base_model), config.models[0].model)
    made = first.config()
    made.dtype = config.out_dtype or config.dtype or made.dtype
    made.save_pretrained(merged)
    donor = whole = Path(first.model.path)
    if first.lora and (Path(first.lora.path) / "tokenizer_config.json").exists():
        donor = Path(first.lora.path)
    if copy_tokenizer and donor.is_dir():
        for name in (*_TOKENIZER_FILES, _GENERATION_CONFIG):
            # Adapters often come with a tokenizer and without a generation config.
            lacks = name == _GENERATION_CONFIG and not (donor / name).exists()
            (merged / name).unlink(missing_ok=True)
            if (file := (whole if lacks else donor) / name).exists():
                shutil.copy(file, merged / name)
