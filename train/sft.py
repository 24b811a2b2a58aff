"""Trains one base model in K orders, through TRL's SFTTrainer: the file to read first."""

import functools
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, set_seed

from ordermerge import stages
from ordermerge.config.schema import LONGER, Experiment
from ordermerge.config.trainings import (
    Training,
    branched_price,
    control_runs,
    described,
    epochs_of,
    shared_part,
    sub_models,
)
from ordermerge.console import quiet
from ordermerge.errors import UserError, counted
from ordermerge.files import fingerprint_path
from ordermerge.run_directory import CHECKPOINTS, ORDER_RECORD, TRUNK, control_folder, order_folder, order_name
from ordermerge.train import distributed
from ordermerge.train.base_model import BaseModel, base_inputs, load_model, load_tokenizer, save_submodel
from ordermerge.train.callbacks import EndRun, Progress, Saver
from ordermerge.train.checkpointing import (
    INPUT_KEYS,
    LOGS,
    ResumePoint,
    TrainingIdentity,
    disk_needed,
    note_kept,
    plan_saves,
    prepare_resume_point,
    require_disk,
    state_directory,
    workplace,
)
from ordermerge.train.distributed import say
from ordermerge.train.lora import check_lora, check_tied, lora_config
from ordermerge.train.order_file import check_orders, order_inputs
from ordermerge.train.order_record import describe, outcome, outcome_lines, warnings, write_record
from ordermerge.train.packing import require_apart
from ordermerge.train.samples import Samples, check_data, data_file, load_samples
from ordermerge.train.sft_config import TRAINING_SEED, WITHOUT_EFFECT, check_sft, make_config
from ordermerge.train.steps import PRICE_OF, TrainStep, experiment_of
from ordermerge.train.tokenized import Prepared, fit_problems, permutations_of, prepare, require_agreement
from ordermerge.train.trainer import OrderTrainer
from ordermerge.train.trunk import TrunkStep, branch_point, keep_state, remove_used_states, restore_state
from ordermerge.train.variants import check_variants


def train_orders(experiment: Experiment, run_directory: Path, *, only: int | str | None = None) -> list[Path]:
    """Fine-tune the base model once for each order and control; those that are finished are skipped.

    Args:
        experiment: The experiment.
        run_directory: The sub-models go to its `orders/0` to `orders/K-1`, each whole or absent.
        only: Train this order, or this run of a control, alone.

    Returns:
        The folders of the models asked for.

    Raises:
        UserError: If the configuration, the data or the base model is wrong, or a finished order had other inputs.
    """
    if check_sft(experiment):  # on all processes: making the trainers' configuration brings them together
        raise UserError(check_training(experiment))
    steps = distributed.on_main(lambda: choose_orders(experiment, run_directory, only))
    return [
        folder
        for step, folder in zip(steps, train_steps(experiment, steps), strict=True)
        if not isinstance(step, TrunkStep)
    ]


def train_steps(experiment: Experiment, steps: Sequence[TrainStep]) -> list[Path]:
    """Fine-tune the base model once for each step; those that are finished are skipped.

    Args:
        experiment: The experiment, without problems.
        steps: Of `order_steps`.

    Returns:
        The folders of the sub-models.

    Raises:
        UserError: If the data or the base model is wrong, or a finished order had other inputs.
    """
    todo = distributed.on_main(lambda: orders_to_train(steps))
    if todo:
        with quiet():
            _train_all(experiment, todo)
    remove_used_states(steps)
    return [step.output for step in steps]


def check_training(experiment: Experiment) -> list[str]:
    """Return all problems of what training uses of an experiment, without reading the data.

    Args:
        experiment: The experiment.
    """
    problems = [*check_sft(experiment), *check_lora(experiment), *check_data(experiment), *check_orders(experiment)]
    return [*problems, *check_variants(experiment)]


def choose_orders(experiment: Experiment, run_directory: Path, only: int | str | None) -> list[TrainStep]:
    """Return the steps of the orders and controls asked for, after that of the trunk if they need one.

    Args:
        experiment: The experiment.
        run_directory: Holds `orders/0` to `orders/K-1`.
        only: The one order or run of a control asked for, by the name of its folder, or None for all.

    Raises:
        UserError: If the configuration is wrong, or there is no such order.
    """
    if problems := check_training(experiment):
        raise UserError(problems)
    steps = order_steps(experiment, run_directory)
    chosen = [step for step in steps if only is None or step.training.folder == str(only)]
    if not chosen:
        count, controls = experiment.orders.count, [step.training.folder for step in steps if step.training.control]
        times = ", times the values of `vary`" if experiment.vary else ""
        others = f"; controls are {', '.join(controls)}" if controls else ""
        raise UserError(
            f"`--order {only}`: order {only} does not exist: `orders.count` is {count}{times}, so orders are 0 to "
            f"{experiment.count - 1}{others}; name one of these"
        )
    return [*cast(tuple[TrainStep, ...], chosen[0].needs), *chosen]


def orders_to_train(steps: Sequence[TrainStep]) -> list[TrainStep]:
    """Return the orders that are still to be trained, and say which are kept.

    Args:
        steps: Of `order_steps`.

    Raises:
        UserError: If a finished order had other inputs.
    """
    todo = cast(list[TrainStep], stages.unfinished(steps))
    for step in steps:
        if step not in todo:
            say(f"{step.name}: already trained, kept {step.output}")
    return todo


def order_steps(experiment: Experiment, run_directory: Path) -> list[TrainStep]:
    """Return a step for each order, which needs that of the trunk if there is one, and for each run of a control.

    `sft` fields that cannot change the weights are not among its inputs.

    Args:
        experiment: The experiment.
        run_directory: Holds `orders/0` to `orders/K-1`.
    """
    common = _common_inputs(experiment)
    models, trunks = sub_models(experiment), tuple[TrunkStep, ...]()
    if experiment.orders.branch_at:
        folders = tuple(order_folder(run_directory, order) for order in range(len(models)))
        trunk, place = Training(TRUNK, 0), run_directory / "orders" / TRUNK
        known: dict[str, Any] = {"experiment": experiment, "training": trunk, "tails": folders, "keys": INPUT_KEYS}
        trunks = (TrunkStep("train", TRUNK, place, ORDER_RECORD, _inputs(experiment, trunk, common), **known),)
    named = [(order_name(k), order_folder(run_directory, k), model, trunks) for k, model in enumerate(models)]
    named += [(run.folder, control_folder(run_directory, run.folder), run, ()) for run in control_runs(experiment)]
    steps = []
    for name, folder, training, needs in named:
        own = experiment_of(experiment, training)
        inputs = {"order": training.order, **_inputs(own, training, common)}
        known = {"experiment": own, "training": training, "keys": INPUT_KEYS}
        steps.append(TrainStep("train", name, folder, ORDER_RECORD, inputs, needs, **known))
    return steps


def _common_inputs(experiment: Experiment) -> dict[str, Any]:
    """Return what all trainings of an experiment are made from."""
    files = {name: path for name in ("train", "validation") if (path := data_file(experiment, name))}
    return {
        "model": base_inputs(experiment),
        "data": {
            **experiment.data.model_dump(exclude=set(files)),  # by content: a moved file is the same data
            "fingerprints": {name: fingerprint_path(path) for name, path in files.items()},
        },
        "orders": order_inputs(experiment),
    }


def _inputs(experiment: Experiment, training: Training, common: dict[str, Any]) -> dict[str, Any]:
    """Return what a training is made from: what is common, and what its own experiment says."""
    inputs = {**common, "sft": {name: value for name, value in experiment.sft.items() if name not in WITHOUT_EFFECT}}
    if training.control == LONGER:
        inputs[PRICE_OF] = experiment.count
    if experiment.lora is not None:
        inputs["lora"] = experiment.lora
    if experiment.checkpoints.every is not None:
        inputs["checkpoints"] = experiment.checkpoints.every
    return inputs


def make_trainer(
    experiment: Experiment,
    name: str,
    base: BaseModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Samples | Prepared,
    directory: Path,
) -> OrderTrainer:
    """Return the trainer of an order; it prepares the data if that has not been done.

    Args:
        experiment: The experiment.
        name: The order's name.
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
        run_name=f"{experiment.name}-{name.removeprefix('order_')}",
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
    except UserError:
        raise
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"TRL's SFTTrainer refuses the model, the data, `sft` or `lora`: {error}") from error
    check_tied(base.model)
    trainer.state_directory = state_directory(directory)
    trainer.remove_callback(PrinterCallback)  # prints each log line to standard output; they go to order.json
    return trainer


def make_saver(
    step: TrainStep,
    trainer: OrderTrainer,
    base: BaseModel,
    prepared: Prepared,
    training: TrainingIdentity,
    directory: Path,
    begin: Path | None = None,
) -> Saver:
    """Return what follows the training and saves between its steps.

    Args:
        step: What is trained.
        trainer: Its trainer, with its permutations set.
        base: What its model started from.
        prepared: The data.
        training: What is trained.
        directory: The folder that is filled.
        begin: The training checkpoint that it goes on from, if it does.
    """

    def keep(number: int) -> None:
        save_submodel(trainer, base, step.experiment, directory / CHECKPOINTS / f"step-{number}")
        if distributed.rank() == 0:
            note_kept(directory, number)

    part = {}
    if isinstance(step, TrunkStep):
        part = {"end": prepared.branch}
    elif step.needs:
        part = {"begin": prepared.branch}
    saves = plan_saves(step.experiment.checkpoints, trainer.count_steps(), len(trainer.permutations), **part)
    return Saver(step.name, trainer, prepared.sample_ids, training, saves, keep, begin=begin, end=part.get("end"))


def _train_all(experiment: Experiment, todo: list[TrainStep]) -> None:
    """Train the orders one after the other; the data is loaded and tokenised once for all."""
    samples, tokenizer, threads = load_samples(experiment), load_tokenizer(experiment), torch.get_num_threads()
    prepared: Prepared | None = None
    for position, step in enumerate(todo, start=1):
        is_trunk = isinstance(step, TrunkStep)
        with workplace(step) as directory:
            if directory is None:
                say(f"{step.name}: trained by another process meanwhile, kept {step.output}")
                continue
            training = TrainingIdentity(step.inputs, distributed.count(), threads)
            start = distributed.on_main(functools.partial(_find_start, step, directory, training))
            torch.set_num_threads(start.threads)
            base = load_model(experiment)
            trainer = make_trainer(step.experiment, step.name, base, tokenizer, prepared or samples, directory)
            if first := prepared is None:
                prepared = prepare(experiment, samples, trainer)
                require_agreement(samples, prepared)
                if problems := fit_problems(base.model, tokenizer, prepared):
                    raise UserError(problems)
                if prepared.packs:
                    require_apart(trainer.model)
                for warning in warnings(samples, prepared, base, tokenizer):
                    say(f"warning: {warning}")
            epochs = epochs_of(experiment, step.training, shared_part(experiment, prepared.branch, prepared.steps))
            trainer.permutations = permutations_of(experiment, prepared, step.training.order, epochs)
            trainer.args.num_train_epochs = epochs  # of `longer` they are not known before
            saver = make_saver(step, trainer, base, prepared, training, directory, start.checkpoint)
            if first:
                _state_costs(experiment, base, prepared, todo, directory)
            own = f" ({described(step.training)})" if step.training.fields or step.training.control else ""
            packed = f" in {counted(len(prepared.train), 'pack')}" if prepared.packs else ""
            sizes = f"{counted(prepared.samples, 'sample')}{packed}, {counted(epochs, 'epoch')}"
            for line in (*start.notes, f"training on {sizes}{own}"):
                say(f"{step.name}: {line}")
            for callback in (saver, Progress(step.name, position, len(todo)), EndRun()):
                trainer.add_callback(callback)
            # Again, as only the first order's trainer has prepared the data: from here on all draw the same numbers.
            set_seed(TRAINING_SEED)
            if not is_trunk or start.step < prepared.branch:
                trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
            else:  # interrupted after its last step
                saver.take_up_end()
            if is_trunk:
                distributed.on_main(functools.partial(keep_state, directory, prepared.branch))
            else:
                save_submodel(trainer, base, experiment, directory)
            record = describe(experiment, step, samples, prepared, trainer.permutations)
            record |= outcome(trainer, saver, start)
            record["samples_consumed"] = round(saver.consumed * prepared.samples / len(prepared.train))
            if distributed.rank() == 0:
                write_record(experiment, step, trainer, prepared, record, directory)
        for line in outcome_lines(record, step.output):
            say(f"{step.name}: {line}")
        del base, trainer, saver
        _free_memory()
    torch.set_num_threads(threads)


def _find_start(step: stages.Step, directory: Path, training: TrainingIdentity) -> ResumePoint:
    """Return where a step goes on: where it was interrupted, else from its trunk, else from the base model."""
    if isinstance(step, TrunkStep):
        restore_state(directory)
    start = prepare_resume_point(directory, training)
    if start.checkpoint is None and step.needs:
        return branch_point(step.needs[0].output, training)
    return start


def _state_costs(
    experiment: Experiment, base: BaseModel, prepared: Prepared, todo: Sequence[TrainStep], directory: Path
) -> None:
    """Say what a training takes, and refuse it where there is no room."""
    steps, (count, epochs, _) = prepared.steps, prepared.orders.shape
    controls = sum(step.training.control is not None for step in todo)
    orders = sum(not isinstance(step, TrunkStep) for step in todo) - controls
    saves = plan_saves(experiment.checkpoints, steps, epochs)
    needed = disk_needed(experiment, base.model, saves, orders, controls=controls, branched=bool(prepared.branch))
    distributed.on_main(functools.partial(require_disk, needed, saves, directory, orders, controls))
    if prepared.branch:
        cost = branched_price(count, prepared.branch / steps)
        say(f"all orders share the first {prepared.branch} of {steps} steps: {count} orders cost {cost:.3g} trainings")


def _free_memory() -> None:
    """Let go of a finished order's model before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
