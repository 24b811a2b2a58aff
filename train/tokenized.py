"""The samples as they are trained on, tokenised and cut, and the orders over them."""

import copy
import dataclasses
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.compute
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from ordermerge.config.schema import Experiment
from ordermerge.console import quiet
from ordermerge.errors import UserError
from ordermerge.files import fingerprint
from ordermerge.ingredients import ingredients_of
from ordermerge.train import distributed
from ordermerge.train.base_model import load_tokenizer, model_outline
from ordermerge.train.checkpointing import plan_saves
from ordermerge.train.order_file import given_orders
from ordermerge.train.orders import STRATEGIES, branch_orders, branch_step, check_distinct, epoch_fingerprints
from ordermerge.train.packing import Packs
from ordermerge.train.samples import SAMPLE_ID, Samples, load_samples
from ordermerge.train.sft_config import FIELDS, PREPARATION, STEPS, check_sft, make_config
from ordermerge.train.trainer import OrderTrainer, steps_over

# The fields that the prepared data or the orders depend on. The others are left out, as some (FSDP, DeepSpeed, loggers)
# would ask for what only training has.
_FIELDS = frozenset({*STEPS, *PREPARATION, "dataset_num_proc"})


# How models name the tables of positions that they have learned.
_POSITIONS = re.compile(r"wpe$|pos(ition)?s?_?(emb|enc)|embed_positions|pos_embed", re.IGNORECASE)


@dataclass(frozen=True)
class Prepared:
    """The samples as TRL prepared them: tokenised, truncated, without those that have nothing to learn.

    Attributes:
        train: The n samples that are trained on, with columns `input_ids`, `labels` and `sample_id`.
        validation: The same of the validation data, where training evaluates on it.
        sample_ids: int64 of shape [n]: the row of the data as loaded of each sample.
        orders: int64 of shape [count, epochs, n], indices into `sample_ids`.
        batch: The samples of one optimizer step of an order.
        steps: The optimizer steps of an order.
        branch: The last optimizer step that all orders share; 0 if they share none.
        dropped: How many samples were left out.
        truncated: How many samples were cut to `max_length` and kept.
        packs: What the packs hold, where packs are what moves: n, `train` and `sample_ids` are then of packs.
    """

    train: Dataset
    validation: Dataset | None
    sample_ids: torch.Tensor
    orders: torch.Tensor
    batch: int
    steps: int
    branch: int
    dropped: int
    truncated: int
    packs: Packs | None = None

    @property
    def samples(self) -> int:
        """The number of samples that are trained on."""
        return len(self.sample_ids if self.packs is None else self.packs.sample_ids)


@dataclass(frozen=True)
class Tokenised:
    """What training trains and evaluates on.

    Attributes:
        train: Columns `input_ids`, `labels` (-100 where there is nothing to learn) and `sample_id`.
        validation: The same of the validation data, None without such.
        fingerprint: Of the training samples' content before tokenising, as `order.json` notes it.
    """

    train: Dataset
    validation: Dataset | None
    fingerprint: str


def prepare(experiment: Experiment, samples: Samples, trainer: OrderTrainer, *, processes: int = 1) -> Prepared:
    """Take the data that the first order's trainer prepared, and lay the orders over it.

    Args:
        experiment: The experiment.
        samples: The data as given to the trainer.
        trainer: A trainer that was given it unprepared; a control's may have other epochs and batches than the orders.
        processes: For a preview: how many processes, each like this one, will train an order.

    Returns:
        What all orders train on.

    Raises:
        UserError: If no sample is left, there are too few for a batch, or the orders share an epoch or do not fit.
    """
    train, args = cast(Dataset, trainer.train_dataset), _arguments_of_orders(experiment, trainer)
    packs = trainer.packs
    dropped = len(samples.train) - (len(train) if packs is None else len(packs.sample_ids))
    if len(train) == 0:
        raise UserError(
            f"no training sample is left: in all {dropped} the prompt alone fills `sft.max_length` "
            f"({args.max_length} tokens); raise it"
        )
    size, sharing = args.per_device_train_batch_size, args.world_size
    if trainer.get_total_train_batch_size(args) != size * args.gradient_accumulation_steps * sharing:
        raise UserError("tensor, context and sequence parallelism are not supported, as processes then share samples")
    batch = processes * trainer.get_total_train_batch_size(args)
    if len(train) < batch:
        raise UserError(
            f"{len(train)} training {experiment.orders.unit}s do not fill one batch of {batch} "
            "(`sft.per_device_train_batch_size` x `sft.gradient_accumulation_steps` x processes), so all orders would "
            "train alike; use a smaller batch or more samples"
        )
    if trainer.eval_dataset is not None and len(cast(Dataset, trainer.eval_dataset)) == 0:
        raise UserError(
            "no validation sample is left: in all the prompt alone fills `sft.max_length`; raise it, or leave "
            "`data.validation` out"
        )
    ids = torch.tensor(train[SAMPLE_ID][:], dtype=torch.int64)
    epochs, steps = int(args.num_train_epochs), steps_over(args, len(ids), processes)
    orders = _lay_orders(experiment, samples, ids, epochs, batch, steps)
    kept = ids if packs is None else packs.sample_ids
    truncated = len(trainer.truncated_ids.intersection(kept.tolist()))
    branch = branch_step(experiment.orders.branch_at, epochs * steps)
    _check_merges(experiment, epochs, steps)
    return Prepared(train, trainer.eval_dataset, ids, orders, batch, epochs * steps, branch, dropped, truncated, packs)


def permutations_of(experiment: Experiment, prepared: Prepared, order: int, epochs: int) -> torch.Tensor:
    """Return the permutations of an order, cut to a number of epochs or gone on with as its strategy would.

    Args:
        experiment: The experiment.
        prepared: Its samples and orders.
        order: The order.
        epochs: How many epochs; those that the user's own orders lack are drawn as `random` does.

    Returns:
        int64 of shape [epochs, n], indices into `sample_ids`.
    """
    section, own = experiment.orders, prepared.orders[order]
    if epochs <= len(own):
        return own[:epochs]
    strategy = STRATEGIES["random" if section.strategy == "file" else section.strategy]
    whole = strategy(own.shape[1], epochs, section.count, section.seed, prepared.batch)[order]
    return torch.cat([own, whole[len(own) :]])


def fit_problems(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prepared: Prepared) -> list[str]:
    """Return why a model cannot take the samples: tokens without an embedding, positions that it has not learned.

    Args:
        model: The base model; its weights are not looked at.
        tokenizer: Its tokenizer.
        prepared: The samples.
    """
    problems = []
    embedding = cast(Any, model.get_input_embeddings())  # within a wrapper, where an adapter trains it
    embedding = getattr(embedding, "base_layer", getattr(embedding, "original_module", embedding))
    rows, limit = embedding.num_embeddings, _positions(model)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if padding >= rows:
        problems.append(_beyond(tokenizer, padding, rows, "what pads batches"))
    for data in (prepared.train, prepared.validation):
        if data is None or not len(data):
            continue
        column = data.with_format("arrow")[:]["input_ids"]
        largest = [pyarrow.compute.max(part.values).as_py() for part in column.chunks if len(part.values)]
        if max(largest, default=0) >= rows:
            sample, token = next(
                (row[SAMPLE_ID], max(row["input_ids"])) for row in data if max(row["input_ids"]) >= rows
            )
            unit = "pack" if "seq_lengths" in data.column_names else "record"
            problems.append(_beyond(tokenizer, token, rows, f"{unit} {sample}"))
        if "seq_lengths" in data.column_names:  # positions begin again with each sample of a pack
            longest = max(map(max, data["seq_lengths"]))
        else:
            longest = pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py()
        if limit is not None and longest > limit:
            problems.append(
                f"the longest sample has {longest} tokens, and the base model has learned {limit} positions; set "
                f"`sft.max_length: {limit}`"
            )
    return list(dict.fromkeys(problems))


def check_samples(experiment: Experiment) -> list[str]:
    """Return what training would stumble over in the data: it is prepared as training does it.

    Args:
        experiment: The experiment, its sections and base model checked.
    """
    try:
        samples, tokenizer = load_samples(experiment), load_tokenizer(experiment)
        if experiment.sft.get("eval_strategy", "no") in ("no", False):
            samples = dataclasses.replace(samples, validation=None)
        with quiet(), tempfile.TemporaryDirectory() as logs:
            trainer = data_trainer(experiment, samples, tokenizer, Path(logs))
            prepared = prepare(experiment, samples, trainer)
        return fit_problems(model_outline(experiment), tokenizer, prepared)
    except UserError as error:
        return error.problems


def _positions(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has a table for, None where positions are computed."""
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and _POSITIONS.search(name)
    ]
    tables += [table.shape[0] for name, table in model.named_buffers() if name.endswith("embed_positions")]
    known = getattr(model.config, "max_position_embeddings", None)  # some tables have rows beside those
    return min([*tables, *([known] if known else [])]) if tables else None


def _beyond(tokenizer: PreTrainedTokenizerBase, token: int, rows: int, where: str) -> str:
    return (
        f"{where} has token {tokenizer.convert_ids_to_tokens(token)!r} (id {token}), and the base model's embedding "
        f"has {rows} rows; enlarge it (`model.resize_token_embeddings({len(tokenizer)})`, then `save_pretrained`), or "
        "give the tokenizer that the model was made with"
    )


def require_agreement(samples: Samples, prepared: Prepared) -> None:
    """Refuse to train where processes have different data, as from folders that differ between machines.

    Args:
        samples: The data as this process has loaded it.
        prepared: The data as it would train on it.

    Raises:
        UserError: On all processes, if they differ.
    """
    ids, orders = prepared.sample_ids.tolist(), [epoch_fingerprints(order) for order in prepared.orders]
    if len(set(distributed.gather(fingerprint([samples.fingerprint, ids, orders])))) > 1:
        raise UserError(
            "the processes have not loaded the same samples in the same orders; give all machines the same data, "
            "tokenizer and library versions"
        )


def tokenise(experiment: Experiment) -> Tokenised:
    """Prepare an experiment's data as training does; of the base model, the tokenizer alone is loaded.

    Args:
        experiment: The experiment.

    Returns:
        The samples that are left; TRL leaves out those that have nothing to learn within `max_length`.

    Raises:
        UserError: If the `sft` section, the data or the tokenizer is wrong.
    """
    if problems := check_sft(experiment):
        raise UserError(problems)
    samples, tokenizer = load_samples(experiment), load_tokenizer(experiment)
    unpacked = {name: value for name, value in experiment.sft.items() if name != "packing"}
    experiment = experiment.model_copy(update={"sft": unpacked})
    with quiet(), tempfile.TemporaryDirectory() as logs:
        trainer = data_trainer(experiment, samples, tokenizer, Path(logs))
        return Tokenised(cast(Dataset, trainer.train_dataset), trainer.eval_dataset, samples.fingerprint)


def data_trainer(
    experiment: Experiment, samples: Samples, tokenizer: PreTrainedTokenizerBase, logs: Path
) -> OrderTrainer:
    """Return a trainer that has prepared the data, and could train nothing but a toy.

    Args:
        experiment: The experiment, its `sft` section checked.
        samples: Its data.
        tokenizer: Its base model's.
        logs: Where the trainer may write.

    Raises:
        UserError: If TRL refuses the data or the settings.
    """
    sft = {name: value for name, value in experiment.sft.items() if name in _FIELDS} | {"use_cpu": True, "bf16": False}
    args = make_config(experiment.model_copy(update={"sft": sft}), logs, disable_tqdm=True)
    # SFTTrainer prepares data by the tokenizer and the settings; its model has no part in it, so any will do.
    tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    try:
        return OrderTrainer(
            LlamaForCausalLM(tiny),
            args,
            train_dataset=samples.train,
            eval_dataset=samples.validation,
            processing_class=tokenizer,
        )
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        raise UserError(f"TRL's SFTTrainer refuses the data or the `sft` section: {error}") from error


def preview_orders(experiment: Experiment, *, processes: int = 1) -> Prepared:
    """Prepare the data as training does, and lay the orders over it; of the base model, the tokenizer alone is loaded.

    Args:
        experiment: The experiment, its sections checked.
        processes: How many processes will train one order.

    Returns:
        What all orders will train on.

    Raises:
        UserError: If the data, the tokenizer or the orders are wrong.
    """
    samples, tokenizer = load_samples(experiment), load_tokenizer(experiment)
    with quiet(), tempfile.TemporaryDirectory() as logs:
        trainer = data_trainer(experiment, dataclasses.replace(samples, validation=None), tokenizer, Path(logs))
        return prepare(experiment, samples, trainer, processes=processes)


def _check_merges(experiment: Experiment, epochs: int, steps: int) -> None:
    """Refuse merges of models that an order will not keep; `steps` are the optimizer steps of an epoch."""
    kept = [*sorted(plan_saves(experiment.checkpoints, epochs * steps, epochs).kept), epochs * steps]
    for name, merge in experiment.merges.items():
        chosen = ingredients_of(experiment, name)
        needed = chosen.steps(kept)
        if not chosen.along or "validation_loss" not in (merge.get("weights") or ()):
            continue
        if missing := [step for step in needed if step % _evaluated_every(experiment, epochs, steps)]:
            raise UserError(
                f"merges.{name}.weights: needs the validation losses after steps {_listed(needed)}, and there will be "
                f"none after {_listed(missing)}; set `sft.eval_strategy: steps`, and `eval_steps` so that it divides "
                "them"
            )


def _evaluated_every(experiment: Experiment, epochs: int, steps: int) -> int:
    """Return after how many optimizer steps each evaluation comes, as transformers has it."""
    if str(experiment.sft.get("eval_strategy")) == "epoch":
        return steps
    given = (experiment.sft.get(name) for name in ("eval_steps", "logging_steps"))
    every = FIELDS.convert("logging_steps", next(filter(None, given), SFTConfig.logging_steps))
    return int(every) if every >= 1 else math.ceil(every * epochs * steps)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))


def _arguments_of_orders(experiment: Experiment, trainer: OrderTrainer) -> SFTConfig:
    """Return a trainer's arguments with the epochs and batches that all orders have."""
    args = copy.copy(cast(SFTConfig, trainer.args))
    for name in STEPS:
        setattr(args, name, FIELDS.convert(name, experiment.sft.get(name, getattr(SFTConfig, name))))
    return args


def _lay_orders(
    experiment: Experiment, samples: Samples, ids: torch.Tensor, epochs: int, batch: int, steps: int
) -> torch.Tensor:
    """Return the orders; `steps` are the optimizer steps of an epoch."""
    section = experiment.orders
    if section.strategy == "file":
        held_out = samples.validation if isinstance(experiment.data.validation, float) else None
        orders = given_orders(experiment, ids, len(samples.train) + (len(held_out) if held_out is not None else 0))
    else:
        orders = STRATEGIES[section.strategy](len(ids), epochs, section.count, section.seed, batch)
    if branch := branch_step(section.branch_at, epochs * steps):
        epoch, step = divmod(branch, steps)
        orders = branch_orders(orders, epoch, step * batch, section.strategy)
    check_distinct(orders, section.strategy, batch, may_begin_alike=bool(branch) or section.strategy == "file")
    return orders
