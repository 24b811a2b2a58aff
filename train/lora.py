"""The `lora` section: PEFT's LoraConfig fields, less those whose adapters are no change of the base model's weights."""

import warnings
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from ordermerge.config.library_fields import Fields
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, did_you_mean, shortened

# Starting values that leave the base model's weights alone. The others (pissa, olora, loftq, eva, ...) rewrite them,
# or look at data first.
INITS = (True, False, "gaussian", "orthogonal", "mica")

_MODEL = "the `model` section says it"
_INIT = "it is for starting values that rewrite the base model's weights or look at data first"
_DENSE = "a sub-model must be a change of the base model's own weights, and this is more"
OWNED = {
    "base_model_name_or_path": _MODEL,
    "revision": _MODEL,
    "peft_type": "the section is for LoRA",
    "peft_version": "PEFT notes it itself",
    "auto_mapping": "PEFT notes it itself",
}
REFUSED = {
    "inference_mode": "an adapter in inference mode is not trained",
    "loftq_config": _INIT,
    "eva_config": _INIT,
    "corda_config": _INIT,
    "lora_ga_config": _INIT,
    "kasa_config": "it rewrites the base model's weights",
    "alora_invocation_tokens": _DENSE,
    "arrow_config": _DENSE,
    "lora_bias": _DENSE,
    "layer_replication": _DENSE,
    "use_qalora": "the base model is not quantized",
    "qalora_group_size": "the base model is not quantized",
    "megatron_config": "models are Hugging Face's, not Megatron's",
    "megatron_core": "models are Hugging Face's, not Megatron's",
}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
SAVE_AS = ("adapter", "dense")
_SAVE_AS = "What a sub-model is: the `adapter`, or with `dense` a whole model, the adapter added to the base model."
FIELDS = Fields("lora", LoraConfig, "PEFT", OWNED, REFUSED, {"save_as": _SAVE_AS})


def check_lora(experiment: Experiment) -> list[str]:
    """Return all problems of the `lora` section, one sentence each.

    Args:
        experiment: The experiment.
    """
    given = experiment.lora
    if given is None:
        return []
    values, problems = FIELDS.check(given)
    if (save_as := given.get("save_as", "adapter")) not in SAVE_AS:
        problems.append(f"`lora.save_as` must be {' or '.join(SAVE_AS)}; got {save_as!r}")
    if values.get("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        problems.append(f"`lora.task_type` must be CAUSAL_LM, if given; got {given['task_type']!r}")
    if values.get("r", 1) < 1:
        problems.append(f"`lora.r` must be at least 1; got {given['r']!r}")
    if not 0 <= values.get("lora_dropout", 0) < 1:
        problems.append(f"`lora.lora_dropout` must be at least 0 and below 1; got {given['lora_dropout']!r}")
    if (init := values.get("init_lora_weights", True)) not in INITS:
        problems.append(
            f"`lora.init_lora_weights` cannot be {init!r}: it rewrites the base model's weights, or looks at data first"
        )
    return problems or _check_whole(experiment)


def lora_config(experiment: Experiment) -> LoraConfig | None:
    """Return the LoraConfig of every order, or None where all weights are trained.

    Args:
        experiment: An experiment whose `lora` section has been checked.
    """
    if experiment.lora is None:
        return None
    given = {name: FIELDS.convert(name, value) for name, value in experiment.lora.items() if name != "save_as"}
    return LoraConfig(**{**given, "task_type": "CAUSAL_LM", "revision": experiment.model.revision})


def check_tied(model: PreTrainedModel) -> None:
    """Refuse adapters that untie the embeddings of a model whose configuration says that they are tied.

    Such a model would be saved as two matrices and loaded as one.

    Args:
        model: The model with its adapter.

    Raises:
        UserError: If its embeddings were tied and no longer are.
    """
    given, computed = model.get_input_embeddings(), model.get_output_embeddings()
    # Configurations that come with a model's own code may not have the field.
    if not getattr(model.config, "tie_word_embeddings", False) or computed is None:
        return
    if given.weight is not computed.weight:
        raise UserError(
            "`lora` would untie the base model's embeddings, which its config ties; leave the embeddings and the "
            "output layer out of `modules_to_save` and `target_modules`, or set `ensure_weight_tying: true`"
        )


def adapter_problems(experiment: Experiment, model: PreTrainedModel) -> list[str]:
    """Return why the adapters of an experiment do not go with its base model; the model is changed.

    Args:
        experiment: An experiment whose `lora` section has been checked.
        model: The base model; its weights are not looked at.
    """
    config = lora_config(experiment)
    if config is None:
        return []
    names = [name for name, _ in model.named_modules() if name]
    problems = []
    for key in ("target_modules", "modules_to_save"):
        wanted = getattr(config, key) or ()
        for name in sorted(wanted) if not isinstance(wanted, str) else ():
            if not any(module == name or module.endswith(f".{name}") for module in names):
                known = sorted({module.rpartition(".")[2] for module in names} - set("0123456789"))
                problems.append(f"`lora.{key}`: the base model has no module {name!r}{did_you_mean(name, known)}")
    if problems:
        return problems
    config.init_lora_weights = False  # there are no weights to start from here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(model, config)
        check_tied(model)
    except UserError as error:
        return error.problems
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        return [f"`lora`: PEFT refuses the base model: {shortened(' '.join(str(error).split()), 400)}"]
    return []


def make_dense(model: PreTrainedModel, directory: Path) -> None:
    """Turn an adapter into a whole model, in place.

    It is done on the CPU and from the files, as mergekit does it, so that both give the same bits.

    Args:
        model: The base model, freshly loaded.
        directory: Holds the adapter.
    """
    merged = PeftModel.from_pretrained(model, str(directory)).merge_and_unload()
    for name in _ADAPTER_FILES:
        (directory / name).unlink(missing_ok=True)
    merged.save_pretrained(directory)


def _check_whole(experiment: Experiment) -> list[str]:
    """Return what LoraConfig itself objects to."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lora_config(experiment)
    except (ValueError, TypeError, ImportError) as error:
        return [f"`lora`: PEFT's LoraConfig refuses it: {error}"]
    return []
