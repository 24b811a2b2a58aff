"""What the console shows: one line at a time, and progress bars where someone watches."""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ordermerge.errors import printable


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
    """Switch the libraries' progress bars off for a while, unless someone watches; and a warning meant for PEFT."""
    import datasets
    from transformers.utils import logging

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
