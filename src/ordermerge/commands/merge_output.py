"""Where a merge goes: one process at a time, in place of an earlier merge only, and nothing of the user's lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ordermerge.errors import UserError
from ordermerge.folders import new_directory
from ordermerge.locks import lock
from ordermerge.models import MERGE_MARKER
from ordermerge.stages import Step
from ordermerge.yaml_json import read_json

_RECIPE = "mergekit_config.yml"
# What a merge writes, for those that have no list of it: of mergekit's own command, and of ours before it had one.
_WRITTEN = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "README.md", _RECIPE)


@contextmanager
def merge_output(out: Path, step: Step | None) -> Iterator[Path | None]:
    """Yield the folder in which to make a merge, which becomes `out` when the block ends well.

    Args:
        out: Where the merge goes; an earlier merge there is replaced.
        step: The step of a plan that this is, if it is one.

    Yields:
        The folder; None where another process has made this step meanwhile.

    Raises:
        UserError: If another process is making a merge there or did while this one waited, if `out` holds anything
            that no merge wrote, or if it cannot be written.
    """
    with lock(out) as waited:
        if step is not None and step.is_done():
            yield None
        elif waited and (out / MERGE_MARKER).exists():
            raise UserError(
                f"{out}: a merge was made there while this one waited; it is kept (to replace it, merge again)"
            )
        else:
            with new_directory(out, own=_own_files(out)) as partial:
                yield partial


def _own_files(out: Path) -> list[str]:
    """Return the files of an earlier merge.

    Raises:
        UserError: If there is anything else.
    """
    if not out.exists():
        return []
    if not out.is_dir():
        raise UserError(f"{out}: exists and is no folder; name a new folder")
    # Less a volume's own folder, and what a killed merge left: `new_directory` clears that.
    there = [path for path in out.iterdir() if path.name != "lost+found" and not path.name.startswith(f".{out.name}.")]
    if not there:
        return []
    if not any((out / name).exists() for name in (MERGE_MARKER, _RECIPE)):
        raise UserError(f"{out}: exists and was not made by a merge; name a new folder")
    files = [file.relative_to(out) for path in there for file in (path, *path.rglob("*")) if file.is_file()]
    marker = read_json(out / MERGE_MARKER, dict, remedy="name a new folder") if (out / MERGE_MARKER).exists() else {}
    if listed := marker.get("files"):
        own = {MERGE_MARKER, *listed}
    else:
        own = {file.as_posix() for file in files if any(file.match(pattern) for pattern in _WRITTEN)}
    if others := sorted(name for file in files if (name := file.as_posix()) not in own):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(
            f"{out}: holds {', '.join(others[:3])}{more}, which the merge there did not write; move it away, or name a "
            "new folder"
        )
    return sorted(own)
