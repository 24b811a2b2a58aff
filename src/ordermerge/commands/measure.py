"""Measures the losses of one model of a run on the run's data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from ordermerge.config.schema import Experiment
from ordermerge.console import quiet
from ordermerge.errors import UserError
from ordermerge.eval.imbalance.losses import BATCH_TOKENS, sample_losses
from ordermerge.eval.scoring.argument_checks import device_problem
from ordermerge.eval.scoring.ensemble import combine
from ordermerge.eval.scoring.harness import free_memory
from ordermerge.models import Model, hub_revision, members_of
from ordermerge.progress import Counted
from ordermerge.train.tokenized import Tokenised


@dataclass(frozen=True)
class TokenRows(Sequence[np.ndarray]):
    """The tokens, or labels, of each sample: one array for all, 4 bytes a token, where lists take 36.

    Attributes:
        values: Those of all samples, int32.
        starts: int64 of shape [n + 1]: where each sample's begin, and where the last one's end.
    """

    values: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.values[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class Split:
    """A part of the data, tokenised.

    Attributes:
        name: "train" or "validation".
        sample_ids: The row of each sample in the data as loaded.
        input_ids: Its tokens.
        labels: Its labels, -100 where there is nothing to learn.
    """

    name: str
    sample_ids: list[int]
    input_ids: TokenRows
    labels: TokenRows


@dataclass(frozen=True)
class Machine:
    """Where and how losses are computed.

    Attributes:
        device: Such as "cuda:0"; the accelerator, or the CPU where there is none, if None.
        batch_tokens: Most tokens in a batch.
    """

    device: str | None = None
    batch_tokens: int = BATCH_TOKENS

    def __post_init__(self) -> None:
        if self.device is not None and (problem := device_problem(self.device)):
            raise UserError(f"--device: {problem}")


def splits_of(tokenised: Tokenised) -> list[Split]:
    """Return the parts of the data.

    Args:
        tokenised: From `tokenise`.
    """
    parts = {"train": tokenised.train, "validation": tokenised.validation}
    return [
        Split(name, data["sample_id"][:], _token_rows(data, "input_ids"), _token_rows(data, "labels"))
        for name, data in parts.items()
        if data is not None
    ]


def _token_rows(data: Dataset, name: str) -> TokenRows:
    column = data.with_format("arrow")[:][name]
    lengths, values = pyarrow.compute.list_value_length(column), pyarrow.compute.list_flatten(column)
    return TokenRows(values.to_numpy().astype(np.int32), np.cumsum([0, *lengths.to_numpy()], dtype=np.int64))


def measure(
    experiment: Experiment,
    name: str,
    model: Model,
    splits: Sequence[Split],
    machine: Machine,
    *,
    progress: Counted,
    dtype: str = "auto",
) -> tuple[list[torch.Tensor], str]:
    """Load a model, take its losses, and let go of it.

    Args:
        experiment: The experiment, for what loading needs.
        name: Of the model, for messages.
        model: Folder of a whole model or of a LoRA adapter, or a hub id; several are an ensemble.
        splits: The data.
        machine: Where and how.
        progress: Is told of the samples.
        dtype: To load it in; "auto" is the stored one.

    Returns:
        For each split the samples' losses, as `sample_losses` gives them; and the device they were computed on.

    Raises:
        UserError: If the model cannot be loaded, the device cannot be used, or memory runs out.
    """
    with quiet():
        members = [_load(experiment, path, dtype, machine.device) for path in members_of(model)]
        loaded = members[0] if isinstance(model, str) else combine(members)
        place = str(loaded.device)
        try:
            progress.begin(sum(len(split.labels) for split in splits))
            return [
                sample_losses(
                    loaded, split.input_ids, split.labels, batch_tokens=machine.batch_tokens, progress=progress.advance
                )
                for split in splits
            ], place
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{name}: the memory of {place} is too small for batches of {machine.batch_tokens} tokens; "
                "use a smaller `--batch-tokens`"
            ) from error
        finally:
            progress.end()
            del members, loaded
            free_memory()


def _load(experiment: Experiment, path: str, dtype: str, device: str | None) -> Any:
    """Load a model, or an adapter with its base model, for inference."""
    kind: Any = AutoModelForCausalLM
    if (Path(path) / "adapter_config.json").is_file():
        try:
            from peft import AutoPeftModelForCausalLM as kind
        except ImportError:
            raise UserError(
                f"{path} holds a LoRA adapter, which needs peft; install it with `pip install peft`"
            ) from None
    options: dict[str, Any] = {"trust_remote_code": experiment.sft.get("trust_remote_code", False)}
    name, revision = hub_revision(path)
    try:
        model = kind.from_pretrained(name, dtype=dtype, revision=revision, **options)
    except Exception as error:  # whatever a damaged file makes transformers raise
        raise UserError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:400]}") from error
    try:
        return model.to(device or torch.accelerator.current_accelerator() or "cpu").eval()
    except (RuntimeError, AssertionError) as error:  # torch has several words for a device that is not there
        raise UserError(f"--device {device}: cannot be used: {' '.join(str(error).split())[:200]}") from error
