"""Checks a recipe before anything is read: mergekit ignores what it does not know, so a misspelt key merges in silence.

Everything legal in mergekit is legal here; the schema is mergekit's own, and so are the methods' parameters.
"""

import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from mergekit._data import chat_templates
from mergekit.common import ModelPath, ModelReference
from mergekit.config import (
    ConditionalParameter,
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    evaluate_setting,
)
from mergekit.merge_methods import MergeMethod, ParameterScope, registered_methods
from mergekit.merge_methods import get as get_method
from mergekit.options import MergeOptions
from mergekit.tokenizer.config import ModelTokenEmbedding
from pydantic import BaseModel, ValidationError

from ordermerge.config.library_fields import unknown_keys
from ordermerge.errors import did_you_mean, quoted
from ordermerge.files import file_states, fingerprint, user_path
from ordermerge.merge_methods import FIRST_PASSES
from ordermerge.merge_methods.parameter_selection import NAMES
from ordermerge.merge_methods.parameters import Weight
from ordermerge.merge_methods.recipe_check.layout import CODE, Fit, fit
from ordermerge.merge_methods.recipe_check.staging import staged
from ordermerge.mistakes import LIST, MAPPING, mistakes
from ordermerge.models import local_folder, model_folder

_FITS: dict[str, Fit] = {}  # by `_fit_key`
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_MOST_PADDING = 2**16  # rows of the embeddings; models have multiples of 256 at most
_DTYPE_NAMES = {"bf16": "bfloat16", "bfloat": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16"}
_DTYPE_NAMES |= {"fp32": "float32", "f32": "float32", "float": "float32", "fp64": "float64", "double": "float64"}


class Scope(NamedTuple):
    """One place of a recipe that holds parameters."""

    where: str
    parameters: Mapping[str, Any]
    of_model: bool


class Inputs(NamedTuple):
    """Models that are merged together: where, with which base model, and the parameters that hold for all of them."""

    where: str
    base: ModelReference | None
    entries: Sequence[InputModelDefinition | InputSliceDefinition]
    shared: frozenset[str]


def check_recipe(
    recipe: Mapping[str, Any],
    *,
    models_exist: bool = True,
    options: MergeOptions | None = None,
    by_name: bool | None = False,
    stand_in: str | None = None,
) -> list[str]:
    """Return every problem found in a recipe, one sentence each; none if it is fit to be merged.

    Args:
        recipe: The parsed YAML.
        models_exist: Whether local models must be there already, and fit together; hub ids are not looked up.
        options: mergekit's options, some of which permit more; its defaults, if not given.
        by_name: Whether it is to be merged by tensor name; None if either way will do.
        stand_in: A model that represents those that are not there yet.
    """
    problems = list(unknown_keys(MergeConfiguration, recipe, hint=_hint))
    method = _find_method(recipe)
    if method is None:
        return [*problems, _unknown_method(recipe)]
    try:
        config = MergeConfiguration.model_validate(dict(recipe))
    except (ValidationError, RuntimeError) as error:
        return [*problems, *_config_problems(error, recipe)]
    scopes = list(_scopes(recipe))
    for scope in scopes:
        problems += _parameter_problems(method, scope)
    misspelt = any(problem.startswith("unknown") for problem in problems)  # which may be what is lacking
    problems += [
        *_dtype_problems(config, options),
        *_template_problems(config.chat_template),
        *_padding_problems(config),
    ]
    problems += [*_input_problems(method, config, complete=not misspelt)]
    if not problems and method.spec.name in NAMES:
        problems += _selection_problems(config, scopes)
    if not problems and Weight in [parameter.value_type for parameter in method.spec.parameters]:
        problems += _weight_problems(config, scopes)
    if not problems and needs_first_pass(recipe):
        problems += _whole_model_problems(FIRST_PASSES[method.spec.name].settings, scopes)
    if not problems and models_exist:
        problems += absent_problems(config)
    if not problems and (models_exist or stand_in):
        problems += recipe_fit(config, options, stand_in=stand_in).against(by_name)
    return problems


def recipe_fit(config: MergeConfiguration, options: MergeOptions | None = None, *, stand_in: str | None = None) -> Fit:
    """Return how the models of a recipe can be merged with each other: by mergekit's tables, or by tensor name.

    It is found once for all recipes that differ in nothing but parameters, while no file of the models changes: an
    experiment has many merges of the same models.

    Args:
        config: A recipe that mergekit's schema accepts.
        options: mergekit's options; if not given, models whose own code would have to be run are passed over.
        stand_in: A model that represents those that are not there yet.
    """
    found = options or MergeOptions()
    key = _fit_key(config, found, stand_in)
    if key not in _FITS:
        with staged(config, cache_dir=found.transformers_cache, stand_in=stand_in) as stage:
            _FITS[key] = fit(stage, found)
    fits = _FITS[key]
    untried = options is None and fits.problems and all(problem.endswith(CODE) for problem in fits.problems)
    return Fit(warnings=fits.problems) if untried else fits


def _fit_key(config: MergeConfiguration, options: MergeOptions, stand_in: str | None) -> str:
    """Return what another fit of a recipe's models has another one of: all but parameters, and the models' files."""
    models = {str(part) for ref in config.referenced_models() for part in (ref, ref.model, ref.lora) if part}
    places = (model_folder(model, options.transformers_cache) for model in sorted({*models, *filter(None, [stand_in])}))
    files = (file for place in places if place for file in place.iterdir() if file.is_file())
    return fingerprint([_without_parameters(config), vars(options), stand_in, file_states(files)])


def _without_parameters(node: Any) -> Any:
    if isinstance(node, ModelReference):  # which mergekit cannot write where a path has spaces
        return repr(node)
    if isinstance(node, BaseModel):
        node = dict(node)
    if isinstance(node, Mapping):
        return {key: _without_parameters(item) for key, item in node.items() if key != "parameters"}
    return [_without_parameters(item) for item in node] if isinstance(node, list) else node


def needs_first_pass(recipe: Mapping[str, Any]) -> bool:
    """Tell whether the whole model is to be measured before it is merged, as only `ordermerge merge` and `run` do.

    Args:
        recipe: A recipe whose keys and values are well-formed.
    """
    first = FIRST_PASSES.get(recipe["merge_method"])
    if first is None:
        return False
    given = recipe.get("parameters") or {}
    plain = {
        parameter.name: parameter.validate(given.get(parameter.name, parameter.default))
        for parameter in get_method(recipe["merge_method"]).spec.shared_parameters
        if not isinstance(given.get(parameter.name), list | Mapping)
    }
    return first.needed(plain)


def absent_problems(config: MergeConfiguration) -> list[str]:
    """Return a problem for each model that must be local (by the look of its path) where no checkpoint is.

    Args:
        config: A recipe that mergekit's schema accepts.
    """
    problems = [problem for model in sorted(config.referenced_models(), key=str) for problem in _incomplete(model)]
    problems += [f"tokenizer of {p}" for model in _tokenizers(config) if (p := _no_folder(model.model))]
    return list(dict.fromkeys(problems))


def _dtype_problems(config: MergeConfiguration, options: MergeOptions | None) -> Iterator[str]:
    """Yield the dtypes that mergekit does not know: it would say so in the midst of the merge."""
    given = {"dtype": config.dtype, "out_dtype": config.out_dtype}
    given["--lora-merge-dtype"] = options.lora_merge_dtype if options else None
    for key, name in given.items():
        if name is not None and name.removeprefix("torch.") not in _DTYPES:
            meant = _DTYPE_NAMES.get(name.removeprefix("torch.").lower())
            hint = f" (did you mean {meant!r}?)" if meant else did_you_mean(name, _DTYPES)
            yield f"`{key}`: mergekit has no dtype {name!r}{hint}"


def _template_problems(template: str | None) -> Iterator[str]:
    """Yield what mergekit takes for no chat template: it would say so when everything is merged."""
    shipped = [file.name for file in importlib.resources.files(chat_templates).iterdir()]
    names = sorted(name.removesuffix(".jinja") for name in shipped if name.endswith(".jinja"))
    if not template or template in ("auto", *names) or ("{" in template and len(template) >= 20):
        return
    yield (
        f"`chat_template` must be auto, one of mergekit's templates ({', '.join(names)}) or Jinja of at least 20 "
        f"characters; got {quoted(template)}"
    )


def _padding_problems(config: MergeConfiguration) -> Iterator[str]:
    padding = config.tokenizer and config.tokenizer.pad_to_multiple_of
    if padding and not 0 < padding <= _MOST_PADDING:
        yield f"`tokenizer.pad_to_multiple_of` must be from 1 to {_MOST_PADDING:,}; got {quoted(padding)}"


def _find_method(recipe: Mapping[str, Any]) -> MergeMethod | None:
    return next((m for m in registered_methods() if m.spec.name == recipe.get("merge_method")), None)


def _hint(name: str, known: Sequence[str]) -> str:
    """Return where a key belongs that is a parameter, or else what it may be meant to be."""
    parameters = {parameter.name for method in registered_methods() for parameter in method.spec.parameters}
    if "parameters" in known and name in parameters:
        return f": it belongs under `parameters` (`parameters: {{{name}: ...}}`)"
    return did_you_mean(name, known)


def _unknown_method(recipe: Mapping[str, Any]) -> str:
    if recipe.get("merge_method") is None:
        return "key `merge_method` is missing; write for instance `merge_method: linear`"
    name = recipe["merge_method"]
    return f"unknown `merge_method` {name!r}{did_you_mean(name, [m.spec.name for m in registered_methods()])}"


def _config_problems(error: Exception, recipe: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        alone = "`models` is missing, or stands beside `slices` or `modules`; give one of the three"
        yield alone if "must be present" in str(error) else str(error)
        return
    for mistake in mistakes(error, recipe):
        if mistake.keys[:1] == ("models",) and isinstance(mistake.value, str) and mistake.is_kind(LIST, MAPPING):
            yield (
                f"`{mistake.place}` must be {'a list of models' if mistake.is_kind(LIST) else 'a mapping'}, each a "
                f"line `- model: PATH` below `models:`; got {quoted(mistake.value)}"
            )
        elif mistake.kind == "missing":
            yield f"key `{mistake.place}` is missing"
        else:
            yield mistake.sentence()


def _scopes(node: Any, where: str = "") -> Iterator[Scope]:
    """Yield every place of a recipe that holds parameters."""
    if isinstance(node, Mapping):
        if isinstance(node.get("parameters"), Mapping):
            yield Scope(f"{where}.parameters" if where else "parameters", node["parameters"], "model" in node)
        for key, item in node.items():
            if key != "parameters":
                yield from _scopes(item, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _scopes(item, f"{where}[{index}]")


def _parameter_problems(method: MergeMethod, scope: Scope) -> Iterator[str]:
    known = {parameter.name: parameter for parameter in method.spec.parameters}
    for name, setting in scope.parameters.items():
        place = f"{scope.where}.{name}"
        if name not in known:
            top = ": it belongs at the top level" if name in MergeConfiguration.model_fields else None
            yield f"unknown parameter `{place}` for {method.spec.name}{top or did_you_mean(name, list(known))}"
        elif scope.of_model and known[name].scope is ParameterScope.SHARED:
            yield f"`{place}` is ignored there: `{name}` is shared by all models, move it to the top-level `parameters`"
        else:
            yield from _value_problems(place, setting, known[name].validate)


def _value_problems(place: str, setting: Any, validate: Any) -> Iterator[str]:
    if isinstance(setting, Mapping):
        yield from _value_problems(place, setting.get("value"), validate)
    elif isinstance(setting, list) and any(isinstance(item, Mapping) for item in setting):
        for index, item in enumerate(setting):
            yield from _value_problems(f"{place}[{index}]", item, validate)
    elif setting is not None:
        try:
            for t in (0, 0.5, 1):  # a gradient is validated where it is interpolated
                evaluate_setting("", setting, t, validate=validate)
        except ValidationError as error:
            for mistake in mistakes(error, setting):
                said = mistake.must_be()
                yield f"`{place}` {said}" if said.startswith("must be") else f"`{place}`: {said}"


def _input_problems(method: MergeMethod, config: MergeConfiguration, *, complete: bool) -> Iterator[str]:
    """Yield what is wrong with the number of models, the base model or, if asked, a parameter that is nowhere given."""
    for inputs in _inputs(config):
        ids = [entry.model for entry in inputs.entries]
        try:
            method.validate_inputs(ids, inputs.base, group_name=f"`{inputs.where}`")
        except ValueError as error:
            lacks_base = str(error).startswith("Merge method requires a base")
            needs = f"`{method.spec.name}` needs `base_model`, the model that those of `{inputs.where}` were made from"
            yield f"{needs}; name it, as `base_model: PATH`" if lacks_base else str(error)
        for parameter in method.spec.parameters if complete else ():
            if not parameter.required or parameter.name in inputs.shared:
                continue
            if parameter.scope is ParameterScope.SHARED:
                yield f"{method.spec.name} needs `{parameter.name}`; give it in the top-level `parameters`"
                continue
            exempt = inputs.base if parameter.scope is ParameterScope.NON_BASE else None
            lacking = [e.model for e in inputs.entries if parameter.name not in (e.parameters or {})]
            for model in [model for model in lacking if model != exempt][:1]:
                needs = f"{method.spec.name} needs `{parameter.name}` for every model"
                yield f"{needs}; `{inputs.where}` lacks it for {model}"


def _inputs(config: MergeConfiguration) -> Iterator[Inputs]:
    """Yield each list of models that is merged together; mergekit adds the base model to lists that lack it."""
    outputs = {"": config, **{f"modules.{name}.": module for name, module in (config.modules or {}).items()}}
    for prefix, output in outputs.items():
        shared = frozenset(config.parameters or ()) | frozenset(output.parameters or ())
        if output.models:
            lacks_base = config.base_model and config.base_model not in [entry.model for entry in output.models]
            added = [InputModelDefinition(model=config.base_model)] if lacks_base and config.base_model else []
            yield Inputs(f"{prefix}models", config.base_model, [*output.models, *added], shared)
        for index, piece in enumerate(output.slices or []):
            base = piece.base_model or config.base_model
            yield Inputs(
                f"{prefix}slices[{index}].sources", base, piece.sources, shared | frozenset(piece.parameters or ())
            )


def _selection_problems(config: MergeConfiguration, scopes: list[Scope]) -> Iterator[str]:
    """Yield what the kernel would refuse, for settings that are plain values."""
    settings = {name: value for scope in scopes if not scope.of_model for name, value in scope.parameters.items()}
    default = "full" if config.merge_method == "parameter_selection_resample" else 0
    resample = settings.get("resample", default)
    if resample and any(inputs.base is None for inputs in _inputs(config)):
        yield f"`resample: {resample}` needs `base_model`; name the model that the sub-models were fine-tuned from"
    if resample and settings.get("granularity", "element") in ("row", "tensor"):
        yield "`resample` goes with `granularity: element` only; set `resample: 0` to select whole rows or tensors"


def _weight_problems(config: MergeConfiguration, scopes: list[Scope]) -> Iterator[str]:
    """Yield where no sub-model can be drawn, for weights that are plain values."""
    settings = {name: value for scope in scopes if not scope.of_model for name, value in scope.parameters.items()}
    for where, base, entries, _ in _inputs(config):
        weights = [(e.parameters or {}).get("weight", settings.get("weight", 1)) for e in entries if e.model != base]
        plain = [w for w in weights if not isinstance(w, (list, ConditionalParameter))]
        if len(plain) == len(weights) and not any(float(weight) for weight in plain):
            yield f"`weight` is 0 for every model of `{where}`; give at least one a positive weight"


def _whole_model_problems(settings: Sequence[str], scopes: list[Scope]) -> Iterator[str]:
    for scope in scopes:
        for name in settings:
            if isinstance(scope.parameters.get(name), list | Mapping):
                place = f"{scope.where}.{name}"
                yield f"`{place}` holds for the whole model; give one value instead of filters or a list"


def _incomplete(model: ModelReference) -> Iterator[str]:
    if (model.lora or model.model.revision) and local_folder(
        str(model)
    ):  # whose name holds a + or an @, where mergekit would split it
        return
    for part, file in ((model.model, "config.json"), (model.lora, "adapter_config.json")):
        if part is None:
            continue
        folder = user_path(part.path)
        if folder.is_dir() and not (folder / file).exists():
            adapter = part is model.model and (folder / "adapter_config.json").exists()
            hint = f", only an adapter; write BASE_MODEL+{part.path}" if adapter else ""
            yield f"model {part.path}: the folder holds no {file}{hint}"
        elif problem := _no_folder(part):
            yield problem


def _no_folder(part: ModelPath) -> str | None:
    folder = user_path(part.path)
    if folder.is_dir():
        return None
    if folder.exists() or part.path.startswith(("/", ".", "~")) or part.path.count("/") > 1:
        return f"model {part.path}: no such folder (looked in {Path.cwd()})"
    try:
        validate_repo_id(part.path)
    except HFValidationError:
        return f"model {quoted(part.path)}: no folder (looked in {Path.cwd()}), and no hub id, such as org/model"
    return None


def _tokenizers(config: MergeConfiguration) -> Iterator[ModelReference]:
    """Yield the models that only the tokenizer settings name."""
    settings = config.tokenizer
    sources: list[object] = [config.tokenizer_source, settings.source if settings else None]
    for token in ((settings.tokens if settings else None) or {}).values():
        sources.append(token.source.model if isinstance(token.source, ModelTokenEmbedding) else token.source)
    yield from (s for s in sources if isinstance(s, ModelReference) and s not in config.referenced_models())
