"""Models that a run made, compared with the digests that it recorded, in a thread beside what reads them."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from ordermerge.errors import UserError
from ordermerge.files import file_problems
from ordermerge.models import MERGE_MARKER
from ordermerge.run_directory import CHECKPOINTS, ORDER_RECORD
from ordermerge.stages import recorded_files


@contextmanager
def verified(models: Iterable[Path]) -> Iterator[None]:
    """Read all files of models while the block runs, and refuse what it made of any that is not what it was.

    A flipped bit changes neither size nor time. Models that no run made have no digests.

    Args:
        models: The models' folders: sub-models, their kept checkpoints, merges, or others'.

    Raises:
        UserError: After the block, or in place of the error that it ended with, about all files that have changed.
    """
    with ThreadPoolExecutor(1) as reader:
        found = [reader.submit(_problems, model) for model in models]
        try:
            yield
        except Exception as error:  # of which damaged weights may be the cause
            if problems := [problem for one in found for problem in one.result()]:
                raise UserError(problems) from error
            raise
    if problems := [problem for one in found for problem in one.result()]:
        raise UserError(problems)


def _problems(model: Path) -> list[str]:
    """Return a sentence on each file of a model that has changed since the run that made it."""
    kept = f"{CHECKPOINTS}/{model.name}/" if model.parent.name == CHECKPOINTS else ""
    root = model.parents[1] if kept else model
    marker = next((root / name for name in (ORDER_RECORD, MERGE_MARKER) if (root / name).is_file()), None)
    if marker is None:
        return []
    files = recorded_files(marker, remedy="copy the model again, or make it anew")
    if files is None:
        click.echo(f"warning: {model}: its record holds no digests, so its files were not verified", err=True)
        return []
    own = {name: of for name, of in files.items() if name.startswith(kept) and "/" not in name.removeprefix(kept)}
    return [
        f"{problem}; restore it or make the model anew (if the change was meant: without {marker} it is taken as it is)"
        for problem in file_problems(root, own, deep=True)
    ]
