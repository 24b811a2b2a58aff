"""`ordermerge check FILE`: every problem of a recipe or an experiment."""

from collections.abc import Sequence
from pathlib import Path

import click

from ordermerge.config.changes import described
from ordermerge.config.load import load_experiment
from ordermerge.errors import UserError
from ordermerge.imports import quick_imports
from ordermerge.yaml_json import read_yaml


def check_file(path: Path, changes: Sequence[str] = ()) -> str:
    """Check a recipe or an experiment, whichever the file is, and return which it is.

    Args:
        path: The YAML file.
        changes: Keys of an experiment to set otherwise than the file does, `KEY=VALUE` each.

    Raises:
        UserError: With every problem found.
    """
    content = read_yaml(path)
    if "merge_method" not in content:
        experiment = load_experiment(path, changes)
        with quick_imports():
            from ordermerge.commands.plan import check_experiment  # not at the top: recipes need nothing of training

        if problems := check_experiment(experiment):
            raise UserError(problems, where=described(path, changes))
        return "experiment"
    if changes:
        raise UserError(f"{path}: is a recipe; `--set` changes keys of experiments only, so edit the file")
    with quick_imports():
        from ordermerge.merge_methods.recipe_check.check import check_recipe
        from ordermerge.merge_methods.recipe_check.references import read_recipe
        from ordermerge.merge_methods.recipe_check.warnings import recipe_warnings

    content = read_recipe(path)
    if problems := check_recipe(content):
        raise UserError(problems, where=path)
    for warning in recipe_warnings(content):
        click.echo(f"warning: {warning}", err=True)
    return "recipe"
