"""What makes weights of the same shapes mean different things: config fields, an adapter's base model; and no numbers.

Fields that are not known to be harmless count, so that those of a new architecture are told of, too.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from pydantic_core import from_json

from ordermerge.errors import quoted
from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint, read_values
from ordermerge.merge_methods.recipe_check.coverage import is_computed
from ordermerge.models import model_folder
from ordermerge.weights import FLOATS, Unreadable, stored_tensors

# How a model is stored, trained, loaded and stopped; sizes show in the shapes.
_HARMLESS = re.compile(
    r"(^|\.)(_.*|dtype|torch_dtype|transformers_version|name_or_path|architectures|use_cache|auto_map|return_dict|"
    r"(bos|eos|pad|unk|sep|cls|mask|decoder_start)_token_id|forced_\w+|suppress_tokens|begin_suppress_tokens|"
    r"output_\w+|initializer_\w+|init_std|\w*dropout\w*|\w+_pdrop|\w*layerdrop|problem_type|gradient_checkpointing|"
    r"pretraining_tp|router_\w*loss\w*|router_jitter_noise|chunk_size_feed_forward|task_specific_params|"
    r"finetuning_task|tokenizer_class|max_position_embeddings|n_positions|n_ctx|max_length|model_max_length|vocab_size|"
    r"hidden_size|intermediate_size|num_hidden_layers|n_layer|quantization_config|label2id|unsloth\w*|use_mambapy|"
    r"transformers\.js_config\S*|attn_implementation)$"
)
# With another one of these, the same numbers are another model.
_STRUCTURE = re.compile(
    r"rope|rotary|(^|[._])heads?($|[._])|head_dim|act(ivation)?(_fn|_function)?$|layer_types|layers_block_type|model_type|"
    r"position_embedding|position_encoding|tie_word|alibi|parallel|per_tok|topk|id2label|scalar|multiplier|softcap|scaling"
)

GLANCE = 256  # values of a tensor


def meaning_differences(
    models: Mapping[ModelReference, Checkpoint], base: ModelReference | None, trust: bool
) -> tuple[list[str], list[str]]:
    """Return how the configs of a recipe's models differ in what changes the meaning of weights.

    Args:
        models: The models.
        base: The base model, if there is one.
        trust: Whether code beside a model may be run.

    Returns:
        A sentence for each pair of sub-models that cannot be mixed; one for each difference that may matter.
    """
    problems, warnings = [], []
    fields = {ref: _fields(ref, model, trust) for ref, model in models.items()}
    subs = [ref for ref in models if ref != base] or list(models)
    first = subs[0]
    for ref in [*subs[1:], *([base] if base in models and base != first else [])]:
        assert ref is not None
        differ = {
            key: (fields[first].get(key), fields[ref].get(key))
            for key in sorted(fields[first].keys() | fields[ref].keys())
            if fields[first].get(key) != fields[ref].get(key) and not _HARMLESS.search(key)
        }
        grave = {key: values for key, values in differ.items() if _STRUCTURE.search(key) and ref != base}
        if grave:
            problems.append(
                f"the weights of {models[first].path} and {models[ref].path} do not mean the same: config.json says "
                f"{_each(grave)}; such models cannot be mixed (`--allow-crimes` makes this a warning)"
            )
        elif differ:
            who = "the base model " if ref == base else ""
            warnings.append(
                f"config.json of {models[first].path} and of {who}{models[ref].path} differ: {_each(differ)}; the "
                f"merged model gets the first one's"
            )
    return problems, warnings


def unfinite_problems(models: Mapping[ModelReference, Checkpoint]) -> Iterator[str]:
    """Yield the models with NaN or infinite values, as far as a few values of each tensor tell.

    Args:
        models: The models.
    """
    for model in models.values():
        bad = {}
        for name, stored in (model.tensors or {}).items():
            if stored.offset is None or stored.dtype not in FLOATS or is_computed(name, stored):
                continue
            found = read_values(stored, GLANCE)
            if not torch.isfinite(found).all():
                bad[name] = "NaN" if found.isnan().any() else "infinite"
        if bad:
            name, kind = next(iter(bad.items()))
            more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
            yield f"model {model.path}: `{name}`{more} holds {kind} values (a training that diverged?); leave it out"


def adapter_warnings(models: Mapping[ModelReference, Checkpoint]) -> Iterator[str]:
    """Yield adapters whose own config names another base model than the recipe adds them to.

    Args:
        models: The models.
    """
    for model in models.values():
        if model.adapter is None:
            continue
        try:
            named = from_json((model.adapter / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            continue
        if not isinstance(named, str) or not named or _is_base(named, model):
            continue
        yield (
            f"adapter {model.adapter} was trained on {quoted(named)}, as its adapter_config.json says "
            f"(base_model_name_or_path), and the recipe adds it to {model.path}: make sure that these are the same"
        )


def _is_base(named: str, model: Checkpoint) -> bool:
    assert model.adapter is not None
    beside = model.adapter / named
    folder = model_folder(named) or (beside if beside.is_dir() else None)
    if folder is None:
        return Path(named).name == model.folder.name or named == model.path.split("@")[0]
    if folder.resolve() == model.folder.resolve():
        return True
    try:
        other, own = stored_tensors(folder), model.tensors or {}
    except Unreadable:
        return False
    if {name: (s.dtype, s.shape) for name, s in other.items()} != {name: (s.dtype, s.shape) for name, s in own.items()}:
        return False
    plain = [name for name, stored in own.items() if stored.dtype in FLOATS and stored.offset is not None]
    return all(torch.equal(read_values(own[name], GLANCE), read_values(other[name], GLANCE)) for name in plain)


def _fields(reference: ModelReference, model: Checkpoint, trust: bool) -> dict[str, Any]:
    """Return the fields of a config.json with transformers' defaults filled in, by their dotted names."""
    try:
        content = json.loads(reference.config(trust_remote_code=trust).to_json_string(use_diff=False))
    except Exception:  # transformers raises many kinds; what is written there can still be compared
        content = model.config or {}
    return dict(_flat(content))


def _flat(node: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _each(differ: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"`{key}` {quoted(one)} and {quoted(other)}" for key, (one, other) in list(differ.items())[:3]]
    return ", ".join(shown) + (f" and {len(differ) - 3} more fields" if len(differ) > 3 else "")
