"""`ordermerge merge --adapter`: adapters merged to one adapter, averages exactly, others where little is lost."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import ModelCard
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex
from mergekit.options import MergeOptions

from ordermerge.adapters import Adapter, read_adapter, write_adapter
from ordermerge.commands.merge_output import merge_output
from ordermerge.commands.merging import checked_recipe, fetch, merge_staged, write_card
from ordermerge.commands.model_card import CARD, complete_card
from ordermerge.companions import copy_companions
from ordermerge.digests import verified
from ordermerge.errors import UserError, shortened
from ordermerge.files import file_records, fingerprint, user_path
from ordermerge.low_rank import Approximation, largest_parts, largest_parts_of_dense, weighted_sum
from ordermerge.merge_methods.recipe_check.coverage import planned_tasks
from ordermerge.merge_methods.recipe_check.effective_weights import effective_weights
from ordermerge.merge_methods.recipe_check.references import map_models, with_absolute_paths
from ordermerge.merge_methods.recipe_check.staging import Staged, stage
from ordermerge.merge_methods.tied import find_ties
from ordermerge.models import MERGE_MARKER, hub_revision
from ordermerge.provenance import record
from ordermerge.stages import mark_done

# Sums of weight times update: of low rank where the updates are.
AVERAGES = ("linear", "task_arithmetic")
MOST_LOST = 0.05  # share of the squared norm of the change, where the merge is no average
_NO_ADAPTER = ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template")


class MergedAdapter(NamedTuple):
    """What became of a merge of adapters.

    Args:
        rank: The largest of a module.
        kept: Share of the squared norm of the change that it holds; 1 if it is the whole.
        module: The module that lost most.
        kept_there: The share there.
    """

    rank: int
    kept: float
    module: str
    kept_there: float

    def __str__(self) -> str:
        if self.kept_there == 1:
            return f"an adapter of rank {self.rank}, which is the merge exactly"
        return (
            f"an adapter of rank {self.rank}, which keeps {100 * self.kept:.4g} % of the squared norm of the merge's "
            f"change (the lowest: {100 * self.kept_there:.4g} % in {self.module})"
        )


def merge_adapters(
    recipe_path: Path, out: Path, options: MergeOptions, *, rank: int | None = None, most_lost: float | None = None
) -> MergedAdapter:
    """Merge a recipe of adapters to an adapter.

    Averages are exact at the rank of all adapters together. Those cut to `rank`, and other methods, whose change is of
    full rank, are approximated by their largest parts.

    Args:
        recipe_path: The mergekit recipe, whose models are adapters of one base model.
        out: Folder to make; an earlier merge there is replaced when the new one is whole.
        options: mergekit's options.
        rank: The most that the adapter may have.
        most_lost: The largest share of the squared norm of the change that may be lost; `MOST_LOST` if not given, and
            any for averages.

    Raises:
        UserError: If the recipe has problems, its models are no such adapters, or too much would be lost.
    """
    source, recipe = checked_recipe(recipe_path, options, None)
    config = MergeConfiguration.model_validate(recipe)
    average = config.merge_method in AVERAGES
    if problems := _recipe_problems(config, rank):
        raise UserError(problems, where=recipe_path)
    started, named = time.time(), map_models(config, with_absolute_paths)
    fetch(named, options)
    with merge_output(out, None) as partial:
        assert partial is not None  # there is no step that another process could have made
        staged = stage(config, partial.parent / "models", cache_dir=options.transformers_cache)
        with verified(staged.folders):
            adapters = _read_adapters(staged, options)
            if average:
                parts = _averaged(staged, adapters, options, rank)
            else:
                dense = partial.parent / "dense"
                merge_staged(recipe_path, dense, staged, options, None)
                parts = _dense_parts(dense, staged, adapters, rank or 1)
        made = _judged(parts, config.merge_method, most_lost if average or most_lost is not None else MOST_LOST)
        base, revision = _base_of(staged)
        changes = {module: part.matrix for module, part in parts.items()}
        write_adapter(partial, list(adapters.values()), changes, base, revision)
        copy_companions(next(iter(adapters.values())).folder, partial, lambda name: True)
        if options.write_model_card:
            write_card(partial, named, source)
            complete_card(partial, named)
            _add_to_card(partial / CARD, made, base)
        shares = {name: part.kept / part.whole if part.whole else 1.0 for name, part in parts.items()}
        noted = {"recipe": recipe, "adapter": {**made._asdict(), "kept_of": shares}, "seconds": time.time() - started}
        mark_done(
            partial / MERGE_MARKER,
            {"recipe": fingerprint(recipe), "rank": rank},
            {**noted, **record(recipe_path.resolve().parent)},
            files=file_records(partial),
        )
    return made


def _recipe_problems(config: MergeConfiguration, rank: int | None) -> list[str]:
    problems = [
        f"`{key}` changes more than an adapter holds; merge without `--adapter`"
        for key in _NO_ADAPTER
        if getattr(config, key)
    ]
    if config.merge_method not in AVERAGES and rank is None:
        problems.append(
            f"`{config.merge_method}` chooses or scales each value on its own, so its change is of full rank, and no "
            f"adapter holds it; merge without `--adapter`, average ({', '.join(AVERAGES)}), or give `--rank R` for "
            f"its largest parts, unless that loses more than {100 * MOST_LOST:g} % of its squared norm (`--max-loss`)"
        )
    return problems


def _read_adapters(staged: Staged, options: MergeOptions) -> dict[ModelReference, Adapter]:
    """Return the adapters of a recipe, in its order.

    Raises:
        UserError: If they are of several base models, or more than low-rank changes.
    """
    found = {ref: model.adapter for ref, model in staged.sub_models.items() if model.adapter}
    if not found:
        raise UserError("`--adapter` merges adapters, and no model of the recipe is one; write them as BASE+ADAPTER")
    bases = {model.folder.resolve(): model.path for model in staged.models.values()}
    if len(bases) > 1:
        raise UserError(
            f"an adapter changes one base model, and the recipe has {len(bases)} ({', '.join(bases.values())}); merge "
            "without `--adapter`"
        )
    problems: list[str] = []
    adapters = {}
    for ref, folder in found.items():
        try:
            adapters[ref] = read_adapter(folder)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    ties = find_ties(
        next(iter(found)).config(trust_remote_code=options.trust_remote_code),
        trust_remote_code=options.trust_remote_code,
    )
    tied = {name.removesuffix(".weight") for name in (*ties, *ties.values())}
    for adapter in adapters.values():
        if both := sorted(tied & adapter.changes.keys()):
            raise UserError(
                f"adapter {adapter.folder} adapts `{both[0]}`, which the base model ties to another matrix: as an "
                "adapter it changes one of the two, as a whole model both; merge without `--adapter`"
            )
    return adapters


def _averaged(
    staged: Staged, adapters: Mapping[ModelReference, Adapter], options: MergeOptions, rank: int | None
) -> dict[str, Approximation]:
    weights = _Weights(staged, options)
    parts = {}
    for module in dict.fromkeys(name for adapter in adapters.values() for name in adapter.changes):
        having = {ref: adapter for ref, adapter in adapters.items() if module in adapter.changes}
        _require_alike(module, list(having.values()))
        factors = {ref: weight for ref, weight in weights.of(module).items() if ref in having and weight}
        if factors:
            whole = weighted_sum([having[ref].changes[module] for ref in factors], list(factors.values()))
            parts[module] = largest_parts(whole, rank) if rank else Approximation(whole, 1.0, 1.0)
    if not parts:
        raise UserError("`weight` is 0 for every adapter; give at least one another weight")
    return parts


class _Weights:
    """What a recipe multiplies the change of each module with."""

    def __init__(self, staged: Staged, options: MergeOptions):
        try:
            _, tasks = planned_tasks(staged, options)
        except Exception as error:  # mergekit and transformers raise many kinds
            reason = shortened(staged.in_words(" ".join(str(error).split())), 300)
            raise UserError(f"mergekit cannot plan the merge ({reason}); merge without `--adapter`") from error
        self._named: dict[str, dict[ModelReference, float]] = {}
        for task in tasks:
            weight = task.tensor_task.output_weight
            found = effective_weights(task.tensor_task)
            total = sum(found.values())
            if staged.config.merge_method == "linear" and not abs(total - 1) < 1e-6:
                raise UserError(
                    f"the weights sum to {total:g} for `{weight.name}`, which scales the base model itself, and an "
                    "adapter cannot; leave `normalize` at true, or merge without `--adapter`"
                )
            self._named |= dict.fromkeys((weight.name, *(weight.aliases or ())), found)
        first, *others = self._named.values()
        self._one = first if all(other == first for other in others) else None

    def of(self, module: str) -> dict[ModelReference, float]:
        found = self._one or self._named.get(f"{module}.weight")
        if found is None:
            raise UserError(
                f"mergekit has no tensor `{module}.weight`, so the recipe's weights are not known for it; give each "
                "model one weight, without filters or lists"
            )
        return found


def _require_alike(module: str, adapters: Sequence[Adapter]) -> None:
    shapes: dict[str, Path] = {}
    for adapter in adapters:
        change = adapter.changes[module]
        kind = " transposed" if adapter.is_transposed(module) else ""
        shapes.setdefault(f"{[change.left.shape[0], change.right.shape[1]]}{kind}", adapter.folder)
    if len(shapes) > 1:
        each = ", ".join(f"{shape} in {folder}" for shape, folder in shapes.items())
        raise UserError(f"the adapters are of different base models: `{module}` is {each}")


def _dense_parts(
    merged: Path, staged: Staged, adapters: Mapping[ModelReference, Adapter], rank: int
) -> dict[str, Approximation]:
    """Return the largest parts of what a whole merged model changed of the base model."""
    dense = LazyTensorLoader(ShardedTensorIndex.from_disk(str(merged)))
    base = LazyTensorLoader(ShardedTensorIndex.from_disk(next(iter(staged.models)).model.path))
    modules = {f"{name}.weight": adapter for adapter in adapters.values() for name in adapter.changes}
    parts = {}
    for name in dense.index.tensor_paths:
        after = dense.get_tensor(name)
        before = base.get_tensor(name, raise_on_missing=False)
        if name in modules and before is not None:
            change = after.float() - before.to(after.dtype).float()
            module = name.removesuffix(".weight")
            parts[module] = largest_parts_of_dense(change.T if modules[name].is_transposed(module) else change, rank)
        elif before is None or not torch.equal(after, before.to(after.dtype)):
            raise UserError(f"the merge changes `{name}`, which no adapter adapts; merge without `--adapter`")
    if absent := [name for name in modules if name.removesuffix(".weight") not in parts]:
        raise UserError(f"the merged model has no tensor `{absent[0]}`, which an adapter adapts")
    return parts


def _judged(parts: Mapping[str, Approximation], method: str, most_lost: float | None) -> MergedAdapter:
    """Return what the parts make, and refuse what loses too much."""
    shares = {module: part.kept / part.whole if part.whole else 1.0 for module, part in parts.items()}
    lowest = min(shares, key=lambda module: shares[module])
    whole = sum(part.whole for part in parts.values())
    kept = sum(part.kept for part in parts.values()) / whole if whole else 1.0
    made = MergedAdapter(max(part.matrix.rank for part in parts.values()), kept, lowest, shares[lowest])
    if most_lost is not None and 1 - kept > most_lost:
        why = "" if method in AVERAGES else f"`{method}` chooses or scales each value on its own; "
        raise UserError(
            f"at rank {made.rank} the adapter would lose {100 * (1 - kept):.3g} % of the squared norm of the change "
            f"(most in {lowest}: {100 * (1 - made.kept_there):.3g} %), more than {100 * most_lost:g} %: {why}give a "
            "larger `--rank` or `--max-loss`, take `linear`, or merge without `--adapter`"
        )
    return made


def _base_of(staged: Staged) -> tuple[str, str | None]:
    """Return the base model as an adapter names it."""
    model = next(iter(staged.sub_models.values()))
    name, revision = hub_revision(model.path)
    local = user_path(model.path)
    return (str(model.folder), None) if local.is_dir() else (name, revision)


def _add_to_card(file: Path, made: MergedAdapter, base: str) -> None:
    card = ModelCard.load(file)
    local = Path(base).is_absolute()
    said = f"Merged by `ordermerge merge --adapter` to {made}. Load it with PEFT."
    card.text = f"{card.text.rstrip()}\n\n### Adapter\n\n{said}\n"
    card.data.library_name = "peft"
    card.data.base_model = "/".join(Path(base).parts[-2:]).lstrip("/") if local else base
    card.data.tags = [*(card.data.tags or []), *({"lora", "ordermerge"} - {*(card.data.tags or [])})]
    card.save(file)
