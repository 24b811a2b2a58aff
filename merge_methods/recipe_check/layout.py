"""Whether the models of a recipe fit together: architectures, layers, tensor names and shapes, from headers alone.

The tensors that must match are those that mergekit's own plan gathers, so that its aliases, tied tensors and optional
tensors are not taken for mistakes; and those that it does not gather would be lost.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mergekit.architecture import ModelArchitecture, arch_info_for_config
from mergekit.architecture.json_definitions import NAME_TO_ARCH
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration, OutputModuleDefinition
from mergekit.options import MergeOptions

from ordermerge.errors import counted, shortened
from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint
from ordermerge.merge_methods.recipe_check.config_meaning import meaning_differences, unfinite_problems
from ordermerge.merge_methods.recipe_check.coverage import Group, is_computed, lost_tensors, planned_groups
from ordermerge.merge_methods.recipe_check.merge_by_name import named_groups
from ordermerge.merge_methods.recipe_check.staging import Staged
from ordermerge.weights import FLOATS

RESAVE = "if transformers loads that model, saving it once with `save_pretrained` gives its tensors the usual names"
BY_NAME = "they can be merged by tensor name instead: `ordermerge merge --by-name`"
CODE = "has code of its own, which is run only if you allow it: `--trust-remote-code`"
_NAMED = 3  # of many tensors, so many are named
_NO_FIELD = re.compile(r"has no attribute '?([\w.]+)'?\s*$")


@dataclass(frozen=True)
class Fit:
    """How the models of a recipe can be merged with each other.

    Args:
        problems: What keeps them from being merged at all, one sentence each.
        table: What keeps mergekit's tables of architectures from merging them whole.
        by_name: What keeps them from being merged by tensor name.
        warnings: What is left out of the merged model although it is in a sub-model, for good reason; and differences
            between the models' configs that may matter.
        architecture: mergekit's table, where it has one or infers one.
    """

    problems: tuple[str, ...] = ()
    table: tuple[str, ...] = ()
    by_name: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    architecture: ModelArchitecture | None = None

    def against(self, by_name: bool | None) -> list[str]:
        """Return what keeps the models from being merged in one way.

        Args:
            by_name: By tensor name, or by mergekit's tables; None for either.
        """
        if self.problems or by_name:
            return list(self.problems or self.by_name)
        if not self.table or (by_name is None and not self.by_name):
            return []
        return [f"{problem}; {BY_NAME}" if not self.by_name else problem for problem in self.table]


def fit(staged: Staged, options: MergeOptions) -> Fit:
    """Return how the models of a recipe can be merged with each other.

    Args:
        staged: The recipe; models that are not here are passed over.
        options: mergekit's options; `allow_crimes` and `unsafe_truncate_embeddings` permit more.
    """
    models = staged.models
    if problems := [problem for model in models.values() for problem in model.problems]:
        return Fit(tuple(dict.fromkeys(problems)))
    if problems := list(_architecture_problems(models, options)) or list(_config_problems(models, options)):
        return Fit(tuple(problems))
    config = staged.config
    free_vocabulary = bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)
    if not models or not staged.complete:
        return Fit(tuple(_shape_problems(_same_names(models) if config.models else [], models, free_vocabulary)))
    grave, warnings = meaning_differences(models, config.base_model, options.trust_remote_code)
    grave += unfinite_problems(models)
    if options.allow_crimes:
        grave, warnings = [], [*grave, *warnings]
    if grave:
        return Fit(tuple(grave))
    named, by_name, dropped = named_groups(staged, options)
    by_name = by_name or _shape_problems(named, models, free_vocabulary)
    # Without the one architecture that they share, mergekit finds its table by asking the models.
    if problems := _module_problems(config, models, options):
        return Fit(tuple(problems))
    try:
        architecture, groups = planned_groups(staged, options)
    except Exception as error:  # mergekit and transformers raise many kinds
        return Fit((), (_no_plan(error, staged),), tuple(by_name), tuple(warnings))
    if problems := _shape_problems(groups, models, free_vocabulary):
        return Fit(tuple(problems))
    table = _missing_problems(groups, models, remedy=f"; {RESAVE}" if by_name else "")
    lost, computed = _lost_problems(lost_tensors(staged, architecture, groups, options), staged)
    warnings += [*computed, *(_dropped_warning(dropped) if dropped and (table or lost) else [])]
    return Fit((), (*table, *lost), tuple(by_name), tuple(warnings), architecture)


def _architecture_problems(models: Mapping[ModelReference, Checkpoint], options: MergeOptions) -> Iterator[str]:
    names, tables = {}, []
    for model in models.values():
        named = (model.config or {}).get("architectures") or []
        if len(named) != 1:
            yield (
                f"model {model.path}: `architectures` in config.json must name one architecture, got {named}; "
                f"save the model with `save_pretrained`"
            )
        else:
            names[model.path] = f"{named[0]} ({(model.config or {}).get('model_type', 'no model_type')})"
            tables += [table for table in NAME_TO_ARCH.get(named[0], ()) if table not in tables]
    differ = len(set(names.values())) > 1 and len(tables) != 1  # some classes have two names
    if differ and len(names) == len(models) and not options.allow_crimes:
        each = "; ".join(f"{path} is {name}" for path, name in names.items())
        yield f"models of different architectures cannot be merged: {each} (mergekit tries with `--allow-crimes`)"


def _config_problems(models: Mapping[ModelReference, Checkpoint], options: MergeOptions) -> Iterator[str]:
    """Yield what keeps transformers from reading a model's config.json."""
    for ref, model in models.items():
        try:
            ref.config(trust_remote_code=options.trust_remote_code)
        except Exception as error:  # transformers raises many kinds
            if "trust_remote_code" in str(error):
                yield f"model {model.path} {CODE}"
            else:
                reason = shortened(" ".join(str(error).split()), 300)
                yield f"model {model.path}: transformers cannot read its config.json ({reason})"


def _architecture(reference: ModelReference, options: MergeOptions) -> ModelArchitecture | None:
    return arch_info_for_config(reference.config(trust_remote_code=options.trust_remote_code))


def _module_problems(
    config: MergeConfiguration, models: Mapping[ModelReference, Checkpoint], options: MergeOptions
) -> list[str]:
    """Return what is wrong with the modules and the layer ranges of a recipe."""
    known = [_architecture(ref, options) for ref in models]
    arch = known[0]
    if arch is None or any(other != arch for other in known):
        return []
    if config.slices and len(arch.modules) > 1:
        return [f"`slices` needs `modules:` around it for a model of several modules ({', '.join(arch.modules)})"]
    whole = OutputModuleDefinition.model_construct(models=config.models, slices=config.slices)
    problems: list[str] = []
    for name, module in (config.modules or dict.fromkeys(arch.modules, whole)).items():
        if name not in arch.modules:
            problems.append(f"unknown module `{name}` for {arch.architectures[0]} (known: {', '.join(arch.modules)})")
            continue
        try:
            layers = {ref: _layers(arch, name, ref, options) for ref in models}
        except (RuntimeError, AttributeError):
            continue  # the number of layers is not where mergekit's table looks for it: planning will say so
        for place, sources in _pieces(config, module, f"modules.{name}." if config.modules else "", layers):
            problems += _piece_problems(place, sources, layers, models)
    return problems


def _layers(arch: ModelArchitecture, module: str, reference: ModelReference, options: MergeOptions) -> int:
    config = reference.config(trust_remote_code=options.trust_remote_code)
    return arch.modules[module].architecture.num_layers(config)


def _pieces(
    config: MergeConfiguration, module: OutputModuleDefinition, prefix: str, layers: Mapping[ModelReference, int]
) -> Iterator[tuple[str, list[tuple[ModelReference, int, int]]]]:
    """Yield each group of layers of a module: its place in the recipe; its models, with their first and last layer."""
    if module.models:
        listed = [entry.model for entry in module.models]
        inputs = [*listed, config.base_model] if config.base_model and config.base_model not in listed else listed
        yield f"{prefix}models", [(ref, 0, layers[ref]) for ref in inputs if ref in layers]
    for index, piece in enumerate(module.slices or []):
        yield f"{prefix}slices[{index}]", [(source.model, *source.layer_range) for source in piece.sources]


def _piece_problems(
    place: str,
    sources: Sequence[tuple[ModelReference, int, int]],
    layers: Mapping[ModelReference, int],
    models: Mapping[ModelReference, Checkpoint],
) -> Iterator[str]:
    paths = {ref: models[ref].path if ref in models else str(ref) for ref, _, _ in sources}
    if len({end - start for _, start, end in sources}) > 1:
        each = ", ".join(f"{end - start} of {paths[ref]}" for ref, start, end in sources)
        yield f"`{place}` puts different numbers of layers together: {each}; they must be equal"
    for ref, start, end in sources:
        has = layers.get(ref)
        if has is not None and not 0 <= start <= end <= has:
            yield f"`{place}`: layer_range [{start}, {end}] does not fit the {has} layers of {paths[ref]}"


def _same_names(models: Mapping[ModelReference, Checkpoint]) -> list[Group]:
    """Return one group for each name that several models have, where mergekit's plan cannot be asked."""
    names = dict.fromkeys(name for model in models.values() for name in model.tensors or ())
    held = {name: {ref: (model.tensors or {}).get(name) for ref, model in models.items()} for name in names}
    return [Group(name, 0 if _embeds(name) else None, True, stored, {}) for name, stored in held.items()]


def _embeds(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte", "word_embeddings"))


def _no_plan(error: Exception, staged: Staged) -> str:
    """Return one sentence on why mergekit cannot plan a merge; its own may hold whole configurations."""
    text = " ".join(str(error).split())
    name = next(iter(staged.models.values())).config or {}
    if match := _NO_FIELD.search(text):
        return (
            f"mergekit's table of {name.get('architectures', ['?'])[0]} looks for `{match[1]}` in config.json, where "
            f"these models have no such field"
        )
    return f"mergekit cannot plan the merge ({shortened(staged.in_words(text), 300) or type(error).__name__})"


def _missing_problems(
    groups: Sequence[Group], models: Mapping[ModelReference, Checkpoint], *, remedy: str
) -> list[str]:
    lacking: dict[ModelReference, list[str]] = {}
    for group in groups:
        for ref, stored in group.stored.items():
            if not group.optional and stored is None and models[ref].adapter is None:
                lacking.setdefault(ref, []).append(group.name)
    return [_missing_problem(models[ref], list(dict.fromkeys(names)), remedy) for ref, names in lacking.items()]


def _missing_problem(model: Checkpoint, names: list[str], remedy: str) -> str:
    embedding = next((name for name in names if _embeds(name)), None)
    if len(names) == 1 and embedding and "lm_head.weight" in (model.tensors or ()):
        return (
            f"model {model.path} stores its tied embedding only as `lm_head.weight`, where mergekit requires "
            f"`{embedding}`; load it with transformers and save it once with `save_pretrained`"
        )
    return f"model {model.path} lacks {_some(names)}, which mergekit requires{remedy}"


def _lost_problems(lost: Mapping[str, Sequence[str]], staged: Staged) -> tuple[list[str], list[str]]:
    """Return a sentence for each model that would lose tensors, and one for each that loses what is computed anew."""
    problems, warnings = [], []
    for model in staged.sub_models.values():
        names = lost.get(model.path, ())
        computed = [name for name in names if is_computed(name, (model.tensors or {})[name])]
        if weights := [name for name in names if name not in computed]:
            architecture = (model.config or {}).get("architectures", ["?"])[0]
            problems.append(
                f"mergekit leaves out {counted(len(weights), 'tensor')} of {model.path}, which its table of "
                f"{architecture} does not name ({_some(weights)}): the merged model would have random values there"
            )
        elif computed:
            warnings += _dropped_warning(computed)
    return problems, list(dict.fromkeys(warnings))


def _dropped_warning(names: Sequence[str]) -> list[str]:
    return [f"{_some(names)} {'is' if len(names) == 1 else 'are'} left out: transformers computes such buffers anew"]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more tensors" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more


def _shape_problems(
    groups: Sequence[Group], models: Mapping[ModelReference, Checkpoint], free_vocabulary: bool
) -> list[str]:
    found: dict[str, tuple[str, bool]] = {}
    for group in groups:
        shapes: dict[tuple[int, ...], str] = {}
        for ref, stored in group.stored.items():
            # Buffers of whole numbers are copied from one of the models, not merged.
            if stored is not None and stored.shape is not None and stored.dtype in FLOATS:
                shapes.setdefault(stored.shape, models[ref].path)
        rest = {_without(shape, group.vocabulary_axis) for shape in shapes}
        if len(shapes) > 1 and not (free_vocabulary and len(rest) == 1):
            each = ", ".join(f"{list(shape)} in {path}" for shape, path in shapes.items())
            found.setdefault(group.name, (f"`{group.name}` is {each}", len(rest) == 1))
    if not found:
        return []
    sentences = [sentence for sentence, _ in found.values()]
    more = f"; and {len(found) - _NAMED} more tensors" if len(found) > _NAMED else ""
    remedy = "only models of the same sizes can be merged"
    if all(vocabulary for _, vocabulary in found.values()):
        remedy = "add `tokenizer: {source: base}` (or union) to the recipe to align the vocabularies"
    return [f"tensors of different shapes: {'; '.join(sentences[:_NAMED])}{more}; {remedy}"]


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]
