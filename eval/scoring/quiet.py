"""What lm-eval says while it works, reduced to what a user can act on."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ordermerge import console
from ordermerge.progress import Counted
from ordermerge.provenance import git_commit

# Warnings that repeat the user's own settings, or explain an option of lm-eval's command that is of no use here.
REQUESTS = "Running "  # begins the descriptions of lm-eval's bars over requests
IDLE = (
    "is defined, but aggregation is not. using default",
    "is defined, but higher_is_better is not. using default",
    "Overwriting default num_fewshot",
    "generation_kwargs: ",
    "Custom kwargs can be passed to `--metadata`",
)


@contextmanager
def quiet(progress: Counted | None = None) -> Iterator[None]:
    """Show each kind of lm-eval's warnings once, not for every model or document, and one line of ours for its bars.

    A logger that someone has set up, by code or by LMEVAL_LOG_LEVEL, is left alone.

    Args:
        progress: Is told of lm-eval's requests.

    Yields:
        Nothing.
    """
    logger = logging.getLogger("lm_eval")
    ours = not logger.handlers and logger.level == logging.NOTSET
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("lm-eval: %(message)s"))
    handler.setLevel(logging.WARNING)
    handler.addFilter(_FirstTime())
    if ours:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        with console.quiet(), _without_bars(progress), _no_load_counts():
            yield
    finally:
        if ours:
            logger.removeHandler(handler)
            logger.propagate = True


class _FirstTime(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        kind = re.sub(r"\d+", "#", message)  # "truncating to last 88 tokens" comes once a document
        new = kind not in self.seen and not any(idle in message for idle in IDLE)
        self.seen.add(kind)
        return new


@contextmanager
def _without_bars(progress: Counted | None) -> Iterator[None]:
    """Switch tqdm's bars off, and count those of lm-eval's requests: lm-eval has no option for that."""
    from tqdm import tqdm

    original = tqdm.__init__

    def without_bar(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "disable": True})
        if progress is not None and str(kwargs.get("desc")).startswith(REQUESTS):
            progress.begin(kwargs["total"])
            self.update = progress.advance

    tqdm.__init__ = without_bar  # type: ignore[method-assign]
    try:
        yield
    finally:
        tqdm.__init__ = original  # type: ignore[method-assign]
        if progress is not None:
            progress.end()


@contextmanager
def _no_load_counts() -> Iterator[None]:
    """Keep datasets from reporting each use of its json reader to a server: without network every task waits for it."""
    import datasets

    before = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = before


@contextmanager
def no_git_complaint() -> Iterator[None]:
    """Keep git from complaining, once for every model, that the working directory is in no checkout.

    What lm-eval notes of it is the same.

    Yields:
        Nothing.
    """
    from lm_eval import evaluator

    original = evaluator.get_git_commit_hash
    if git_commit(Path.cwd()) is None:
        evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = original
