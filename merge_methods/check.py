"""Checks a recipe before anything is read: mergekit ignores what it does not know, so a misspelt key merges in silence.

Everything legal in mergekit is legal here; the schema is mergekit's own, and so are the methods' parameters.
"""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mergekit.common import ModelReference
from mergekit.config import ConditionalParameter, MergeConfiguration, evaluate_setting
from mergekit.merge_methods import MergeMethod, ParameterScope, registered_methods
from pydantic import BaseModel, ValidationError

from ordermerge.errors import did_you_mean
from ordermerge.merge_methods import METHODS


class Scope(NamedTuple):
    """One place of a recipe that holds parameters."""

    where: str
    parameters: Mapping[str, Any]
    of_model: bool


def check_recipe(recipe: Mapping[str, Any], *, models_exist: bool = True) -> list[str]:
    """Return every problem found in a recipe, one sentence each; none if it is fit to be merged.

    Args:
        recipe: The parsed YAML.
        models_exist: Whether local models must be there already; hub ids are not looked up.
    """
    problems = list(_unknown_keys(MergeConfiguration, recipe))
    method = _find_method(recipe)
    if method is None:
        return [*problems, _unknown_method(recipe)]
    try:
        config = MergeConfiguration.model_validate(dict(recipe))
    except (ValidationError, RuntimeError) as error:
        return [*problems, *_config_problems(error)]
    scopes = list(_scopes(recipe))
    for scope in scopes:
        problems += _parameter_problems(method, scope)
    problems += _input_problems(method, config)
    if not problems and method in METHODS:
        problems += _selection_problems(config, scopes)
    if models_exist:
        problems += [p for model in _models(config) if (p := _missing(model))]
    return problems


def _find_method(recipe: Mapping[str, Any]) -> MergeMethod | None:
    return next((m for m in registered_methods() if m.spec.name == recipe.get("merge_method")), None)


def _unknown_method(recipe: Mapping[str, Any]) -> str:
    if "merge_method" not in recipe:
        return "key `merge_method` is missing"
    name = recipe["merge_method"]
    return f"unknown `merge_method` {name!r}{did_you_mean(name, [m.spec.name for m in registered_methods()])}"


def _config_problems(error: Exception) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield str(error)
        return
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        yield f"`{where}`: {detail['msg']}" if where else detail["msg"]


def _unknown_keys(annotation: Any, value: Any, where: str = "") -> Iterator[str]:
    """Yield a problem for each key, at any depth, that the pydantic types of the schema do not know."""
    kinds = [annotation, *_flatten(annotation)]
    if isinstance(value, Mapping):
        sections = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)}
        if len(sections) == 1:
            fields = sections.pop().model_fields
            for key, item in value.items():
                place = f"{where}.{key}" if where else str(key)
                if key not in fields:
                    yield f"unknown key `{place}`{did_you_mean(str(key), list(fields))}"
                else:
                    yield from _unknown_keys(fields[key].annotation, item, place)
        for kind in kinds:
            if typing.get_origin(kind) is dict:
                for key, item in value.items():
                    yield from _unknown_keys(typing.get_args(kind)[1], item, f"{where}.{key}")
    elif isinstance(value, list):
        items = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is list]
        for index, item in enumerate(value):
            for kind in items:
                yield from _unknown_keys(kind, item, f"{where}[{index}]")


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a union, at any depth of nested unions."""
    if typing.get_origin(annotation) is typing.Union:
        for part in typing.get_args(annotation):
            yield part
            yield from _flatten(part)


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
            yield f"unknown parameter `{place}` for {method.spec.name}{did_you_mean(name, list(known))}"
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
            yield from (f"`{place}`: {detail['msg'].removeprefix('Value error, ')}" for detail in error.errors())


def _input_problems(method: MergeMethod, config: MergeConfiguration) -> Iterator[str]:
    """Yield what is wrong with the number of models, the base model or a parameter that is nowhere given."""
    shared = set(config.parameters or {})
    for where, base, entries in _inputs(config):
        ids = [entry.model for entry in entries]
        if base and base not in ids and "slices" not in where:
            ids.append(base)
        try:
            method.validate_inputs(ids, base, group_name=f"`{where}`")
        except ValueError as error:
            yield str(error)
        for parameter in method.spec.parameters:
            if parameter.required and parameter.scope is not ParameterScope.SHARED and "slices" not in where:
                lacking = [e.model for e in entries if parameter.name not in shared | set(e.parameters or {})]
                for model in [model for model in lacking if model != base][:1]:
                    yield f"{method.spec.name} needs `{parameter.name}` for every model; `{where}` lacks it for {model}"


def _inputs(config: MergeConfiguration) -> Iterator[tuple[str, ModelReference | None, list[Any]]]:
    """Yield each list of models that is merged together, with its place and its base model."""
    if config.models:
        yield "models", config.base_model, config.models
    outputs = {"": config, **{f"modules.{name}.": module for name, module in (config.modules or {}).items()}}
    for prefix, output in outputs.items():
        if prefix and output.models:
            yield f"{prefix}models", config.base_model, output.models
        for index, piece in enumerate(output.slices or []):
            yield f"{prefix}slices[{index}].sources", piece.base_model or config.base_model, piece.sources


def _selection_problems(config: MergeConfiguration, scopes: list[Scope]) -> Iterator[str]:
    """Yield what the kernel would refuse, for settings that are plain values."""
    settings = {name: value for scope in scopes if not scope.of_model for name, value in scope.parameters.items()}
    default = "full" if config.merge_method == "parameter_selection_resample" else 0
    resample = settings.get("resample", default)
    if resample and any(base is None for _, base, _ in _inputs(config)):
        yield f"`resample: {resample}` needs `base_model`; name the model that the sub-models were fine-tuned from"
    if resample and settings.get("granularity", "element") in ("row", "tensor"):
        yield "`resample` goes with `granularity: element` only; set `resample: 0` to select whole rows or tensors"
    for where, base, entries in _inputs(config):
        weights = [(e.parameters or {}).get("weight", settings.get("weight", 1)) for e in entries if e.model != base]
        plain = [w for w in weights if not isinstance(w, (list, ConditionalParameter))]
        if len(plain) == len(weights) and not any(float(weight) for weight in plain):
            yield f"`weight` is 0 for every model of `{where}`; give at least one a positive weight"


def _models(config: MergeConfiguration) -> list[str]:
    references = sorted(config.referenced_models(), key=str)
    return [part.path for model in references for part in (model.model, model.lora) if part]


def _missing(path: str) -> str | None:
    """Return a problem where a model must be local (by the look of its path) and no checkpoint is there."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        whole = (folder / "config.json").exists() or (folder / "adapter_config.json").exists()
        return None if whole else f"model {path}: the folder holds no config.json"
    if folder.exists() or path.startswith(("/", ".", "~")) or path.count("/") > 1:
        return f"model {path}: no such folder (looked in {Path.cwd()})"
    return None
