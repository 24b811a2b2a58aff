"""The orders of an experiment before it is trained, exactly as training will lay them."""

import tempfile
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from ordermerge.errors import UserError
from ordermerge.experiment import Experiment
from ordermerge.train.base import load_tokenizer
from ordermerge.train.data import load_samples
from ordermerge.train.prepared import Prepared, prepare
from ordermerge.train.quiet import quiet
from ordermerge.train.settings import make_config
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
    sft = {name: value for name, value in experiment.sft.items() if name in _FIELDS} | {"use_cpu": True, "bf16": False}
    reduced = experiment.model_copy(update={"sft": sft})
    # SFTTrainer prepares data by the tokenizer and the settings; its model has no part in it, so any will do.
    tiny = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with quiet(), tempfile.TemporaryDirectory() as logs:
        args = make_config(reduced, Path(logs), disable_tqdm=True)
        try:
            trainer = OrderTrainer(
                LlamaForCausalLM(tiny), args, train_dataset=samples.train, processing_class=tokenizer
            )
        except (ValueError, RuntimeError) as error:
            raise UserError(f"TRL's SFTTrainer refuses the data or the `sft` section: {error}") from error
        return prepare(experiment, samples, trainer, processes=processes)
