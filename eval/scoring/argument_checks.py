"""Arguments that lm-eval hands on unread, to a backend that meets them hours later: names, dtypes, devices, numbers."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import did_you_mean, quoted
from ordermerge.models import HF_BACKENDS, local_folder

# What `from_pretrained` takes by name, which its signature does not list.
_LOADING = (
    *("adapter_kwargs", "allow_all_kernels", "attn_implementation", "cache_dir", "code_revision", "config"),
    *("device_map", "device_mesh", "distributed_config", "experts_implementation", "force_download"),
    *("generation_config", "ignore_mismatched_sizes", "kernel_config", "key_mapping", "load_in_4bit", "load_in_8bit"),
    *("local_files_only", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_state_dict", "proxies"),
    *("quantization_config", "state_dict", "token", "torch_dtype", "tp_size", "use_kernels", "use_safetensors"),
    *("variant", "weights_only", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
)
_DTYPES = ("dtype", "torch_dtype", "softmax_dtype", "mixed_precision_dtype", "bnb_4bit_compute_dtype")
_GENERATING = ("until", "max_gen_toks", "max_tokens", "max_completion_tokens")


def number_problems(settings: EvaluationSection) -> Iterator[str]:
    """Yield a sentence for each number that lm-eval cannot use.

    Args:
        settings: What is asked of lm-eval.
    """
    if not _is_batch_size(settings.batch_size):
        yield f'batch_size: must be a number of at least 1, or "auto"; got {quoted(settings.batch_size)}'
    if settings.limit is not None and not settings.limit > 0:
        yield f"limit: must be above 0; got {settings.limit:g}; leave it out to score every document"
    if settings.num_fewshot is not None and settings.num_fewshot < 0:
        yield f"num_fewshot: must be at least 0; got {settings.num_fewshot}"


def argument_problems(settings: EvaluationSection, models: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each argument that transformers would refuse; other backends are not looked into.

    Args:
        settings: What is asked of lm-eval.
        models: Name of each model, and its folder or hub id: `model_args` may name fields of their configurations.
    """
    if settings.model not in HF_BACKENDS:
        return
    for name in _DTYPES:
        if isinstance(value := settings.model_args.get(name), str) and value != "auto" and not _is_dtype(value):
            yield f'model_args: `{name}` must be a dtype of torch, such as "bfloat16"; got {quoted(value)}'
    if settings.device is not None and (problem := device_problem(settings.device)):
        yield f"device: {problem}"
    folders = [local_folder(model) for model in models.values()]
    if folders and all(folders) and settings.model_args:
        known = {
            *_backend_arguments(),
            *_LOADING,
            *(field for folder in folders if folder for field in _fields(folder)),
        }
        yield from _unknown("model_args", settings.model_args, known)
    if settings.gen_kwargs:
        yield from _unknown("gen_kwargs", settings.gen_kwargs, {*_generation_fields(), *_GENERATING})


def _unknown(where: str, given: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for name in given:
        if name not in known:
            near = did_you_mean(name, sorted(known))
            near = near if near.startswith(" (did you mean") else ""  # else it lists a hundred
            yield f"{where}: unknown argument {quoted(name)}{near}; leave it out, or mend its name"


def _is_batch_size(value: int | str) -> bool:
    word, _, schedule = str(value).partition(":")
    if word != "auto":
        return str(value).isdecimal() and int(value) >= 1
    try:
        return not schedule or float(schedule) > 0
    except ValueError:
        return False


def _is_dtype(name: str) -> bool:
    import torch

    return isinstance(getattr(torch, name, None), torch.dtype)


def _is_device(name: str) -> bool:
    import torch

    try:
        return name in ("auto", "mps:0") or bool(torch.device(name))
    except RuntimeError:
        return False


def device_problem(name: str) -> str | None:
    """Return why a device cannot be used: lm-eval takes the CPU for a CUDA device that is not there, and says nothing.

    Args:
        name: As torch names devices, or "auto".
    """
    import torch

    if not _is_device(name):
        return f'must be a device of torch, such as "cuda:0" or "cpu"; got {quoted(name)}'
    count = torch.cuda.device_count() if name.startswith("cuda") else 1
    if name == "auto" or (torch.device(name).index or 0) < count:
        return None
    there = f"has {', '.join(f'cuda:{index}' for index in range(count))}" if count else "has no CUDA device"
    return f"{name} is not there: torch {there} on this machine; leave `device` out, or choose another"


def _backend_arguments() -> list[str]:
    from lm_eval.models.huggingface import HFLM

    return list(inspect.signature(HFLM.__init__).parameters)


def _generation_fields() -> list[str]:
    from transformers import GenerationConfig

    return list(GenerationConfig().to_dict())


def _fields(folder: Path) -> list[str]:
    """Return the names of the fields of a model's configuration, those with their default included."""
    from transformers import CONFIG_MAPPING

    try:
        config = from_json((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
        return [*config, *(CONFIG_MAPPING[kind]().to_dict() if kind in CONFIG_MAPPING else ())]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # damage is told of elsewhere
        return []
