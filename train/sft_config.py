"""The `sft` section: TRL's SFTConfig fields, less those that would change the order or the directory's layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig

from ordermerge.config.library_fields import Fields
from ordermerge.config.schema import Experiment
from ordermerge.errors import did_you_mean

# Drives dropout, data workers and the values of new parameters. The K runs differ in nothing but the order, so it is
# one constant; `orders.seed` names the orders.
TRAINING_SEED = 0
_POSITION = "a position in the order must be one sample"
_ORDER = "the order comes from the `orders` section alone"
_LAYOUT = "`ordermerge` decides where and when a sub-model is written"
_BASE = "sub-models share the base model's tokenizer and configuration; change the base model instead"
_UPLOAD = "sub-models stay local until all are done; upload them afterwards"
_PREPARED = "the data is prepared from the `data` section"
# Refused whatever the value.
OWNED = {
    "output_dir": _LAYOUT,
    "seed": "it stays the same for all orders; `orders.seed` names the orders",
    "data_seed": "neighbouring seeds repeat each other's epochs; `orders.seed` names the orders",
    "train_sampling_strategy": _ORDER,
    "accelerator_config": "it can shuffle, split or even out batches; " + _ORDER,
    "group_by_length": _ORDER,
    "dataset_kwargs": _PREPARED,
    "dataset_text_field": _PREPARED,
    "save_strategy": _LAYOUT,
    "save_steps": _LAYOUT,
    "logging_dir": _LAYOUT,
    "overwrite_output_dir": _LAYOUT,
}
# Refused unless it is the value that SFTConfig has anyway.
REFUSED = {
    "packing": "a position in the order must be one sample, unless `orders.unit` is pack",
    "padding_free": _POSITION,
    "shuffle_dataset": _ORDER,
    "dataloader_in_order": _ORDER,
    "ignore_data_skip": "a resumed run must go on at the sample where it stopped",
    "restore_callback_states_from_checkpoint": _LAYOUT,
    "max_steps": "all orders train for whole epochs; set `num_train_epochs`",
    "auto_find_batch_size": "all orders must use the same batch size; set `per_device_train_batch_size`",
    "save_total_limit": _LAYOUT,
    "save_only_model": _LAYOUT,
    "save_on_each_node": _LAYOUT,
    "enable_jit_checkpoint": _LAYOUT,
    "load_best_model_at_end": "each sub-model is the end of its run, so that all have trained for the same steps",
    "resume_from_checkpoint": _LAYOUT,
    "chat_template_path": _BASE,
    "eos_token": _BASE,
    "pad_token": _BASE,
    "push_to_hub": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_strategy": _UPLOAD,
    "hub_private_repo": _UPLOAD,
    "hub_always_push": _UPLOAD,
    "hub_revision": _UPLOAD,
}
# Neither weights nor order depend on these: a finished order stays whatever they are. Evaluation while training is not
# among them, as each one draws from the generator that dropout uses.
WITHOUT_EFFECT = frozenset(
    {
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataset_num_proc",
        "disable_tqdm",
        "eval_accumulation_steps",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_first_step",
        "logging_nan_inf_filter",
        "logging_steps",
        "logging_strategy",
        "per_device_eval_batch_size",
        "project",
        "report_to",
        "run_name",
        "skip_memory_metrics",
        *REFUSED,  # can have one value only
    }
)
# Arguments of `from_pretrained` that the `model` section gives, and device_map, which would spread one model over
# devices behind the trainer's back.
_MODEL_KEYS = ("dtype", "torch_dtype", "revision", "device_map", "pretrained_model_name_or_path")
PACKING = "bfd"  # the strategy that neither cuts a sample in two nor lets samples see each other
# What the number of optimizer steps depends on, and what the prepared samples depend on.
STEPS = ("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last")
PREPARATION = (
    "max_length",
    "truncation_mode",
    "completion_only_loss",
    "assistant_only_loss",
    "trust_remote_code",
    "packing",
)
# Far above any training's; every epoch of every order is a permutation, made before training begins.
_MOST = {"num_train_epochs": 10_000, "per_device_train_batch_size": 1_000_000, "gradient_accumulation_steps": 1_000_000}
FIELDS = Fields("sft", SFTConfig, "TRL", OWNED, REFUSED)


def check_sft(experiment: Experiment) -> list[str]:
    """Return all problems of the `sft` section, one sentence each.

    Args:
        experiment: The experiment.
    """
    # Packing is refused, unless packs are what moves.
    packed = {"packing"} if experiment.orders.unit == "pack" else set()
    values, problems = FIELDS.check({name: of for name, of in experiment.sft.items() if name not in packed})
    problems += _check_packs(experiment)
    problems += _check_values(experiment, values)
    return problems or _check_whole(experiment)


def make_config(experiment: Experiment, output_dir: Path, **more: Any) -> SFTConfig:
    """Return the SFTConfig of one run.

    TRL's defaults stand, except for what `ordermerge` owns, and `use_cpu` where there is no accelerator: without it
    TRL's default of bfloat16 autocast is refused on a machine that has a CPU only.

    Args:
        experiment: An experiment whose `sft` section has been checked.
        output_dir: Where loggers write.
        more: Further fields, which the experiment's take precedence over.
    """
    given = {name: FIELDS.convert(name, value) for name, value in experiment.sft.items()}
    given.pop("model_init_kwargs", None)  # goes to `from_pretrained`, which is ours to call
    if not given.keys() & {"gradient_checkpointing", "activation_checkpointing"}:
        given["activation_checkpointing"] = True  # TRL's own default, under the name that is not deprecated
    owned = {"output_dir": str(output_dir), "seed": TRAINING_SEED, "data_seed": TRAINING_SEED, "save_strategy": "no"}
    defaults = {"use_cpu": not torch.accelerator.is_available(), "report_to": "none"}
    defaults["logging_nan_inf_filter"] = False  # a loss that is no number is to be seen
    return SFTConfig(**{**defaults, **more, **given, **owned})


def absent_loggers(report_to: str | list[str] | None) -> list[str]:
    """Return a sentence for each logger that is asked for and not installed, or unknown.

    Args:
        report_to: SFTConfig's field.
    """
    names = [report_to] if isinstance(report_to, str) else report_to or []
    known, installed = list(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    problems = []
    for name in names:
        if name not in ("all", "none", *known):
            problems.append(f"`sft.report_to`: unknown logger {name!r}{did_you_mean(name, known)}")
        elif name in known and name not in installed:
            problems.append(f"`sft.report_to`: {name} is not installed; install its package, or leave {name} out")
    return problems


def _check_values(experiment: Experiment, values: Mapping[str, Any]) -> list[str]:
    """Return the problems of single values and of pairs that SFTConfig itself would not see."""
    sft, problems = experiment.sft, []
    for name in _MOST:
        if name in values and values[name] < 1:
            problems.append(f"`sft.{name}` must be at least 1; got {sft[name]!r}")
        elif name in values and values[name] != int(values[name]):
            problems.append(f"`sft.{name}` must be a whole number, as an order is made of epochs; got {sft[name]!r}")
        elif name in values and values[name] > _MOST[name]:
            problems.append(f"`sft.{name}` must be at most {_MOST[name]:,}; got {sft[name]!r}")
    if values.get("max_length") is not None and values["max_length"] < 1:
        problems.append(f"`sft.max_length` must be at least 1, or null for no limit; got {sft['max_length']!r}")
    for key in set(values.get("model_init_kwargs") or {}) & set(_MODEL_KEYS):
        problems.append(f"`sft.model_init_kwargs.{key}` cannot be set: the `model` section says it; remove it")
    if values.get("fp16") and experiment.model.dtype == "float16":
        problems.append("`sft.fp16` needs weights of another dtype; set `model.dtype` to float32, or `fp16: false`")
    if values.get("eval_strategy", "no") not in ("no", False) and not experiment.data.has_validation:
        problems.append(f"`sft.eval_strategy` is {sft['eval_strategy']!r}, but there is no `data.validation`")
    return problems + absent_loggers(values.get("report_to"))


def _check_packs(experiment: Experiment) -> list[str]:
    """Return what is wrong with the packs that an experiment asks for."""
    sft = experiment.sft
    if experiment.orders.unit != "pack":
        return []
    problems = []
    if sft.get("packing") is not True:
        problems.append("`orders.unit: pack` needs `sft.packing: true`")
    if sft.get("packing_strategy", PACKING) != PACKING:
        problems.append(
            f"`sft.packing_strategy` must be {PACKING}: others cut samples, so that parts lie in several packs; got "
            f"{sft['packing_strategy']!r}"
        )
    if "max_length" in sft and sft["max_length"] is None:
        problems.append("`orders.unit: pack` needs `sft.max_length`, the length of a pack")
    if experiment.orders.strategy == "file":
        problems.append("`orders.unit: pack` takes no `strategy: file`: your orders are of samples")
    if sft.get("eval_packing"):
        problems.append("`sft.eval_packing` cannot be set: validation losses are of samples; remove it")
    return problems


def _check_whole(experiment: Experiment) -> list[str]:
    """Return what SFTConfig itself objects to."""
    try:
        make_config(experiment, Path("unused"))
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        return [f"`sft`: TRL's SFTConfig refuses it: {error}"]
    return []
