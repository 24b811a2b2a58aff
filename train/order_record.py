"""The record of an order, order.json and permutations.safetensors, and what is said of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from ordermerge import provenance
from ordermerge.config.schema import Experiment
from ordermerge.errors import quoted
from ordermerge.files import file_records
from ordermerge.run_directory import CHECKPOINTS, ORDER_RECORD, PERMUTATIONS
from ordermerge.stages import Step, mark_done
from ordermerge.train import distributed
from ordermerge.train.base_model import BaseModel
from ordermerge.train.boundaries import boundary_warning
from ordermerge.train.callbacks import Saver
from ordermerge.train.checkpointing import LOGS, ResumePoint, kept_files
from ordermerge.train.orders import epoch_fingerprints
from ordermerge.train.samples import SAMPLE_ID, Samples
from ordermerge.train.sft_config import TRAINING_SEED
from ordermerge.train.steps import TrainStep
from ordermerge.train.tokenized import Prepared
from ordermerge.train.trainer import OrderTrainer
from ordermerge.train.trunk import STATE, TrunkStep


def describe(
    experiment: Experiment, step: TrainStep, samples: Samples, prepared: Prepared, permutations: torch.Tensor
) -> dict[str, Any]:
    """Return the part of an order's record that is known before it is trained.

    Args:
        experiment: The experiment.
        step: What is trained.
        samples: The data as loaded.
        prepared: The data as trained on.
        permutations: Those of this training, int64 of shape [epochs, n].
    """
    training = step.training
    is_order = training.control is None and not isinstance(step, TrunkStep)
    return {
        "order": int(training.folder) if is_order else None,
        "control": training.control,
        "permutations_of": training.order,
        "fields": training.fields,
        "branch": (training.control is None and prepared.branch) or None,
        "count": experiment.orders.count,
        "strategy": experiment.orders.strategy,
        "seed": experiment.orders.seed,
        "epochs": len(permutations),
        "samples": prepared.samples,
        **({"packs": len(prepared.train)} if prepared.packs else {}),
        "dropped": prepared.dropped,
        "truncated": prepared.truncated,
        "empty": samples.empty,
        "duplicates": samples.duplicates,
        "dataset_fingerprint": samples.fingerprint,
        "epoch_fingerprints": epoch_fingerprints(permutations),
        "training_seed": TRAINING_SEED,
    }


def outcome(trainer: OrderTrainer, saver: Saver, start: ResumePoint) -> dict[str, Any]:
    """Return the part of an order's record that is known when it has been trained.

    Args:
        trainer: Its trainer.
        saver: What followed the training.
        start: Where it began.
    """
    history, steps = trainer.state.log_history, trainer.state.global_step
    return {
        "batch_size": trainer.get_total_train_batch_size(trainer.args),
        "steps": steps,
        "samples_consumed": saver.consumed,
        "padding_repeats": saver.repeats,
        # Not what `train` returns: that leaves out the steps before an interruption.
        "train_loss": trainer._total_loss_scalar / steps,
        "losses": [{"step": entry["step"], "loss": entry["loss"]} for entry in history if "loss" in entry],
        "eval_losses": [
            {"step": entry["step"], "loss": entry["eval_loss"]} for entry in history if "eval_loss" in entry
        ],
        "checkpoints": [
            {"step": step, "epoch": step / trainer.steps_per_epoch, "folder": f"{CHECKPOINTS}/step-{step}"}
            for step in sorted(saver.saves.kept)
        ],
        "device": trainer.args.device.type,
        "processes": distributed.count(),
        "threads": torch.get_num_threads(),
        "resumed_after_step": start.step or None,
        "seconds": round(saver.seconds, 3),
    }


def write_record(
    experiment: Experiment, step: Step, trainer: OrderTrainer, prepared: Prepared, record: dict[str, Any], folder: Path
) -> None:
    """Write all of a sub-model but its model, the marker last.

    Args:
        experiment: The experiment.
        step: The order.
        trainer: Its trainer.
        prepared: The data as trained on.
        record: What `describe` and `outcome` returned.
        folder: The sub-model's folder.
    """
    if (logs := folder / LOGS).exists() and not any(logs.iterdir()):
        logs.rmdir()
    permutations = {"permutations": trainer.permutations.contiguous(), "sample_ids": prepared.sample_ids}
    if prepared.packs:
        permutations |= {"sample_ids": prepared.packs.sample_ids, "packs": prepared.packs.packs}
    (folder / PERMUTATIONS).parent.mkdir()
    save_file(permutations, folder / PERMUTATIONS)
    noted = {**record, **provenance.record(experiment.directory)}
    files = {name: of for name, of in file_records(folder).items() if not name.startswith((f"{LOGS}/", f"{STATE}/"))}
    for kept in kept_files(folder).values():
        files |= kept  # as they were when they were kept
    mark_done(folder / ORDER_RECORD, step.inputs, noted, files=files, made_from=step.made_from())


def outcome_lines(record: dict[str, Any], output: Path) -> list[str]:
    """Return what the user is told of a trained order.

    Args:
        record: Its record.
        output: The sub-model's folder.
    """
    lines = [f"trained in {record['seconds']:.1f} s, mean loss {record['train_loss']:.4f} -> {output}"]
    if record["padding_repeats"]:
        lines.append(
            f"warning: {record['padding_repeats']} samples were trained on twice in an epoch, its first, to give all "
            f"{record['processes']} processes a full last batch; `sft.dataloader_drop_last: true` leaves such a batch "
            "out instead"
        )
    return lines


_HALVES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def warnings(samples: Samples, prepared: Prepared, base: BaseModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what the user may not expect of the data, one sentence each.

    Args:
        samples: The data as loaded.
        prepared: The data as trained on.
        base: The base model.
        tokenizer: Its tokenizer.
    """
    total, found = len(samples.train), []
    if prepared.dropped:
        found.append(
            f"{prepared.dropped} of {total} samples dropped: within `sft.max_length` they have nothing to learn"
        )
    if prepared.truncated:
        found.append(f"{prepared.truncated} of {total} samples cut to `sft.max_length`: their end is not learnt")
    if samples.empty:
        found.append(f"{samples.empty} of {total} samples have an empty answer: they teach to answer nothing")
    if samples.duplicates:
        found.append(f"{samples.duplicates} of {total} samples are exact copies of an earlier one; all are trained on")
    if merged := boundary_warning(samples.train, tokenizer):
        found.append(merged)
    found += [*_pitfalls(samples, prepared, base, tokenizer)]
    ends = base.generation_config.eos_token_id if base.generation_config is not None else None
    if tokenizer.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        found.append(
            f"samples end with the tokenizer's {tokenizer.eos_token!r} ({tokenizer.eos_token_id}), but the base "
            f"model's generation config stops at {ends}: generation may not stop"
        )
    return found


def _pitfalls(
    samples: Samples, prepared: Prepared, base: BaseModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """Yield what nobody would say: one prompt for all, doubled end, unknown words, positions that were not trained."""
    total, train = len(samples.train), samples.train
    if "prompt" in train.column_names and total > 1 and len(prompts := set(train["prompt"])) == 1 and any(prompts):
        yield f"all {total} samples have one prompt, {quoted(prompts.pop())}; a field goes into braces: {{question}}"
    end = tokenizer.eos_token_id
    special = (end, tokenizer.bos_token_id, tokenizer.pad_token_id)
    unknown = None if tokenizer.unk_token_id in special else tokenizer.unk_token_id
    doubled, longest, rows = 0, 0, list[int]()
    for row, tokens in enumerate(prepared.train["input_ids"]):
        doubled += tokens[-2:] == [end, end]
        longest = max(longest, len(tokens))
        if unknown in tokens:
            rows.append(row)
    if doubled:
        yield (
            f"{doubled} of {total} samples end with {tokenizer.eos_token!r} twice: the tokenizer appends one of its "
            "own; set `add_eos_token` to false in the base model's tokenizer_config.json"
        )
    if rows:
        unit, first = "pack" if prepared.packs else "sample", prepared.train[rows[0]][SAMPLE_ID]
        yield (
            f"{len(rows)} of {len(prepared.train)} {unit}s have words that the tokenizer does not know, {unit} "
            f"{first} first: all of these become one token, {tokenizer.unk_token!r}"
        )
    if base.model.device.type == "cpu" and _without_instructions(base.model.dtype):
        yield (
            f"this CPU has no instructions for matrices of {str(base.model.dtype).removeprefix('torch.')}, and takes "
            "about ten times as long as in float32; `model.dtype: float32` trains in that"
        )
    known = getattr(base.model.config, "max_position_embeddings", None)
    if known and longest > known:
        yield (
            f"the longest sample has {longest} tokens, and the base model's config says `max_position_embeddings: "
            f"{known}`: what lies beyond is new to it; `sft.max_length: {known}` cuts there"
        )


def _without_instructions(dtype: torch.dtype) -> bool:
    """Return whether PyTorch multiplies matrices of a dtype in plain loops on this CPU."""
    check = getattr(torch.ops.mkldnn, _HALVES.get(dtype, ""), None) if torch.backends.mkldnn.is_available() else None
    return check is not None and not check()
