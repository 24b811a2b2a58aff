"""The trainer of an order, and what follows its training."""

from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PrinterCallback

from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.train.base import BaseModel, save_submodel
from ordermerge.train.checkpoints import KEPT, plan_saves
from ordermerge.train.data import Samples
from ordermerge.train.lora import check_tied, lora_config
from ordermerge.train.prepared import Prepared
from ordermerge.train.processes import say
from ordermerge.train.resume import Training
from ordermerge.train.saving import Saver
from ordermerge.train.settings import make_config
from ordermerge.train.trainer import OrderTrainer
from ordermerge.train.workplace import LOGS, state_directory


def make_trainer(
    experiment: Experiment,
    order: int,
    base: BaseModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Samples | Prepared,
    directory: Path,
) -> OrderTrainer:
    """Return the trainer of an order; it prepares the data if that has not been done.

    Args:
        experiment: The experiment.
        order: The order's number.
        base: The base model, freshly loaded.
        tokenizer: Its tokenizer.
        data: The samples, or what another order's trainer made of them.
        directory: The folder that is filled.

    Raises:
        UserError: If TRL refuses something.
    """
    args = make_config(
        experiment,
        directory / LOGS,
        disable_tqdm=True,  # `Progress` has a line of its own
        run_name=f"{experiment.name}-{order}",
        dataset_kwargs={"skip_prepare_dataset": isinstance(data, Prepared)},
    )
    if args.fp16 and args.device.type == "cpu":
        raise UserError(
            "`sft.fp16` does nothing on the CPU, where this runs; set `bf16: true` for autocast, or neither"
        )
    if args.n_gpu > 1:
        if not isinstance(data, Prepared):
            say(
                f"{args.n_gpu} GPUs are visible, and one process uses one of them; `accelerate launch -m ordermerge "
                "train` trains an order on all of them, `--executor ray` an order on each"
            )
        args._n_gpu = 1  # as Trainer itself does where it must not wrap the model in nn.DataParallel
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
    check_tied(base.model)
    trainer.state_directory = state_directory(directory)
    trainer.remove_callback(PrinterCallback)  # prints each log line to standard output; they go to order.json
    return trainer


def make_saver(
    experiment: Experiment,
    trainer: OrderTrainer,
    base: BaseModel,
    prepared: Prepared,
    training: Training,
    directory: Path,
) -> Saver:
    """Return what follows the training and saves between its steps.

    Args:
        experiment: The experiment.
        trainer: The order's trainer, with its permutations set.
        base: What its model started from.
        prepared: The data.
        training: What is trained.
        directory: The folder that is filled.
    """

    def keep(step: int) -> None:
        save_submodel(trainer, base, experiment, directory / KEPT / f"step-{step}")

    saves = plan_saves(experiment.checkpoints, trainer.count_steps(), prepared.orders.shape[1])
    return Saver(trainer, prepared.sample_ids, training, saves, keep)
