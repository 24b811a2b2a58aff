"""Commands that score models with lm-eval, and compare what it scored: `eval`, `compare`, `soup`, `pareto`, `tasks`."""

from pathlib import Path
from typing import Any

import click

from ordermerge.cli.options import (
    JSON,
    LM_EVAL_SPELLING,
    WAIT,
    LmEvalCommand,
    any_path,
    evaluation_options,
    give_json,
    names,
    user_errors,
)
from ordermerge.imports import quick_imports

SOUP_METHODS = ("linear", "parameter_selection", "parameter_selection_resample")


@click.command(name="eval", cls=LmEvalCommand, context_settings=LM_EVAL_SPELLING)
@click.argument("models", nargs=-1, shell_complete=any_path)
@click.option(
    "--out",
    "--output-path",
    "-o",
    "out",
    default="eval-results",
    show_default=True,
    type=click.Path(path_type=Path),
    help="For results.",
)
@click.option("--force", is_flag=True, help="Score anew what is scored already, also where it was scored otherwise.")
@click.option("--ensemble", is_flag=True, help="Score the mean of all MODELS' token probabilities too.")
@evaluation_options
@JSON
@WAIT
@user_errors
def evaluate(
    models: tuple[str, ...], out: Path, force: bool, tasks: str, json_file: Path | None, **settings: Any
) -> None:
    """Score MODELS (folders or hub ids) with lm-evaluation-harness and print one table.

    A mergekit recipe (a YAML file) counts as the model that it makes: merged to a temporary folder, scored, removed.
    Options may be written as lm-eval writes them, with underscores or as one letter. `--tasks list` prints the tasks
    there are, your own below --include-path first; `ordermerge tasks` has tasks for your own data.
    """
    if tasks == "list":
        from ordermerge.eval.scoring.tasks import listed_tasks

        click.echo(listed_tasks(settings["include_path"]))
        return
    if not models:
        named = next((part for part in settings["model_args"].split(",") if part.startswith("pretrained=")), "")
        here = f" `{named}` is written `ordermerge eval {named.partition('=')[2]}` here." if named else ""
        raise click.UsageError(f"Missing argument 'MODELS...'.{here}")
    from dataclasses import asdict

    with quick_imports():
        from ordermerge.commands.evaluate import evaluate_models, print_scores

    rows = evaluate_models(models, out, {"tasks": names(tasks), **settings}, force=force)
    if not give_json([asdict(row) for row in rows], json_file):
        print_scores(rows, out, names(tasks))


@click.command()
@click.argument("results", nargs=-1, required=True, shell_complete=any_path)
@click.option("--reference", help="`mean` or `best` of the models, or one model's name or folder. [the first model]")
@click.option("--tasks", default="", help="Only these tasks and groups, comma-separated.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Also write JSON, Markdown, one HTML page and a plot here."
)
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@JSON
@user_errors
def compare(
    results: tuple[str, ...], reference: str | None, tasks: str, out: Path | None, form: str, json_file: Path | None
) -> None:
    """Compare models by RESULTS of lm-eval on disk, document by document, with intervals and corrected p-values.

    RESULTS are folders of `lm_eval --log_samples --output_path`, of `ordermerge eval` or of `ordermerge run`.
    """
    from dataclasses import asdict

    with quick_imports():
        from ordermerge.commands.compare import compare_results, print_csv, write_files
        from ordermerge.eval.comparison.table import print_comparison
        from ordermerge.eval.scoring.table import print_table

    rows, report = compare_results(results, reference=reference, tasks=names(tasks), start=out)
    if out:
        for file in write_files(rows, report, out):
            click.echo(f"wrote {file}", err=True)
    if give_json(asdict(report), Path("-") if form == "json" else json_file):
        return
    if form == "csv":
        print_csv(report)
        return
    print_table(rows)
    print_comparison(report)


@click.command(cls=LmEvalCommand, context_settings=LM_EVAL_SPELLING)
@click.argument("models", nargs=-1, required=True, shell_complete=any_path)
@click.option("--out", default="soup", show_default=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--method", default="linear", show_default=True, type=click.Choice(SOUP_METHODS), help="How to merge.")
@click.option("--base", shell_complete=any_path, help="Base model's folder, for parameter_selection_resample.")
@click.option("--metric", help='The score that chooses: "metric" or "metric,filter"; needed where a task has several.')
@click.option("--test-tasks", default="", help="Tasks to score the finished soup on, once; others than --tasks.")
@evaluation_options
@user_errors
def soup(models: tuple[str, ...], tasks: str, test_tasks: str, **options: Any) -> None:
    """Merge those of MODELS (folders or recipes) that together score best on validation tasks, chosen one at a time.

    OUT/model is the merged model, OUT/soup.json says what was tried.
    """
    with quick_imports():
        from ordermerge.commands.soup import make_soup
        from ordermerge.config.load import evaluation_section

    own = {name: options.pop(name) for name in ("out", "method", "base", "metric")}
    given = {"tasks": names(tasks), **{key: value for key, value in options.items() if value not in (None, "")}}
    make_soup(models, settings=evaluation_section(given), test_tasks=names(test_tasks), **own)


@click.command(cls=LmEvalCommand, context_settings=LM_EVAL_SPELLING)
@click.argument("models", nargs=-1, required=True, shell_complete=any_path)
@click.option(
    "--base", shell_complete=any_path, required=True, help="The model that they were fine-tuned from: a folder."
)
@click.option("--out", default="pareto", show_default=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--samples", type=click.IntRange(min=1), help="Merges to fit to. [twice the parameters of a quadratic]")
@click.option("--points", type=click.IntRange(min=2), default=10, show_default=True, help="Most that are then tried.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples, and of the search."
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help='The score that counts: "metric" or "metric,filter"; repeat it, in the order of --tasks, where they differ.',
)
@click.option("--force", is_flag=True, help="Score anew what is scored already, also where it was scored otherwise.")
@evaluation_options
@JSON
@WAIT
@user_errors
def pareto(
    models: tuple[str, ...],
    base: str,
    out: Path,
    samples: int | None,
    points: int,
    seed: int,
    metrics: tuple[str, ...],
    force: bool,
    tasks: str,
    json_file: Path | None,
    **settings: Any,
) -> None:
    """Find the merges of MODELS (folders) that trade the score of one of several tasks best for those of others (MAP).

    Each is BASE + a sum of the models' changes, times coefficients from 0 to 1. OUT/front has the recipes,
    OUT/pareto.json all that was scored. Run it again to go on after an interruption.
    """
    from dataclasses import asdict

    with quick_imports():
        from ordermerge.commands.pareto import find_front, new_search
        from ordermerge.eval.front import print_front

    search = new_search(models, base, out, {"tasks": names(tasks), **settings}, metrics, force=force)
    found = find_front(search, samples=samples, points=points, seed=seed)
    if not give_json(asdict(found), json_file):
        print_front(found)
        click.echo(f"wrote {out / 'front'}, {out / 'pareto.json'} and {out / 'pareto.png'}", err=True)


@click.command()
def tasks() -> None:
    """Print the folder of ordermerge's lm-eval tasks for your own data: for lm_eval's --include_path, or to copy."""
    from ordermerge.eval.task_data import PACK

    click.echo(PACK)
