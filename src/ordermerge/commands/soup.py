"""`ordermerge soup`: which models to merge, chosen greedily by validation tasks, and the merge of them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from mergekit.options import MergeOptions

from ordermerge.commands.greedy import Trial, greedy, single_score
from ordermerge.commands.merging import merge
from ordermerge.commands.recipes import write_recipe
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
from ordermerge.stages import unfinished

SOUP = "soup"


@dataclass(frozen=True)
class SoupSearch:
    """What makes and scores the soups of one search.

    Attributes:
        models: Name of each model, and its folder.
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

    def recipe(self, ingredients: Sequence[str]) -> dict[str, Any]:
        """Return the mergekit recipe of a soup.

        Args:
            ingredients: Names of its models, in order.
        """
        base = {} if self.base is None else {"base_model": str(Path(self.base).absolute())}
        models = [{"model": str(Path(self.models[name]).absolute())} for name in ingredients]
        return {"merge_method": self.method, **base, "models": models, "parameters": {"weight": 1}}

    def rows(self, ingredients: tuple[str, ...]) -> list[Row]:
        """Score a soup, or a model alone; what was scored before is read from its files, and not merged again.

        Args:
            ingredients: Names of its models, in order.
        """
        scores = self.out / "eval"
        if len(ingredients) == 1:
            return score_models({ingredients[0]: self.models[ingredients[0]]}, self.settings, scores)
        known = list(self.models)
        name = f"{SOUP}_" + "+".join(str(known.index(ingredient)) for ingredient in ingredients)
        used = [*([self.base] if self.base else []), *(self.models[ingredient] for ingredient in ingredients)]
        inputs = {name: {"method": self.method, "models": [fingerprint(identity(model)) for model in used]}}
        trial = self.out / "trial" / name
        with quiet():
            steps = evaluation_steps(inputs, self.settings, scores)
        try:
            if unfinished(steps):
                self.merge(ingredients, trial)
            return score_models({name: str(trial)}, self.settings, scores, steps=steps)
        finally:
            shutil.rmtree(self.out / "trial", ignore_errors=True)

    def merge(self, ingredients: Sequence[str], folder: Path) -> None:
        """Merge a soup.

        Args:
            ingredients: Names of its models, in order.
            folder: Where the merged model goes.
        """
        recipe = self.out / "recipes" / f"{folder.name}.yml"
        write_recipe(self.recipe(ingredients), recipe, folder, {})
        merge(recipe, folder, MergeOptions(quiet=True), by_name=None)

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
        models: Folders.
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
    kitchen.merge(chosen.ingredients, out / "model")
    write_json(out / "soup.json", _log(kitchen, trials, higher_is_better=True in directions))
    click.echo(f"{SOUP} of {len(chosen.ingredients)}: {' + '.join(chosen.ingredients)}, in {out / 'model'}", err=True)
    if tests:
        print_table(score_models({SOUP: str(out / "model")}, tests, out / "test"))
    return trials


def _problems(kitchen: SoupSearch, tests: EvaluationSection | None) -> list[str]:
    """Return what can be found wrong before anything is scored."""
    if len(kitchen.models) < 2:
        return [f"a soup is chosen from at least 2 models; got {len(kitchen.models)}"]
    problems = check_evaluation(kitchen.settings, kitchen.models)
    if kitchen.base and kitchen.method == "linear":
        problems.append("--base: linear would average the base model in; leave it out")
    if not problems:
        problems = check_recipe(kitchen.recipe(list(kitchen.models)))
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
