"""Print the dependencies of a pyproject.toml and of some of its extras, one a line, for `pip install -r`."""

import sys
import tomllib
from pathlib import Path


def main(pyproject: str, *extras: str) -> None:
    """Print the requirements.

    Args:
        pyproject: Path of the pyproject.toml.
        extras: Names of optional dependency groups.
    """
    project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    print("\n".join(requirement for group in groups for requirement in group))


if __name__ == "__main__":
    main(*sys.argv[1:])
