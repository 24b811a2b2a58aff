"""The samples as training sees them, without training: loaded, templated, tokenised and cut by the same code."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.train.base import load_tokenizer
from ordermerge.train.data import Samples, load_samples
from ordermerge.train.quiet import quiet
from ordermerge.train.settings import check_sft, make_config
from ordermerge.train.trainer import OrderTrainer

# The fields that the prepared data or the orders depend on. The others are left out, as some (FSDP, DeepSpeed, loggers)
# would ask for what only training has.
_FIELDS = frozenset(
    {
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "dataloader_drop_last",
        "max_length",
        "truncation_mode",
        "completion_only_loss",
        "assistant_only_loss",
        "dataset_num_proc",
        "trust_remote_code",
    }
)


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
    except (ValueError, RuntimeError) as error:
        raise UserError(f"TRL's SFTTrainer refuses the data or the `sft` section: {error}") from error
