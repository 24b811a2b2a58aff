"""`ordermerge soup`: which models to merge, chosen greedily by validation tasks, and the merge of them."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from mergekit.options import MergeOptions

from ordermerge.commands.greedy import Trial, greedy, single_score
from ordermerge.commands.merging import merge
from ordermerge.commands.recipes import write_recipe
from ordermerge.commands.temporary_merge import (
    is_recipe,
    merge_recipe,
    recipe_identity,
    recipe_problems,
    temporary_merge,
)
from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.checks import check_evaluation
from ordermerge.eval.scoring.quiet import quiet
from ordermerge.eval.scoring.score import evaluation_steps, score_models
from ordermerge.eval.scoring.table import Row, print_table
from ordermerge.eval.scoring.task_files import data_paths
from ordermerge.eval.scoring.tasks import leaf_tasks
from ordermerge.files import fingerprint, write_json
from ordermerge.merge_methods.recipe_check.check import check_recipe
from ordermerge.models import identity, model_names
from ordermerge.provenance import record

SOUP = "soup"


@dataclass(frozen=True)
class SoupSearch:
    """What makes and scores the soups of one search.

    Attributes:
        models: Name of each model, and its folder or recipe.
        out: Folder of the search.
        settings: The validation: what is asked of lm-eval.
        method: mergekit's merge method.
        base: The base model, for methods that need it.
        metric: Which score counts, as "metric" or "metric,filter".
    """

    models: Mapping[str, str]
    out: Path
    settings: EvaluationSection
    method: str
    base: str | None = None
    metric: str | None = None

    def recipe(self, folders: Sequence[str]) -> dict[str, Any]:
        """Return the mergekit recipe of a soup.

        Args:
            folders: Of its models, in order.
        """
        base = {} if self.base is None else {"base_model": str(Path(self.base).absolute())}
        models = [{"model": str(Path(folder).absolute())} for folder in folders]
        return {"merge_method": self.method, **base, "models": models, "parameters": {"weight": 1}}

    def rows(self, ingredients: tuple[str, ...]) -> list[Row]:
        """Score a soup, or a model alone; what was scored before is read from its files, and not merged again.

        Args:
            ingredients: Names of its models, in order.
        """
        used = [*([self.base] if self.base else []), *(self.models[name] for name in ingredients)]
        identities = [recipe_identity(Path(model)) if is_recipe(model) else identity(model) for model in used]
        name, known = ingredients[0], list(self.models)
        if len(ingredients) > 1:
            name = f"{SOUP}_" + "+".join(str(known.index(ingredient)) for ingredient in ingredients)
            inputs = {"method": self.method, "models": [fingerprint(one) for one in identities]}
            made = {name: partial(self.trial, ingredients, name)}
        else:
            inputs = identities[-1]
            made = {name: partial(self.there, name)} if is_recipe(self.models[name]) else {}
        with quiet():
            steps = evaluation_steps({name: inputs}, self.settings, self.out / "eval")
        model = self.models.get(name, " + ".join(ingredients))
        return score_models({name: model}, self.settings, self.out / "eval", steps=steps, made=made)

    @contextmanager
    def there(self, name: str) -> Iterator[str]:
        """Yield a model's folder; what a recipe makes is removed afterwards.

        Args:
            name: Of the model.
        """
        model = self.models[name]
        with temporary_merge(Path(model), self.out, name) if is_recipe(model) else nullcontext(model) as folder:
            yield folder

    @contextmanager
    def trial(self, ingredients: Sequence[str], name: str) -> Iterator[str]:
        """Yield the folder of a soup, which is removed afterwards.

        Args:
            ingredients: Names of its models, in order.
            name: Of the soup.
        """
        folder = self.out / "trial" / name
        try:
            with ExitStack() as kept:
                self.merge([kept.enter_context(self.there(one)) for one in ingredients], folder)
            yield str(folder)
        finally:
            shutil.rmtree(self.out / "trial", ignore_errors=True)

    def merge(self, folders: Sequence[str], folder: Path) -> None:
        """Merge a soup.

        Args:
            folders: Of its models, in order.
            folder: Where the merged model goes.
        """
        recipe = self.out / "recipes" / f"{folder.name}.yml"
        write_recipe(self.recipe(folders), recipe, folder, {})
        merge(recipe, folder, MergeOptions(quiet=True), by_name=None)

    def finish(self, ingredients: Sequence[str]) -> None:
        """Merge the chosen soup; what recipes made for it is kept beside it, as its own recipe names that.

        Args:
            ingredients: Names of its models, in order.
        """
        folders = {name: self.models[name] for name in ingredients}
        for name in [name for name, model in folders.items() if is_recipe(model)]:
            folders[name] = str(self.out / "ingredients" / name)
            merge_recipe(Path(self.models[name]), Path(folders[name]))
        self.merge(list(folders.values()), self.out / "model")

    def score(self, ingredients: tuple[str, ...]) -> tuple[float, bool]:
        """Return a soup's validation score, and whether higher is better.

        Args:
            ingredients: Names of its models, in order.
        """
        value, higher_is_better = single_score(self.rows(ingredients), self.settings.tasks, self.metric)
        click.echo(f"{' + '.join(ingredients)}: {value:.4g}", err=True)
        return value, higher_is_better


def make_soup(
    models: Sequence[str],
    out: Path,
    settings: EvaluationSection,
    *,
    method: str = "linear",
    base: str | None = None,
    metric: str | None = None,
    test_tasks: Sequence[str] = (),
) -> list[Trial]:
    """Choose models greedily by validation tasks, merge the choice, and score that once on the test tasks.

    Writes `out/model/` (the merged model), `out/soup.json` (every trial), `out/recipes/`, `out/eval/` and, for the
    test tasks, `out/test/` (lm-eval's files). Run again after an interruption, it scores nothing twice.

    Args:
        models: Folders, or mergekit recipes, which count as the models that they make.
        out: Folder of the search.
        settings: The validation: what is asked of lm-eval.
        method: mergekit's merge method.
        base: The base model's folder, for methods that need it.
        metric: Which score counts, as "metric" or "metric,filter"; may be left out where there is just one.
        test_tasks: Tasks that have no part in the choice.

    Returns:
        Every trial; the last one kept is the choice.

    Raises:
        UserError: For problems of the models, the tasks or the metric; and when a model cannot be scored.
    """
    kitchen = SoupSearch(model_names(models), out, settings, method, base, metric)
    tests = settings.model_copy(update={"tasks": list(test_tasks)}) if test_tasks else None
    if problems := _problems(kitchen, tests):
        raise UserError(problems)
    directions: set[bool] = set()

    def score(ingredients: tuple[str, ...]) -> float:
        value, higher_is_better = kitchen.score(ingredients)
        directions.add(higher_is_better)
        return value if higher_is_better else -value

    trials = greedy(list(kitchen.models), score)
    chosen = [trial for trial in trials if trial.kept][-1]
    kitchen.finish(chosen.ingredients)
    write_json(out / "soup.json", _log(kitchen, trials, higher_is_better=True in directions))
    click.echo(f"{SOUP} of {len(chosen.ingredients)}: {' + '.join(chosen.ingredients)}, in {out / 'model'}", err=True)
    if tests:
        print_table(score_models({SOUP: str(out / "model")}, tests, out / "test"))
    return trials


def _problems(kitchen: SoupSearch, tests: EvaluationSection | None) -> list[str]:
    """Return what can be found wrong before anything is scored."""
    if len(kitchen.models) < 2:
        return [f"a soup is chosen from at least 2 models; got {len(kitchen.models)}"]
    recipes = [model for model in kitchen.models.values() if is_recipe(model)]
    there = {name: model for name, model in kitchen.models.items() if model not in recipes}
    problems = [*recipe_problems(recipes), *check_evaluation(kitchen.settings, there)]
    if kitchen.base and kitchen.method == "linear":
        problems.append("--base: linear would average the base model in; leave it out")
    if not problems:
        problems = check_recipe(kitchen.recipe(list(kitchen.models.values())), models_exist=not recipes)
    if tests and not problems:
        problems = [f"--test-tasks: {problem}" for problem in check_evaluation(tests)]
    if tests and not problems:
        both = leaf_tasks(kitchen.settings) & leaf_tasks(tests)
        both |= {str(path) for path in data_paths(kitchen.settings) & data_paths(tests)}
        problems = [
            f"--test-tasks: {name} has a part in --tasks, which choose the soup; test on others" for name in both
        ]
    return problems


def _log(kitchen: SoupSearch, trials: Sequence[Trial], *, higher_is_better: bool) -> dict[str, Any]:
    sign = 1 if higher_is_better else -1
    scored = [{**asdict(trial), "score": sign * trial.score} for trial in trials]
    chosen = [trial for trial in scored if trial["kept"]][-1]
    return {
        "ingredients": chosen["ingredients"],
        "score": chosen["score"],
        "higher_is_better": higher_is_better,
        "metric": kitchen.metric,
        "merge_method": kitchen.method,
        "base_model": kitchen.base,
        "models": kitchen.models,
        "evaluation": kitchen.settings.model_dump(exclude_defaults=True),
        "trials": scored,
        **record(Path.cwd()),
    }
