"""Commands that score models with lm-eval: `eval`, `soup`, `tasks`."""

from pathlib import Path
from typing import Any

import click

from ordermerge.cli.options import LM_EVAL_SPELLING, evaluation_options, names, user_errors

SOUP_METHODS = ("linear", "parameter_selection", "parameter_selection_resample")


@click.command(name="eval", context_settings=LM_EVAL_SPELLING)
@click.argument("models", nargs=-1, required=True)
@click.option("--out", default="eval-results", show_default=True, type=click.Path(path_type=Path), help="For results.")
@evaluation_options
@user_errors
def evaluate(models: tuple[str, ...], out: Path, tasks: str, **settings: Any) -> None:
    """Score MODELS (folders or hub ids) with lm-evaluation-harness and print one table.

    Options may be written as lm-eval writes them, with underscores. `ordermerge tasks` has tasks for your own data.
    """
    from ordermerge.commands.run import evaluate_models

    evaluate_models(models, out, {"tasks": names(tasks), **settings})


@click.command(context_settings=LM_EVAL_SPELLING)
@click.argument("models", nargs=-1, required=True)
@click.option("--out", default="soup", show_default=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--method", default="linear", show_default=True, type=click.Choice(SOUP_METHODS), help="How to merge.")
@click.option("--base", help="Base model's folder, for parameter_selection_resample.")
@click.option("--metric", help='The score that chooses: "metric" or "metric,filter"; needed where a task has several.')
@click.option("--test-tasks", default="", help="Tasks to score the finished soup on, once; others than --tasks.")
@evaluation_options
@user_errors
def soup(models: tuple[str, ...], tasks: str, test_tasks: str, **options: Any) -> None:
    """Merge those of MODELS that together score best on validation tasks, chosen one at a time.

    OUT/model is the merged model, OUT/soup.json says what was tried.
    """
    from ordermerge.commands.soup import make_soup
    from ordermerge.config.load import evaluation_section

    own = {name: options.pop(name) for name in ("out", "method", "base", "metric")}
    given = {"tasks": names(tasks), **{key: value for key, value in options.items() if value not in (None, "")}}
    make_soup(models, settings=evaluation_section(given), test_tasks=names(test_tasks), **own)


@click.command()
def tasks() -> None:
    """Print the folder of ordermerge's lm-eval tasks for your own data: for lm_eval's --include_path, or to copy."""
    from ordermerge.eval.task_data import PACK

    click.echo(PACK)
