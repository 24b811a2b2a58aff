"""`ordermerge eval`: scores any models, recipes among them: each is merged, scored, and removed."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ordermerge.commands.temporary_merge import is_recipe, recipe_identity, recipe_problems, temporary_merge
from ordermerge.config.load import evaluation_section
from ordermerge.errors import UserError
from ordermerge.eval.comparison.documents import read_values
from ordermerge.eval.scoring.calibration import print_calibration
from ordermerge.eval.scoring.saved import load_scores
from ordermerge.eval.scoring.score import ScoringFailed, evaluation_steps, model_identity, score_models
from ordermerge.eval.scoring.table import Row, print_table
from ordermerge.models import Model, model_names
from ordermerge.run_directory import ENSEMBLE


def evaluate_models(models: Sequence[str], out: Path, settings: Mapping[str, Any]) -> None:
    """Score any models and print the table.

    Args:
        models: Folders, hub ids, or mergekit recipes (`.yml`, `.yaml`).
        out: Where the results go.
        settings: Values of an `evaluation` section, as text where they come from a command line.

    Raises:
        UserError: For problems in the settings or a recipe, and if a model cannot be scored.
    """
    section = evaluation_section({key: value for key, value in settings.items() if value not in (None, "")})
    named: dict[str, Model] = dict(model_names(models))
    recipes = {name: Path(model) for name, model in named.items() if isinstance(model, str) and is_recipe(model)}
    problems = recipe_problems(models)
    if recipes and section.ensemble:
        problems.append("--ensemble is of models that are there, not of recipes; merge these first: `ordermerge merge`")
    if problems:
        raise UserError(problems)
    if section.ensemble:
        named[ENSEMBLE] = tuple(models)
    identities = {
        name: recipe_identity(recipes[name]) if name in recipes else model_identity(model)
        for name, model in named.items()
    }
    made = {name: partial(temporary_merge, recipe, out, name) for name, recipe in recipes.items()}
    try:
        rows = score_models(named, section, out, steps=evaluation_steps(identities, section, out), made=made)
    except ScoringFailed as error:
        print_table(error.rows)
        raise
    _print(rows, out, section.tasks)


def _print(rows: Sequence[Row], out: Path, tasks: Sequence[str]) -> None:
    print_table(rows)
    models = [read_values(name, load_scores(out / name, tasks)) for name in dict.fromkeys(row.model for row in rows)]
    print_calibration([one for model in models for one in model.calibrations])
