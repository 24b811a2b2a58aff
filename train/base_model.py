"""The base model: loading it afresh for each order, and keeping its tokenizer and configuration in the sub-models."""

import copy
import hashlib
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import SAFE_WEIGHTS_NAME as SAFE
from transformers.utils import is_liger_kernel_available

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, counted, shortened
from ordermerge.files import fingerprint, fingerprint_path, recall
from ordermerge.models import WEIGHTS, is_offline, model_folder, near_folder
from ordermerge.train.lora import adapter_problems, make_dense
from ordermerge.train.sft_config import TRAINING_SEED, make_config
from ordermerge.weights import FLOATS, Stored, Unreadable, count, stored_tensors

# Of a model's folder, beside weights and configurations: the tokenizer, and the model's own code.
_READ = ("token*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja", "*.py")
_STORED = ("transformers_version", "dtype", "torch_dtype")
BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}


@dataclass(frozen=True)
class BaseModel:
    """A freshly loaded base model, and its configuration before a trainer changed it.

    Attributes:
        model: The model, to be trained.
        config: Its configuration.
        generation_config: Its generation configuration, if it can generate.
    """

    model: PreTrainedModel
    config: PreTrainedConfig
    generation_config: GenerationConfig | None


def base_inputs(experiment: Experiment) -> dict[str, Any]:
    """Return what identifies the base model: of a local folder, by content, what training reads of it.

    The same weights in other files, a configuration that was saved anew and files that training does not read make no
    difference.

    Args:
        experiment: The experiment.
    """
    section = experiment.model
    if not section.is_local:
        return section.model_dump()
    folder = Path(section.path)
    read = {path.name: fingerprint_path(path) for pattern in _READ for path in folder.glob(pattern) if path.is_file()}
    inputs = {"dtype": section.dtype, "weights": _weights_digest(folder), "files": read}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=experiment.sft.get("trust_remote_code", False))
        generation = _generation_config(experiment, config).to_diff_dict()
    except Exception:  # whatever it is, it is not trained: the check before training says why
        return {**inputs, "config": fingerprint_path(folder)}
    return {
        **inputs,
        "config": fingerprint(_lasting(config.to_dict())),
        "generation": fingerprint(_lasting(generation)),
    }


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without what only tells how it was stored."""
    return {key: value for key, value in config.items() if key not in _STORED and not key.startswith("_")}


def _weights_digest(folder: Path) -> str:
    """Return one digest of a model's tensors by name, whatever the files and their order in them."""
    try:
        stored = stored_tensors(folder)
    except Unreadable:
        stored = None
    if stored is None or any(tensor.dtype not in BYTES for tensor in stored.values()):  # pickles, packed numbers
        weights = (path for pattern in WEIGHTS for path in folder.glob(pattern))
        return fingerprint({path.name: fingerprint_path(path) for path in weights})
    files = dict.fromkeys(tensor.file for tensor in stored.values())
    return recall(f"tensors of {folder}", files, lambda: _tensors_digest(stored))


def _tensors_digest(stored: Mapping[str, Stored]) -> str:
    """Return the digest of all tensors, and note those of the files, which merging and scoring ask for."""
    digests: dict[str, list[Any]] = {}
    for file in {tensor.file for tensor in stored.values()}:
        whole = hashlib.sha256()
        held = {name: tensor for name, tensor in stored.items() if tensor.file == file}
        with open(file, "rb") as opened:
            for name, tensor in sorted(held.items(), key=lambda item: item[1].offset or 0):
                whole.update(opened.read((tensor.offset or 0) - opened.tell()))
                digest, left = hashlib.sha256(), count(tensor) * BYTES[tensor.dtype or ""]
                while part := opened.read(min(left, 2**22)):
                    digest.update(part)
                    whole.update(part)
                    left -= len(part)
                digests[name] = [tensor.dtype, tensor.shape, digest.hexdigest()]
            whole.update(opened.read())
        recall(str(file), [file], whole.hexdigest)
    return fingerprint(digests)


def load_model(experiment: Experiment) -> BaseModel:
    """Load the base model; parameters that its checkpoint lacks get the same values at each call.

    Args:
        experiment: The experiment.

    Raises:
        UserError: If it cannot be loaded.
    """
    set_seed(TRAINING_SEED)
    section = experiment.model
    try:
        model = AutoModelForCausalLM.from_pretrained(
            section.path, dtype=section.dtype, revision=section.revision, **_options(experiment)
        )
        model.config.validate()  # as saving it does: a class of its own may lack what transformers asks for
        generation_config = getattr(model, "generation_config", None)
        if generation_config is not None:
            generation_config.validate(strict=True)  # else saving it would fail, when all the training is done
    except Exception as error:  # its own code, an absent package, a damaged file
        raise UserError(_unloadable(experiment, "model", error)) from error
    return BaseModel(model, copy.deepcopy(model.config), copy.deepcopy(generation_config))


def is_within_reach(experiment: Experiment) -> bool:
    """Return whether the hub need not be asked for the base model: it is here, or must be, as the hub is out of reach.

    Args:
        experiment: The experiment.
    """
    return model_folder(experiment.model.reference) is not None or constants.HF_HUB_OFFLINE


def check_base(experiment: Experiment) -> list[str]:
    """Return what keeps the base model from being trained, as far as its configuration tells; no weight is read.

    Args:
        experiment: The experiment, its `sft` and `lora` sections checked.
    """
    if not is_within_reach(experiment):
        return []
    try:
        model = model_outline(experiment)
        load_tokenizer(experiment)
    except UserError as error:
        return error.problems
    with warnings.catch_warnings(action="ignore"):  # said when training begins
        args = make_config(experiment, Path("unused"))
    problems = _shape_problems(experiment, model)
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, model)
    except Exception as error:  # of an absent package, of wrong `optim_args`
        problems.append(f"`sft.optim`: {getattr(args.optim, 'value', args.optim)} cannot be had: {_reason(error)}")
    if args.use_liger_kernel and not is_liger_kernel_available():
        problems.append("`sft.use_liger_kernel`: needs the package liger-kernel, which is not installed; install it")
    checkpointing = args.gradient_checkpointing or args.activation_checkpointing
    if checkpointing and not getattr(model, "supports_gradient_checkpointing", True):
        problems.append(
            f"`model.path`: {type(model).__name__} does not support gradient checkpointing, TRL's default; set "
            "`sft.gradient_checkpointing: false`"
        )
    return problems + adapter_problems(experiment, model)


def _shape_problems(experiment: Experiment, model: PreTrainedModel) -> list[str]:
    """Return why the stored weights do not go with the model's configuration, from their headers."""
    folder = model_folder(experiment.model.reference)
    try:
        stored = (folder and any((folder / f"{SAFE}{end}").is_file() for end in ("", ".index.json"))
                  and stored_tensors(folder)) or {}  # fmt: skip
    except Unreadable as error:
        return [f"`model.path`: {folder}: {error}"]
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return [
        f"`model.path`: {folder}: `{name}` is stored as {list(tensor.shape)}, where config.json makes it "
        f"{list(wanted[name])}; save the model again with `save_pretrained`"
        for name, tensor in stored.items()
        if tensor.shape is not None and name in wanted and tensor.shape != wanted[name] and tensor.dtype in FLOATS
    ][:1]


def model_outline(experiment: Experiment) -> PreTrainedModel:
    """Return the base model without its weights: modules, names and shapes, as its configuration gives them.

    Args:
        experiment: The experiment.

    Raises:
        UserError: If transformers cannot make such a model.
    """
    section, options = experiment.model, _options(experiment)
    trust = options.pop("trust_remote_code")
    try:
        config, options = AutoConfig.from_pretrained(
            section.path, revision=section.revision, trust_remote_code=trust, return_unused_kwargs=True, **options
        )
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)  # else saving the sub-model would fail, when all the training is done
        options = {name: value for name, value in options.items() if name == "attn_implementation"}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, section.dtype), trust_remote_code=trust, **options
            )
        config.validate()
        if model_folder(section.reference) and model.can_generate():
            _generation_config(experiment, config).validate(strict=True)
    except Exception as error:  # its own code, an absent package, a damaged file
        raise UserError(_unloadable(experiment, "model", error)) from error
    return model


def _generation_config(experiment: Experiment, config: PreTrainedConfig) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(experiment.model.path, revision=experiment.model.revision or "main")
    except OSError:  # it has none
        return GenerationConfig.from_model_config(config)


def _options(experiment: Experiment) -> dict[str, Any]:
    trust = {"trust_remote_code": experiment.sft.get("trust_remote_code", False)}
    return trust | (experiment.sft.get("model_init_kwargs") or {})


def load_tokenizer(experiment: Experiment) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer.

    Args:
        experiment: The experiment.

    Raises:
        UserError: If it cannot be loaded, or lacks the end token or the chat template that the data needs.
    """
    path = experiment.model.path
    trust = experiment.sft.get("trust_remote_code", False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=experiment.model.revision, trust_remote_code=trust)
    except Exception as error:  # its own code, an absent package, a damaged file
        raise UserError(_unloadable(experiment, "tokenizer", error)) from error
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {path} has no end-of-sequence token, so no answer could end; "
            "set `eos_token` in its tokenizer_config.json"
        )
    if experiment.data.messages is not None and tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer of {path} has no chat template, which `data.messages` needs; "
            "add a chat_template.jinja beside it, or use `prompt` and `completion`"
        )
    return tokenizer


def save_submodel(trainer: Trainer, base: BaseModel, experiment: Experiment, directory: Path) -> None:
    """Write a plain checkpoint, or an adapter: the trained weights, everything else as in the base model.

    All processes must call it; the main one writes. The trainer can go on training afterwards.

    Args:
        trainer: The trainer whose model is trained.
        base: What it started from.
        experiment: The experiment, for the base model's tokenizer and for what to save.
        directory: The folder to fill.

    Raises:
        UserError: If training has made a weight infinite or not a number.
    """
    _require_finite(cast(torch.nn.Module, trainer.model))
    tokenizer = load_tokenizer(experiment)
    for key in ("is_local", "local_files_only"):  # how it was loaded, which would be saved as if it were its own
        tokenizer.init_kwargs.pop(key, None)
    with _as_given(trainer, base, tokenizer):
        _save_weights(trainer, experiment, directory)
    if not trainer.args.should_save:
        return
    (directory / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that names local paths
    if experiment.lora is None:
        return
    if not experiment.saves_adapters:
        with _random_numbers_kept():
            make_dense(load_model(experiment).model, directory)
    elif base.generation_config is not None:
        base.generation_config.save_pretrained(directory)  # for the merge, which takes it from the first sub-model


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Let a training go on with the random numbers that it would have drawn: loading a model sets the seeds."""
    python, numpy_ = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield
    random.setstate(python)
    numpy.random.set_state(numpy_)


def _require_finite(model: torch.nn.Module) -> None:
    """Refuse weights that are no numbers: the last steps may have made them so, after the last logged loss."""
    trained = ((name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad)
    # Of FSDP's shards, each process looks at its own.
    bad = [name for name, weight in trained if not getattr(weight, "to_local", lambda w=weight: w)().isfinite().all()]
    if bad:
        raise UserError(
            f"training has made {counted(len(bad), 'tensor')} infinite or not a number (the first: {bad[0]}); lower "
            "`sft.learning_rate`, or train in a dtype of wider range (`model.dtype: float32` or bfloat16)"
        )


@contextmanager
def _as_given(trainer: Trainer, base: BaseModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Undo for a while what trainers do: switch the cache off, write pad and end tokens into both configurations."""
    model = base.model
    changed = model.config, model.generation_config, trainer.processing_class
    model.config, trainer.processing_class = base.config, tokenizer
    if base.generation_config is not None:
        model.generation_config = base.generation_config
    try:
        yield
    finally:
        model.config, model.generation_config, trainer.processing_class = changed


def _save_weights(trainer: Trainer, experiment: Experiment, directory: Path) -> None:
    if not trainer.is_fsdp_enabled:
        trainer.save_model(str(directory))
        return
    # Where FSDP keeps shards, `save_model` saves no weights; and FSDP 2 trains bfloat16 weights as float32.
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if experiment.lora is None:
        weights = {name: value.to(getattr(torch, experiment.model.dtype)) for name, value in weights.items()}
    trainer._save(str(directory), weights)


def _unloadable(experiment: Experiment, what: str, error: Exception) -> str:
    path = experiment.model.path
    if not experiment.model.is_local and is_offline() and model_folder(experiment.model.reference) is None:
        near = near_folder(path)
        return (
            f"`model.path`: {path!r}: no such folder (looked in {experiment.directory.resolve()})"
            f"{f'; did you mean {near!r}?' if near else ''}; nor is it in the Hugging Face cache, and the hub "
            "cannot be reached; mend the name, or download it where there is a network: `hf download`"
        )
    where = path if experiment.model.is_local else f"{path!r} (no such folder here, so a hub id)"
    return f"`model.path`: the {what} of {where} cannot be loaded: {_reason(error)}"


def _reason(error: Exception) -> str:
    # transformers goes on with the names of some hundred configurations, and others with the whole of one.
    text = " ".join(str(error).split()).partition(" Model type should be one of")[0]
    return shortened(text, 400) or type(error).__name__
