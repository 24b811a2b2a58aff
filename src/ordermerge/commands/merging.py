"""Merges one recipe to one model by mergekit, and makes the result whole or absent."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import mergekit.merge
import torch
from mergekit.architecture import ModelArchitecture
from mergekit.card import generate_card
from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from ordermerge.commands.first_pass import Found, completed_text, measure, with_results
from ordermerge.commands.merge_output import merge_output
from ordermerge.commands.model_card import CARD, complete_card
from ordermerge.companions import CONFIG, TOKENIZER, copy_companions
from ordermerge.console import quiet
from ordermerge.digests import verified
from ordermerge.errors import UserError
from ordermerge.files import checkpoint_bytes, file_records, fingerprint, require_space, write_json
from ordermerge.folders import scratch_directory
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint, reopened
from ordermerge.merge_methods.recipe_check.layout import fit
from ordermerge.merge_methods.recipe_check.merge_by_name import named_groups, table_by_name
from ordermerge.merge_methods.recipe_check.references import folder_of, map_models, read_recipe, with_absolute_paths
from ordermerge.merge_methods.recipe_check.staging import Staged, stage
from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings
from ordermerge.models import MERGE_MARKER, download
from ordermerge.provenance import record
from ordermerge.stages import Step, mark_done

RECIPE = "mergekit_config.yml"
_CHAT_TEMPLATE = "chat_template.jinja"
_VOCABULARY_KEYS = ("vocab_size", "text_config.vocab_size")


def merge(
    recipe_path: Path, out: Path, options: MergeOptions, *, step: Step | None = None, by_name: bool | None = False
) -> bool:
    """Check a recipe, merge it with mergekit, and put the finished model in place.

    Everything that is not weights comes from the first listed sub-model, but for what the recipe itself says of the
    tokenizer, the chat template or the layers.

    Args:
        recipe_path: The mergekit recipe.
        out: Folder to make; an earlier merge there is replaced when the new one is whole.
        options: mergekit's options.
        step: The step of a plan that this is, for the model's marker; of the recipe alone, if not given.
        by_name: Whether to merge by tensor name, without mergekit's tables of architectures; None does so where they
            are incomplete.

    Returns:
        Whether it was merged by tensor name.

    Raises:
        UserError: If the recipe has problems, mergekit refuses it, `out` holds something that is no merge, or a model
            that a run made is no longer what it was.
    """
    source, recipe = checked_recipe(recipe_path, options, by_name)
    started, made_from = time.time(), step.made_from() if step else {}
    config = MergeConfiguration.model_validate(recipe)
    named = map_models(config, with_absolute_paths)  # for the card: mergekit looks a bare relative name up online
    fetch(named, options)
    with quiet(), merge_output(out, step) as partial:
        if partial is None:
            click.echo(f"{out}: merged by another process meanwhile, kept", err=True)
            return bool(by_name)
        staged = stage(config, partial.parent / "models", cache_dir=options.transformers_cache)
        require_space(out, _bytes_needed(staged, options.lora_merge_cache), f"the merge of {recipe_path}")
        with verified(staged.folders):
            made = merge_staged(recipe_path, partial, staged, options, by_name)
            by_name, measured = made.by_name, made.measured
            source = completed_text(recipe, made.staged.config, measured) if measured else source
            _give_companions(partial, made.staged, made.architecture, options)
        if options.write_model_card:
            write_card(partial, named, source)
        complete_card(partial, named, by_name=by_name)
        seconds = round(time.time() - started, 1)
        noted = {"recipe": recipe, "by_name": by_name, "seconds": seconds, **record(recipe_path.resolve().parent)}
        step_inputs = step.inputs if step else {"recipe": fingerprint(recipe)}
        mark_done(partial / MERGE_MARKER, step_inputs, noted, files=file_records(partial), made_from=made_from)
    return by_name


@contextmanager
def adapter_cache(directory: Path) -> Iterator[Path]:
    """Yield a folder for the dense copies of adapters, which the merges made meanwhile share.

    It is new each time: mergekit takes any copy that it finds, from another adapter or half-written.

    Args:
        directory: Where to make it.

    Yields:
        The folder, which mergekit makes when it needs it.
    """
    with scratch_directory(directory, "adapters") as scratch:
        yield scratch / "lora"


def checked_recipe(recipe_path: Path, options: MergeOptions, by_name: bool | None) -> tuple[str, dict[str, Any]]:
    """Return a recipe that can be merged, as text and parsed; warnings go to standard error.

    Args:
        recipe_path: The mergekit recipe.
        options: mergekit's options.
        by_name: Whether it is to be merged by tensor name; None if either way will do.

    Raises:
        UserError: If it has problems.
    """
    source = recipe_path.read_text(encoding="utf-8") if recipe_path.is_file() else ""
    recipe = read_recipe(recipe_path)
    if problems := check_recipe(recipe, options=options, by_name=by_name):
        raise UserError(problems, where=recipe_path)
    for warning in recipe_warnings(recipe, own_companions=True, options=options, by_name=by_name):
        click.echo(f"warning: {warning}", err=True)
    return source, recipe


def write_card(merged: Path, config: MergeConfiguration, source: str) -> None:
    """Write mergekit's model card, and the recipe, beside a merge.

    Args:
        merged: Its folder, which has its final name.
        config: The recipe.
        source: The recipe's text.
    """
    (merged / CARD).write_text(generate_card(config=config, config_yaml=source, name=merged.name), "utf-8")
    (merged / RECIPE).write_text(source, "utf-8")


def fetch(config: MergeConfiguration, options: MergeOptions) -> None:
    """Download the models that are neither here nor in the Hugging Face cache.

    Args:
        config: The recipe.
        options: mergekit's options.
    """
    for model in config.referenced_models():
        for part in (model.model, model.lora):
            if part is not None and folder_of(part, options.transformers_cache) is None:
                download(str(part), options.transformers_cache)


class MergedWeights(NamedTuple):
    """What mergekit made.

    Args:
        staged: The recipe, in which models with adapters are the dense models that they make.
        architecture: The table of tensors that was used.
        measured: What was measured of the whole model first.
        by_name: Whether it was merged by tensor name.
    """

    staged: Staged
    architecture: ModelArchitecture
    measured: Found
    by_name: bool


def merge_staged(
    recipe_path: Path, partial: Path, staged: Staged, options: MergeOptions, by_name: bool | None
) -> MergedWeights:
    """Let mergekit merge a recipe; adapters are merged into their base models first.

    Args:
        recipe_path: The recipe, for messages.
        partial: The folder to fill, in a working folder of its own.
        staged: The recipe.
        options: mergekit's options.
        by_name: Whether to merge by tensor name; None where tables are incomplete.

    Raises:
        UserError: If the models do not fit together, or mergekit refuses them.
    """
    staged = _with_dense_adapters(staged, options, options.lora_merge_cache or str(partial.parent / "lora"))
    found = fit(staged, options)
    if problems := found.against(by_name):  # adapters have tensors of their own names only now
        raise UserError(problems, where=recipe_path)
    by_name = bool(by_name or (by_name is None and found.table))
    table = table_by_name(named_groups(staged, options)[0]) if by_name else found.architecture
    return MergedWeights(staged, *_merge_weights(recipe_path, partial, staged, options, table), by_name)


def _bytes_needed(staged: Staged, cache: str | None) -> int:
    """Estimate the disk a merge takes: as much as its largest input, and a dense copy of each model with an adapter."""
    dtype = staged.config.out_dtype or staged.config.dtype
    result = max((checkpoint_bytes(Path(ref.model.path), dtype) for ref in staged.models), default=0)
    copies = sum(checkpoint_bytes(Path(ref.model.path)) for ref, model in staged.models.items() if model.adapter)
    held = sum(map(checkpoint_bytes, Path(cache).iterdir())) if cache and Path(cache).is_dir() else 0
    return result + max(0, copies - held)


def _with_dense_adapters(staged: Staged, options: MergeOptions, cache: str) -> Staged:
    """Return a recipe in which each model with an adapter is the dense model that they make."""
    dense: dict[ModelReference, ModelReference] = {}
    models: dict[ModelReference, Checkpoint] = {}
    for ref, model in staged.models.items():
        if model.adapter is None:
            models[ref] = model
            continue
        base = ref.model.path if model.adapter == model.folder else str(model.folder)
        pair = ModelReference(model=ModelPath(path=base), lora=ModelPath(path=str(model.adapter)))
        try:
            dense[ref] = pair.merged(cache, options.trust_remote_code, options.lora_merge_dtype)
        except Exception as error:  # PEFT and transformers raise many kinds
            reason = " ".join(str(error).split())
            raise UserError(f"adapter {model.adapter} cannot be merged into {model.folder}: {reason}") from error
        models[dense[ref]] = reopened(model, Path(dense[ref].model.path))
    return Staged(map_models(staged.config, lambda ref: dense.get(ref, ref)), models)


def _merge_weights(
    recipe_path: Path, partial: Path, staged: Staged, options: MergeOptions, table: ModelArchitecture | None
) -> tuple[ModelArchitecture, Found]:
    """Let mergekit write the weights, the config and what the recipe says of the tokenizer.

    Returns the table of tensors that it used, and what was measured of the whole model first.
    """
    config = staged.config
    copy_tokenizer = bool(config.chat_template) and options.copy_tokenizer  # for the template; the rest is copied here
    settings = options.model_copy(update={"copy_tokenizer": copy_tokenizer, "write_model_card": False})
    LoaderCache.loaders.clear()  # kept by name: a model that was rewritten would be read as it was
    for ref, model in staged.models.items():
        LoaderCache.loaders[ref] = _CheckedLoader(ref, model, lazy_unpickle=options.lazy_unpickle)
    try:
        with _tables(table) as used:
            measured = measure(config, settings)
            mergekit.merge.run_merge(with_results(config, measured), str(partial), settings, "")
    except UserError:
        raise
    except Exception as error:  # mergekit and the file formats below it raise many kinds
        reason = staged.in_words(str(error).partition("\nException raised from")[0])  # PyTorch's frames of C++
        raise UserError(f"{recipe_path}: mergekit could not merge it: {reason}") from error
    finally:
        LoaderCache.loaders.clear()
    return used[0], measured


@contextmanager
def _tables(table: ModelArchitecture | None) -> Iterator[list[ModelArchitecture]]:
    """Give mergekit a table of tensors in place of its own, if there is one, and yield a list of those it took."""
    used: list[ModelArchitecture] = []
    original = mergekit.merge.get_architecture_info

    def take(config: MergeConfiguration, options: MergeOptions) -> ModelArchitecture:
        used.append(table or original(config, options))
        return used[-1]

    mergekit.merge.get_architecture_info = take
    try:
        yield used
    finally:
        mergekit.merge.get_architecture_info = original


class _CheckedLoader(LazyTensorLoader):
    """mergekit's loader, which refuses tensors that hold NaN or infinite values as it reads them."""

    def __init__(self, reference: ModelReference, model: Checkpoint, *, lazy_unpickle: bool):
        super().__init__(ShardedTensorIndex.from_disk(reference.model.path), lazy_unpickle)
        self._path = model.path

    def get_tensor(self, key: str, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        tensor = super().get_tensor(key, *args, **kwargs)
        if tensor is not None and tensor.is_floating_point() and tensor.numel() and not is_finite(tensor):
            kind = "NaN" if tensor.isnan().any() else "infinite"
            raise UserError(
                f"model {self._path}: `{key}` holds {kind} values (a training that diverged?); leave it out"
            )
        return tensor


def is_finite(tensor: torch.Tensor) -> bool:
    """Tell whether no value of a tensor is NaN or infinite.

    Args:
        tensor: Of a floating-point dtype, and not empty.
    """
    low, high = tensor.aminmax()  # NaN wherever there is one; the one pass that torch makes as fast as it reads
    return math.isfinite(low) and math.isfinite(high)


def _give_companions(merged: Path, staged: Staged, architecture: ModelArchitecture, options: MergeOptions) -> None:
    """Give a merged model everything of the first sub-model that is not weights, but for what the recipe says."""
    config = staged.config
    first = next(iter(staged.sub_models.values()))
    own_tokenizer = bool(config.tokenizer or config.tokenizer_source)
    written = json.loads((merged / CONFIG).read_text("utf-8"))
    write_json(merged / CONFIG, _merged_config(first, written, config, architecture))

    def wanted(name: str) -> bool:
        if not TOKENIZER.search(name):
            return True
        template = bool(config.chat_template) and "chat_template" in name
        return options.copy_tokenizer and not own_tokenizer and not template

    if not own_tokenizer:
        for file in merged.iterdir():  # mergekit's, of the base model
            if TOKENIZER.search(file.name) and not (config.chat_template and file.name == _CHAT_TEMPLATE):
                file.unlink()
    tokenizer = first.adapter if first.adapter and (first.adapter / "tokenizer_config.json").exists() else None
    copy_companions(first.folder, merged, lambda name: wanted(name) and not (tokenizer and TOKENIZER.search(name)))
    if first.adapter:
        copy_companions(first.adapter, merged, wanted)


def _merged_config(
    first: Checkpoint, written: Mapping[str, Any], config: MergeConfiguration, architecture: ModelArchitecture
) -> dict[str, Any]:
    """Return the first sub-model's configuration, with the dtype, vocabulary and layers that the merge has made."""
    made: dict[str, Any] = json.loads(json.dumps(first.config))
    made.pop("quantization_config", None)
    keys: list[str] = []
    if config.tokenizer or config.tokenizer_source:
        keys += [key for key in (architecture.vocab_size_config_key, *_VOCABULARY_KEYS) if key]
    if config.slices or config.modules:
        keys += [key for m in architecture.modules.values() if (key := m.architecture.num_layers_config_key())]
    for key in keys:
        _set(made, written, key.split("."))
    if dtype := (config.out_dtype or config.dtype or "").removeprefix("torch."):
        _set_dtype(made, dtype)
        made["dtype"] = dtype
    return made


def _set(made: dict[str, Any], written: Mapping[str, Any], path: list[str]) -> None:
    key, *rest = path
    if key not in written or (rest and not isinstance(made.get(key), dict)):
        return
    if rest:
        _set(made[key], written[key], rest)
    else:
        made[key] = written[key]


def _set_dtype(node: dict[str, Any], dtype: str) -> None:
    node.pop("torch_dtype", None)
    if "dtype" in node:
        node["dtype"] = dtype
    for item in node.values():
        if isinstance(item, dict):
            _set_dtype(item, dtype)
