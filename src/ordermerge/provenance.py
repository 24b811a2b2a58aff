"""How an output was made: versions, source commit, machine."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("ordermerge", "mergekit", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "lm_eval"),
    *("numpy", "scipy"),
)


def versions() -> dict[str, str]:
    """Return the version of Python and of each installed package that shapes a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(directory: Path) -> str | None:
    """Return the commit of the checkout that holds `directory`, with `-dirty` where files differ from it.

    Args:
        directory: Any folder; None is returned where it is in no git checkout or git is missing.
    """
    command = ["git", "-C", str(directory), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def record(directory: Path) -> dict[str, Any]:
    """Return what every output notes of how it was made: versions, git commit, platform.

    Args:
        directory: A folder of the user's work (the experiment's), whose git commit is noted.
    """
    return {
        "versions": versions(),
        "git_commit": git_commit(directory),
        "platform": f"{platform.system()} {platform.machine()}",
    }
