"""The pass over whole models that some merge methods need before the merge; its results complete the recipe."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mergekit.merge
import yaml
from mergekit.common import ModelReference
from mergekit.config import ConfigYamlDumper, MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge_methods.base import TensorEntry, TensorGroup, TensorMetadata
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

from ordermerge.errors import UserError
from ordermerge.merge_methods import FIRST_PASSES
from ordermerge.merge_methods.tied import draw_name

Tasks = Sequence[ExecuteMergeMethodTask]
Found = Mapping[ModelReference, Mapping[str, float]]


def measure(config: MergeConfiguration, options: MergeOptions) -> Found:
    """Return what a recipe's method must know of the whole model, as parameters of each sub-model.

    The tensors are those that mergekit's own plan gathers, one after the other.

    Args:
        config: The recipe.
        options: mergekit's options.

    Returns:
        Nothing, if the method needs nothing, or the recipe says it all.

    Raises:
        UserError: If a setting of the pass differs between tensors.
    """
    if (first := FIRST_PASSES.get(config.merge_method)) is None:
        return {}
    tasks = _plan(config.model_copy(deep=True), options)
    settings = {name: _one_value(name, tasks) for name in first.settings}
    inputs = [dict(given) for t in tasks for model, given in t.input_parameters.items() if model != t.base_model]
    if not first.needed(settings) or all(given[name] is not None for given in inputs for name in first.results):
        return {}
    return first.measure(lambda: _groups(tasks), settings)  # type: ignore[return-value]


def with_results(config: MergeConfiguration, found: Found) -> MergeConfiguration:
    """Return a recipe with the results of a pass as parameters of its models; what it gives already is kept.

    Args:
        config: The recipe.
        found: The results (see `measure`).
    """
    completed = config.model_copy(deep=True)
    for entry in _entries(completed):
        entry.parameters = {**found.get(entry.model, {}), **(entry.parameters or {})}
    return completed


def completed_text(recipe: Mapping[str, Any], config: MergeConfiguration, found: Found) -> str:
    """Return the text of a recipe that has the results of a pass, for the stock command.

    Args:
        recipe: The parsed YAML.
        config: The same recipe, with its models as they were measured.
        found: The results (see `measure`).
    """
    completed = copy.deepcopy(dict(recipe))
    for entry, node in zip(_entries(config), _entries(completed), strict=True):
        if results := found.get(entry.model):
            node["parameters"] = {**results, **(node.get("parameters") or {})}
    names = ", ".join(f"`{name}`" for name in FIRST_PASSES[config.merge_method].results)
    text = yaml.dump(completed, Dumper=ConfigYamlDumper, sort_keys=False)
    return f"# {names}: measured over the whole model by `ordermerge merge`.\n{text}"


def _plan(config: MergeConfiguration, options: MergeOptions) -> Tasks:
    architecture = mergekit.merge.get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    out = mergekit.merge._model_out_config(config, architecture, trust_remote_code=options.trust_remote_code)
    planned = MergePlanner(config, architecture, options=options, out_model_config=out).plan_to_disk(out_path="")
    return [task.tensor_task for task in planned if isinstance(task, SaveTensor)]  # type: ignore[misc]


def _one_value(name: str, tasks: Tasks) -> Any:
    """Return the value of a setting for all tensors: one, or a mapping from the sub-models."""
    shared = {task.parameters[name] for task in tasks if name in task.parameters}
    of_models: dict[ModelReference, set[Any]] = {}
    for task in tasks:
        for model, inputs in task.input_parameters.items():
            if name in inputs:
                of_models.setdefault(model, set()).add(inputs[name])
    if any(len(values) > 1 for values in (shared, *of_models.values())):
        raise UserError(f"`{name}` holds for the whole model; give one value instead of filters or a list")
    return next(iter(shared)) if shared else {model: next(iter(values)) for model, values in of_models.items()}


def _groups(tasks: Tasks) -> Iterator[TensorGroup]:
    """Yield the tensors that will be merged, those of all models side by side."""
    by_inputs = {task.gather_tensors: task for task in tasks}
    seen: set[str] = set()
    for inputs, tensors in Executor(list(by_inputs)).run(quiet=True):
        task = by_inputs[inputs]  # type: ignore[index]
        entries = [
            TensorEntry(id=model, tensor=tensors[model], is_base=model == task.base_model)
            for model in task.model_order
            if model in tensors and tensors[model].is_floating_point()
        ]
        group = TensorGroup(tuple(entries), TensorMetadata.from_weight_info(task.output_weight))
        name = draw_name(group)  # a checkpoint may store both copies of a tied pair, which is one tensor of the model
        if group.base and name not in seen:
            seen.add(name)
            yield group


def _entries(node: Any) -> Iterator[Any]:
    """Yield the models that are merged, in every list of a recipe, be it parsed YAML or mergekit's schema."""

    def read(part: Any, key: str) -> Any:
        return part.get(key) if isinstance(part, Mapping) else getattr(part, key, None)

    yield from read(node, "models") or []
    for piece in read(node, "slices") or []:
        yield from read(piece, "sources")
    for module in (read(node, "modules") or {}).values():
        yield from _entries(module)
