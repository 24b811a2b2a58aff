"""Fine-tuning of one base model in K orders, through TRL's SFTTrainer."""

import gc
import os
import time
from pathlib import Path
from typing import Any

import click
import torch
from jinja2 import TemplateError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, PrinterCallback, set_seed

from ordermerge import provenance, stages
from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.files import fingerprint_path, new_directory
from ordermerge.space import checkpoint_bytes, require_space
from ordermerge.train.base import BaseModel, base_inputs, load_model, load_tokenizer, save_submodel
from ordermerge.train.data import Samples, load_samples
from ordermerge.train.given import check_orders, order_inputs
from ordermerge.train.loggers import EndRun
from ordermerge.train.lora import check_lora, check_tied, lora_config
from ordermerge.train.prepared import Prepared, prepare
from ordermerge.train.progress import Progress
from ordermerge.train.quiet import quiet
from ordermerge.train.record import describe, warnings
from ordermerge.train.settings import TRAINING_SEED, check_sft, make_config
from ordermerge.train.sources import check_data, data_file
from ordermerge.train.trainer import OrderTrainer

MARKER = "order/order.json"
__all__ = ["check_sft", "order_steps", "train_orders"]


def train_orders(experiment: Experiment, run_directory: Path, *, only: int | None = None) -> list[Path]:
    """Fine-tune the base model once for each order; orders that are finished are skipped.

    Args:
        experiment: The experiment.
        run_directory: The sub-models go to its `orders/0` to `orders/K-1`, each whole or absent.
        only: Train this order alone.

    Returns:
        The folders of the sub-models asked for.

    Raises:
        UserError: If the configuration, the data or the base model is wrong, or a finished order had other inputs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by torchrun and `accelerate launch`
        raise UserError(
            "training one order over several processes is not possible yet; start `ordermerge train` without a "
            "launcher, once for each order with `--order` if you have several GPUs"
        )
    if problems := [
        *check_sft(experiment),
        *check_lora(experiment),
        *check_data(experiment),
        *check_orders(experiment),
    ]:
        raise UserError(problems)
    count = experiment.orders.count
    if only is not None and not 0 <= only < count:
        raise UserError(f"order {only} does not exist: `orders.count` is {count}, so orders are 0 to {count - 1}")
    directories = {order: run_directory / "orders" / str(order) for order in (range(count) if only is None else [only])}
    steps = [step for step in order_steps(experiment, run_directory) if step.output in directories.values()]
    todo = stages.unfinished(steps)
    for step in steps:
        if step not in todo:
            _say(f"{step.name}: already trained, kept {step.output}")
    if todo:
        if not experiment.saves_adapters:
            needed = len(todo) * checkpoint_bytes(Path(experiment.model_path()), experiment.model.dtype)
            require_space(run_directory, needed, f"training {len(todo)} sub-models")
        with quiet():
            _train_all(experiment, todo)
    return list(directories.values())


def order_steps(experiment: Experiment, run_directory: Path) -> list[stages.Step]:
    """Return a step for each order.

    Args:
        experiment: The experiment.
        run_directory: Holds `orders/0` to `orders/K-1`.
    """
    files = {name: data_file(experiment, name) for name in ("train", "validation")}
    inputs = {
        "model": base_inputs(experiment),
        "data": {
            **experiment.data.model_dump(),
            "fingerprints": {name: fingerprint_path(path) for name, path in files.items() if path is not None},
        },
        "orders": order_inputs(experiment),
        "sft": experiment.sft,
    }
    if experiment.lora is not None:
        inputs["lora"] = experiment.lora
    return [
        stages.Step(
            "train", f"order_{order}", run_directory / "orders" / str(order), MARKER, {"order": order, **inputs}
        )
        for order in range(experiment.orders.count)
    ]


def _train_all(experiment: Experiment, todo: list[stages.Step]) -> None:
    """Train the orders one after the other; the data is loaded and tokenised once for all."""
    samples, tokenizer = load_samples(experiment), load_tokenizer(experiment)
    prepared: Prepared | None = None
    for position, step in enumerate(todo, start=1):
        order, started = step.inputs["order"], time.perf_counter()
        with new_directory(step.output) as partial:
            base = load_model(experiment)
            trainer = _make_trainer(experiment, order, base, tokenizer, prepared or samples, partial)
            if prepared is None:
                prepared = prepare(experiment, samples, trainer)
                for warning in warnings(samples, prepared, base, tokenizer):
                    _say(f"warning: {warning}")
            _say(f"{step.name}: training on {len(prepared.train)} samples, {prepared.orders.shape[1]} epochs")
            for callback in (Progress(step.name, position, len(todo)), EndRun()):
                trainer.add_callback(callback)
            trained = _train_one(trainer, prepared.orders[order])
            save_submodel(trainer, base, experiment, partial)
            if not any((partial / "logs").iterdir()):
                (partial / "logs").rmdir()
            permutations = {"permutations": prepared.orders[order].clone(), "sample_ids": prepared.sample_ids}
            (partial / "order").mkdir()
            save_file(permutations, partial / "order" / "permutations.safetensors")
            seconds = round(time.perf_counter() - started, 3)
            record = {**describe(experiment, order, samples, prepared), **trained, "seconds": seconds}
            record |= provenance.record(experiment.directory)
            stages.mark_done(partial / MARKER, step.inputs, record)
        _say(f"{step.name}: trained in {seconds:.1f} s, mean loss {trained['train_loss']:.4f} -> {step.output}")
        del base, trainer
        _free_memory()


def _make_trainer(
    experiment: Experiment,
    order: int,
    base: BaseModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Samples | Prepared,
    directory: Path,
) -> OrderTrainer:
    """Return the trainer of an order; it prepares the data if that has not been done."""
    args = make_config(
        experiment,
        directory / "logs",
        disable_tqdm=True,  # `Progress` has a line of its own
        run_name=f"{experiment.name}-{order}",
        dataset_kwargs={"skip_prepare_dataset": isinstance(data, Prepared)},
    )
    if args.fp16 and args.device.type == "cpu":
        raise UserError(
            "`sft.fp16` does nothing on the CPU, where this runs; set `bf16: true` for autocast, or neither"
        )
    try:
        trainer = OrderTrainer(
            base.model,
            args,
            train_dataset=data.train,
            eval_dataset=data.validation if args.do_eval else None,
            processing_class=tokenizer,
            peft_config=lora_config(experiment),
        )
    except TemplateError as error:
        raise UserError(f"`data.messages`: the tokenizer's chat template refuses a chat: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"TRL's SFTTrainer refuses the model, the data, `sft` or `lora`: {error}") from error
    check_tied(trainer.model)
    trainer.remove_callback(PrinterCallback)  # prints each log line to standard output; they go to order.json
    return trainer


def _train_one(trainer: OrderTrainer, permutations: torch.Tensor) -> dict[str, Any]:
    """Train in the given order and return what came of it."""
    trainer.permutations = permutations
    # Again, as only the first order's trainer has prepared the data: from here on all orders draw the same numbers.
    set_seed(TRAINING_SEED)
    output = trainer.train()
    history = trainer.state.log_history
    return {
        "batch_size": trainer.get_total_train_batch_size(trainer.args),
        "steps": output.global_step,
        "samples_consumed": trainer.consumed,
        "padding_repeats": 0,
        "train_loss": output.training_loss,
        "losses": [{"step": entry["step"], "loss": entry["loss"]} for entry in history if "loss" in entry],
        "eval_losses": [
            {"step": entry["step"], "loss": entry["eval_loss"]} for entry in history if "eval_loss" in entry
        ],
        "device": trainer.args.device.type,
        "threads": torch.get_num_threads(),
    }


def _free_memory() -> None:
    """Let go of a finished order's model before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(line: str) -> None:
    click.echo(line, err=True)
