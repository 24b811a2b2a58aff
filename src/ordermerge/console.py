"""What the console shows: one line at a time, and progress bars where someone watches."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ordermerge.errors import printable

# What libraries say that is meant for those who call them, or that is said here in other words: by logger.
_FOR_AUTHORS = {
    **dict.fromkeys(
        ("transformers.configuration_utils", "transformers.modeling_utils"), ("`torch_dtype` is deprecated",)
    ),
    "trl.trainer.sft_trainer": ("The tokenized prompt is not a prefix of",),  # `train.boundaries` counts them
}


def say(line: object, *, err: bool = True) -> None:
    """Print a line; what would drive a terminal is written out.

    Args:
        line: Text, or what is shown as its text.
        err: Whether it is about the work (standard error), not its result.
    """
    click.echo(printable(str(line)), err=err)


def take_any_text() -> None:
    """Let standard output and error take text that their encoding lacks, such as an arrow in a Windows code page."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_interactive() -> bool:
    """Return whether someone watches standard error."""
    return sys.stderr.isatty()


@contextmanager
def quiet() -> Iterator[None]:
    """Switch the libraries' progress bars off for a while, and what they say to each other's authors (`_FOR_AUTHORS`).

    Anything else that they warn of, and every error, is shown.

    Yields:
        Nothing.
    """
    from transformers.utils import logging as transformers_logging

    datasets = sys.modules.get("datasets")  # importing it takes a second, and who does not use it has none of its bars
    datasets_bars = datasets is not None and not datasets.are_progress_bars_disabled()
    transformers_bars = transformers_logging.is_progress_bar_enabled()
    if datasets is not None:
        datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    filters = {logging.getLogger(name): _Without(texts) for name, texts in _FOR_AUTHORS.items()}
    for logger, passing in filters.items():
        logger.addFilter(passing)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            yield
    finally:
        for logger, passing in filters.items():
            logger.removeFilter(passing)
        if datasets is not None and datasets_bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers_logging.enable_progress_bar()


class _Without(logging.Filter):
    def __init__(self, texts: tuple[str, ...]):
        super().__init__()
        self._texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in self._texts)
