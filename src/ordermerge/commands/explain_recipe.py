"""`ordermerge check --explain`: the effective weights of a recipe's models, by groups of tensors."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from mergekit.architecture import ModelArchitecture
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions

from ordermerge.errors import UserError
from ordermerge.eval.tables import print_columns
from ordermerge.merge_methods.recipe_check.coverage import planned_tasks
from ordermerge.merge_methods.recipe_check.effective_weights import (
    CHANGES,
    DRAWN,
    MEANINGS,
    VALUES,
    effective_notes,
    effective_weights,
)
from ordermerge.merge_methods.recipe_check.layout import fit
from ordermerge.merge_methods.recipe_check.merge_by_name import named_groups, table_by_name
from ordermerge.merge_methods.recipe_check.references import read_recipe
from ordermerge.merge_methods.recipe_check.staging import Staged, staged
from ordermerge.models import model_names

_LAYER = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")
_NAMED = 4  # of many kinds of tensors, so many are named
_SUMS_TO_ONE = 1e-6
_UNIT = {VALUES: "merged = sum of factor x values", CHANGES: "merged = base model + sum of factor x change"}
_UNIT[DRAWN] = "each value is one model's, with this probability"


def explain_recipe(path: Path) -> None:
    """Print what a merge multiplies each model with, after `normalize`, filters and gradients.

    Args:
        path: A mergekit recipe without problems.

    Raises:
        UserError: If its models are not all here, or the file is no recipe.
    """
    recipe = read_recipe(path)
    if "merge_method" not in recipe:
        raise UserError(f"{path}: is an experiment; `--explain` is for a recipe, such as those of a run's `recipes/`")
    config, options = MergeConfiguration.model_validate(recipe), MergeOptions()
    method = config.merge_method
    if (meaning := MEANINGS.get(method)) is None:
        click.echo(f"{method}: what counts how much follows from the models' values, so there are no fixed weights")
        return
    found, notes = explained_weights(config, options)
    names = list(dict.fromkeys(name for weights in found.values() for name in weights))
    print_columns(
        ["tensors", *names, "sum"],
        [[label, *_cells(weights, names)] for label, weights in _groups(found)],
        [f"{method}: {_UNIT[meaning.unit]}", *_sum_notes(meaning.unit, list(found.values())), *notes],
    )


def explained_weights(
    config: MergeConfiguration, options: MergeOptions
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return what a merge multiplies each model with, or its probability, for every tensor.

    Args:
        config: A recipe of one of the `MEANINGS`.
        options: mergekit's options.

    Returns:
        Name of each tensor, and the weight of each model by its short name; and what else decides, one sentence each.

    Raises:
        UserError: If its models are not all here.
    """
    with staged(config) as stage:
        if not stage.complete:
            raise UserError("`--explain` needs the models here, as their layers count; download them first")
        _, tasks = planned_tasks(stage, options, _table(stage, options))
        paths = {f"{m.path}+{m.adapter}" if m.adapter else m.path: ref for ref, m in stage.models.items()}
    names = {paths[path]: name for name, path in model_names(list(paths)).items()}
    found = {
        task.tensor_name: {names[model]: weight for model, weight in effective_weights(task.tensor_task).items()}
        for task in tasks
    }
    return found, list(dict.fromkeys(note for task in tasks for note in effective_notes(task.tensor_task)))


def _table(stage: Staged, options: MergeOptions) -> ModelArchitecture | None:
    """Return the table by tensor name where mergekit's own is incomplete."""
    return table_by_name(named_groups(stage, options)[0]) if fit(stage, options).table else None


def _cells(weights: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [*(f"{weights[name]:.4g}" if name in weights else "-" for name in names), f"{sum(weights.values()):.4g}"]


def _sum_notes(unit: str, found: Sequence[Mapping[str, float]]) -> list[str]:
    """Return what a sum that is not 1 does."""
    if all(abs(sum(weights.values()) - 1) < _SUMS_TO_ONE for weights in found):
        return []
    if unit == VALUES:
        return ["the factors do not sum to 1, so the merged model's values are scaled as a whole; is it what you mean?"]
    return [
        "the factors do not sum to 1, so the merged change is no mean of the changes: smaller below 1, larger above"
    ]


def _groups(
    found: Mapping[str, Mapping[str, float]],
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield the tensors of the same weights, in words, and these."""
    groups: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for name, weights in found.items():
        groups.setdefault(tuple(weights.items()), []).append(name)
    largest = max(groups.values(), key=len)
    for key, names in groups.items():
        words = _words(names, list(found))
        if len(groups) == 1 or (names is largest and len(words) > _NAMED):
            text = f"all {'others' if len(groups) > 1 else 'tensors'} ({len(names)})"
        else:
            text = ", ".join(words[:_NAMED]) + (f" and {len(words) - _NAMED} more kinds" if len(words) > _NAMED else "")
        yield text, dict(key)


def _words(names: Sequence[str], everyone: Sequence[str]) -> list[str]:
    """Return tensors' names, those of several layers as one: `model.layers.0-3.*`, `model.layers.0,2.mlp.weight`."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        match = _LAYER.search(name)
        kind = f"{name[: match.start()]}#{name[match.end() :]}" if match else name
        kinds.setdefault(kind, []).extend([int(match[0])] if match else [])
    alike: dict[tuple[str, str], list[str]] = {}
    for kind, layers in kinds.items():
        alike.setdefault((kind.partition("#")[0] if layers else kind, _ranges(layers)), []).append(kind)
    texts = []
    for (prefix, span), members in alike.items():
        inside = {_LAYER.sub("#", name, count=1) for name in everyone if name.startswith(prefix)}
        whole = [f"{prefix}#.*"] if span and inside == set(members) else members
        texts += [text.replace("#", span, 1) for text in whole]
    return texts


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges: `0-3,5`."""
    pieces: list[list[int]] = []
    for number in sorted(numbers):
        if pieces and number == pieces[-1][1] + 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pieces)
