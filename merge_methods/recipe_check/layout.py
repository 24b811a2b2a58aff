"""Whether the models of a recipe fit together: architectures, layers, tensor names and shapes, from headers alone.

The tensors that must match are those that mergekit's own plan would gather, by its own tables of architectures, so
that its aliases, tied tensors and optional tensors are not taken for mistakes.
"""

from collections.abc import Iterator, Mapping, Sequence

from mergekit.architecture import ModelArchitecture, WeightInfo, arch_info_for_config
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration, OutputModuleDefinition
from mergekit.options import MergeOptions

from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint, open_all
from ordermerge.merge_methods.recipe_check.plan import Group, Piece, Plan, find_stored, pieces_of
from ordermerge.weights import FLOATS

RESAVE = "if transformers loads that model, saving it once with `save_pretrained` gives its tensors the usual names"
_NAMED = 3  # of many tensors, so many are named


def layout_problems(config: MergeConfiguration, options: MergeOptions) -> list[str]:
    """Return what keeps the local models of a recipe from being merged with each other; hub ids are passed over.

    Args:
        config: A recipe that mergekit's schema accepts.
        options: mergekit's options; `allow_crimes` and `unsafe_truncate_embeddings` permit more.
    """
    models = dict(open_all(set(config.referenced_models())))
    if problems := [problem for model in models.values() for problem in model.problems]:
        return list(dict.fromkeys(problems))
    if problems := list(_architecture_problems(models, options)):
        return problems
    known = [_architecture(model) for model in models.values()]
    free_vocabulary = bool(config.tokenizer or config.tokenizer_source or options.unsafe_truncate_embeddings)
    if not known or any(arch is None or arch != known[0] for arch in known):
        return _shape_problems(_same_names(models) if config.models else [], models, free_vocabulary)
    return _module_problems(config, known[0], models, free_vocabulary)  # type: ignore[arg-type]


def _architecture_problems(models: Mapping[ModelReference, Checkpoint], options: MergeOptions) -> Iterator[str]:
    names = {}
    for model in models.values():
        named = getattr(model.config, "architectures", None) or []
        if len(named) != 1:
            yield (
                f"model {model.path}: `architectures` in config.json must name one architecture, got {named}; "
                f"save the model with `save_pretrained`"
            )
        else:
            names[model.path] = f"{named[0]} ({getattr(model.config, 'model_type', 'no model_type')})"
    known = [_architecture(model) for model in models.values()] if len(names) == len(models) else []
    if None not in known and any(arch != known[0] for arch in known) and not options.allow_crimes:
        each = "; ".join(f"{path} is {name}" for path, name in names.items())
        yield f"models of different architectures cannot be merged: {each} (mergekit tries with `--allow-crimes`)"


def _architecture(model: Checkpoint) -> ModelArchitecture | None:
    try:
        return arch_info_for_config(model.config)  # type: ignore[arg-type]
    except AttributeError:
        return None  # config.json leaves something to transformers' defaults


def _module_problems(
    config: MergeConfiguration,
    arch: ModelArchitecture,
    models: Mapping[ModelReference, Checkpoint],
    free_vocabulary: bool,
) -> list[str]:
    whole = OutputModuleDefinition.model_construct(models=config.models, slices=config.slices)
    problems: list[str] = []
    if config.slices and len(arch.modules) > 1:
        return [f"`slices` needs `modules:` around it for a model of several modules ({', '.join(arch.modules)})"]
    for name, module in (config.modules or dict.fromkeys(arch.modules, whole)).items():
        if name not in arch.modules:
            problems.append(f"unknown module `{name}` for {arch.architectures[0]} (known: {', '.join(arch.modules)})")
            continue
        try:
            layers = {ref: _layers(arch, name, model) for ref, model in models.items()}
        except (RuntimeError, AttributeError):
            continue  # config.json leaves the number of layers to transformers' defaults: mergekit will know
        pieces = list(pieces_of(config, module, f"modules.{name}." if config.modules else "", layers))
        wrong = [problem for piece in pieces for problem in _piece_problems(piece, layers)]
        if not wrong:
            groups = list(Plan(arch, name, models).groups(pieces))
            wrong = _missing_problems(groups, models) or _shape_problems(groups, models, free_vocabulary)
        problems += wrong
    return problems


def _layers(arch: ModelArchitecture, module: str, model: Checkpoint) -> int:
    return arch.modules[module].architecture.num_layers(model.config)  # type: ignore[arg-type]


def _piece_problems(piece: Piece, layers: Mapping[ModelReference, int]) -> Iterator[str]:
    if len({source.layers for source in piece.sources}) > 1:
        each = ", ".join(f"{source.layers} of {source.model}" for source in piece.sources)
        yield f"`{piece.where}` puts different numbers of layers together: {each}; they must be equal"
    for source in piece.sources:
        has, end = layers.get(source.model), source.start + source.layers
        if has is not None and not 0 <= source.start <= end <= has:
            at = f"`{piece.where}`: layer_range [{source.start}, {end}]"
            yield f"{at} does not fit the {has} layers of {source.model}"


def _same_names(models: Mapping[ModelReference, Checkpoint]) -> list[Group]:
    """Return one group for each name that several models have, for architectures that mergekit infers from names."""
    known = {ref: model for ref, model in models.items() if model.tensors is not None}
    names = dict.fromkeys(name for model in known.values() for name in model.tensors or ())
    infos = [WeightInfo(name=name, optional=True, vocabulary_axis=0 if _embeds(name) else None) for name in names]
    return [{ref: info for ref, model in known.items() if info.name in (model.tensors or ())} for info in infos]


def _embeds(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", "wte", "word_embeddings"))


def _missing_problems(groups: Sequence[Group], models: Mapping[ModelReference, Checkpoint]) -> list[str]:
    lacking: dict[ModelReference, list[WeightInfo]] = {}
    for group in groups:
        for ref, info in group.items():
            if not info.optional and find_stored(info, models[ref]) is None:
                lacking.setdefault(ref, []).append(info)
    return [
        _missing_problem(models[ref], list(dict.fromkeys(info.name for info in infos)))
        for ref, infos in lacking.items()
        if not _converted(infos[0], models[ref])
    ]


def _converted(info: WeightInfo, model: Checkpoint) -> bool:
    """Tell whether transformers' tables of older layouts, which mergekit consults too, make the tensor from others."""
    names, kind = set(model.tensors or ()), getattr(model.config, "model_type", None)
    return any(can_convert_checkpoint_keys(kind, names, name) for name in (info.name, *(info.aliases or ())))


def _missing_problem(model: Checkpoint, names: list[str]) -> str:
    embedding = next((name for name in names if _embeds(name)), None)
    if len(names) == 1 and embedding and "lm_head.weight" in (model.tensors or ()):
        return (
            f"model {model.path} stores its tied embedding only as `lm_head.weight`, where mergekit requires "
            f"`{embedding}`; load it with transformers and save it once with `save_pretrained`"
        )
    return f"model {model.path} lacks {_some(names)}, which mergekit requires; {RESAVE}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more tensors" if len(names) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + more


def _shape_problems(
    groups: Sequence[Group], models: Mapping[ModelReference, Checkpoint], free_vocabulary: bool
) -> list[str]:
    found: dict[str, tuple[str, bool]] = {}
    for group in groups:
        shapes: dict[tuple[int, ...], str] = {}
        for ref, info in group.items():
            stored = find_stored(info, models[ref])
            # Buffers of whole numbers are copied from one of the models, not merged.
            if stored is not None and stored.shape is not None and stored.dtype in FLOATS:
                shapes.setdefault(stored.shape, models[ref].path)
        info = next(iter(group.values()))
        rest = {_without(shape, info.vocabulary_axis) for shape in shapes}
        if len(shapes) > 1 and not (free_vocabulary and len(rest) == 1):
            each = ", ".join(f"{list(shape)} in {path}" for shape, path in shapes.items())
            found.setdefault(info.name, (f"`{info.name}` is {each}", len(rest) == 1))
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
