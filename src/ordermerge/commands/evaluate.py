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
from ordermerge.locks import lock
from ordermerge.models import Model, model_names
from ordermerge.progress import tell_load
from ordermerge.run_directory import ENSEMBLE
from ordermerge.stages import MadeOtherwise


def evaluate_models(models: Sequence[str], out: Path, settings: Mapping[str, Any], *, force: bool = False) -> list[Row]:
    """Score any models; what is scored already is not scored again.

    Scores of a part of the documents (`limit`) have folders of their own, NAME-limit10.

    Args:
        models: Folders, hub ids, or mergekit recipes (`.yml`, `.yaml`).
        out: Where the results go.
        settings: Values of an `evaluation` section, as text where they come from a command line.
        force: Score anew, also what was scored with other settings.

    Returns:
        The scores.

    Raises:
        UserError: For problems in the settings or a recipe, and if a model cannot be scored.
    """
    section = evaluation_section({key: value for key, value in settings.items() if value not in (None, "")})
    part = "" if section.limit is None else f"-limit{section.limit:g}"
    named: dict[str, Model] = {f"{name}{part}": model for name, model in model_names(models).items()}
    recipes = {name: Path(model) for name, model in named.items() if isinstance(model, str) and is_recipe(model)}
    problems = recipe_problems(models)
    if recipes and section.ensemble:
        problems.append("--ensemble is of models that are there, not of recipes; merge these first: `ordermerge merge`")
    if problems:
        raise UserError(problems)
    if section.ensemble:
        named[f"{ENSEMBLE}{part}"] = tuple(models)
    identities = {
        name: recipe_identity(recipes[name]) if name in recipes else model_identity(model)
        for name, model in named.items()
    }
    made = {name: partial(temporary_merge, recipe, out, name) for name, recipe in recipes.items()}
    steps = evaluation_steps(identities, section, out)
    for step in steps if force else ():
        with lock(step.output):
            (step.output / step.marker).unlink(missing_ok=True)
    tell_load()
    try:
        return score_models(named, section, out, steps=steps, made=made)
    except MadeOtherwise as error:
        remedy = "`--force` scores that anew; another `--out` keeps it"
        raise MadeOtherwise(error.changed, error.steps, remedy) from None
    except ScoringFailed as error:
        print_table(error.rows)
        raise


def print_scores(rows: Sequence[Row], out: Path, tasks: Sequence[str]) -> None:
    """Print what was scored: a table, and how well probabilities are calibrated.

    Args:
        rows: From `evaluate_models`.
        out: Where the results are.
        tasks: The tasks asked for.
    """
    print_table(rows)
    models = [read_values(name, load_scores(out / name, tasks)) for name in dict.fromkeys(row.model for row in rows)]
    print_calibration([one for model in models for one in model.calibrations])
