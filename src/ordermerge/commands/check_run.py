"""`ordermerge check RUN`: whether everything in a run directory is still what it was when it was made."""

from pathlib import Path

from ordermerge.files import file_problems
from ordermerge.run_directory import open_run
from ordermerge.stages import recorded_files

_MARKERS = {"orders/*/order/order.json": 1, "merges/*/ordermerge.json": 0, "eval/*/ordermerge_*.json": 0}
_REMEDY = "make it anew: `ordermerge run --force STAGE`"


def check_run(run: Path, *, deep: bool) -> tuple[list[str], list[Path]]:
    """Compare all files that a run has made with what their markers say.

    Args:
        run: The run directory.
        deep: Whether to read them; else only those whose size or time of change is another.

    Returns:
        A sentence on each file that is missing or was changed; and the markers that hold no digests.

    Raises:
        UserError: If this is no run directory, or a marker is damaged.
    """
    open_run(run)
    problems, old = list[str](), list[Path]()
    for pattern, above in _MARKERS.items():
        for marker in sorted(run.glob(pattern)):
            files = recorded_files(marker, remedy=_REMEDY)
            if files is None:
                old.append(marker)
            problems += file_problems(marker.parents[above], files or {}, deep=deep)
    return problems, old
