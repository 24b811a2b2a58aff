"""Run mypy on this checkout's package, which an editable install hides from it.

mypy does not follow the import hook by which setuptools maps `merge_methods/`, `train/` and `eval/` into the package:
it is shown a folder of links that looks as the installed package does.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def link_package(folder: Path, checkout: Path = ROOT) -> None:
    """Make a package of links to a checkout in a folder, which looks as the installed one does."""
    package = folder / "ordermerge"
    package.mkdir()
    wings = [checkout / name for name in ("merge_methods", "train", "eval")]
    for path in [*(checkout / "src" / "ordermerge").iterdir(), *wings]:
        (package / path.name).symlink_to(path)


def main() -> int:
    """Check the types, and return mypy's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        link_package(Path(folder))
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "ordermerge"]
        cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
        return subprocess.run([*command, *cache], cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
