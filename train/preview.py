"""The orders of an experiment before it is trained, exactly as training will lay them."""

import dataclasses
import tempfile
from pathlib import Path

from ordermerge.experiment import Experiment
from ordermerge.train.base import load_tokenizer
from ordermerge.train.data import load_samples
from ordermerge.train.prepared import Prepared, prepare
from ordermerge.train.quiet import quiet
from ordermerge.train.tokens import data_trainer


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
