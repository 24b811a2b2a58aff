"""What the console shows: one line at a time, and progress bars where someone watches."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging


def is_interactive() -> bool:
    """Return whether someone watches standard error."""
    return sys.stderr.isatty()


@contextmanager
def quiet() -> Iterator[None]:
    """Switch the libraries' progress bars off for a while, unless someone watches; and a warning meant for PEFT."""
    datasets_bars, transformers_bars = not datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    if not is_interactive():
        datasets.disable_progress_bars()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            yield
    finally:
        if datasets_bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            logging.enable_progress_bar()
