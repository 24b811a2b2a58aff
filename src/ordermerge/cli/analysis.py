"""Commands that explain models and runs: `inspect`, `losses`, `imbalance`, `noise`, `curve`, `report`, `card`."""

from pathlib import Path

import click

from ordermerge.cli.options import JSON, WAIT, any_path, give_json, names, user_errors
from ordermerge.imports import quick_imports


@click.command()
@click.argument("models", nargs=-1, required=True, shell_complete=any_path)
@click.option(
    "--base",
    shell_complete=any_path,
    required=True,
    help="The model that they were fine-tuned from: a folder or hub id.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Compare as a recipe with this dtype would; default: what MODELS are stored in.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write inspect.json, CSV tables and a heat map here.")
@JSON
@user_errors
def inspect(models: tuple[str, ...], base: str, dtype: str | None, out: Path | None, json_file: Path | None) -> None:
    """Tell from the files of MODELS whether merging them, and resampling, will matter.

    Values unchanged from the base model, agreement of the task vectors, what resampling will reach; per layer.
    """
    with quick_imports():
        from ordermerge.eval.inspect.inspection import inspect_models, write_inspection
        from ordermerge.eval.inspect.tables import print_report

    found = inspect_models(base, models, dtype=dtype)
    if not give_json(found, json_file):
        print_report(found)
    if out:
        write_inspection(found, out)
        click.echo(f"wrote {out}", err=True)


@click.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, help="Only this model (base, order_0, a merge's name); repeatable.")
@click.option("--device", help='Such as "cuda:0" or "cpu"; the accelerator if there is one, if not given.')
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Most tokens in a batch."
)
@click.option("--steps", is_flag=True, help="Validation losses along the training instead, from its step checkpoints.")
@user_errors
def losses(run_directory: Path, models: tuple[str, ...], device: str | None, batch_tokens: int, steps: bool) -> None:
    """Take each sample's loss under each model of a RUN directory.

    Run it again to go on after an interruption: models whose losses are there are skipped.
    """
    with quick_imports():
        from ordermerge.commands.losses import take_losses
        from ordermerge.commands.measure import Machine
        from ordermerge.commands.step_losses import take_step_losses

    if steps and models:
        raise click.UsageError("--steps measures all models of the run; leave out --model")
    machine = Machine(device, batch_tokens)
    files = take_step_losses(run_directory, machine) if steps else take_losses(run_directory, machine, only=models)
    for file in files:
        click.echo(file)


@click.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--bins", type=click.IntRange(min=2), default=10, show_default=True, help="How many bins the curves have."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of permutations and bootstrap.")
@user_errors
def imbalance(run_directory: Path, bins: int, seed: int) -> None:
    """Say whether the position of a sample in the training order shows in its loss, from what `losses` found.

    Figures, their data and all numbers go to RUN/imbalance.
    """
    with quick_imports():
        from ordermerge.eval.imbalance.analysis import analyse

    click.echo(f"numbers: {analyse(run_directory, bins=bins, seed=seed)}", err=True)


@click.command()
@click.argument("results", metavar="RUN...", nargs=-1, required=True, shell_complete=any_path)
@click.option(
    "--difference",
    "differences",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="Of mean scores, to judge; repeatable.",
)
@click.option("--tasks", default="", help="Only these tasks and groups, comma-separated.")
@JSON
@user_errors
def noise(results: tuple[str, ...], differences: tuple[float, ...], tasks: str, json_file: Path | None) -> None:
    """Tell how much of a score's spread over the orders of each RUN is order noise, and how much the documents'.

    And what that means: how often one run each gets the sign of a difference wrong, how many runs it takes to see it.
    Each RUN is a family of orders; other folders of lm-eval results are taken for repeats of one run.
    """
    from dataclasses import asdict

    with quick_imports():
        from ordermerge.commands.noise import measure_noise
        from ordermerge.eval.comparison.noise import print_noise

    found = measure_noise(results, tasks=names(tasks), differences=differences)
    if not give_json(asdict(found), json_file):
        print_noise(found)


@click.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--merge", help="Name of the merge. [the first one]")
@click.option("--sample", type=click.IntRange(min=1), default=20, show_default=True, help="Most merges of one size.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw where there are more.")
@JSON
@user_errors
def curve(run_directory: Path, merge: str | None, sample: int, seed: int, json_file: Path | None) -> None:
    """Merge and score k of the K orders of a RUN directory, k = 1 to K: what one more order is worth.

    Each merge is made in a temporary folder, scored and removed; run it again to go on after an interruption. The
    comparison and the report then also say what other training orders would change.
    """
    from dataclasses import asdict

    with quick_imports():
        from ordermerge.commands.curve import make_curve
        from ordermerge.commands.report import write_report
        from ordermerge.commands.run_comparison import compare_run
        from ordermerge.eval.comparison.curve import print_curves

    plan, curves = make_curve(run_directory, merge, sample=sample, seed=seed)
    compare_run(plan)
    file = write_report(run_directory)
    if not give_json([asdict(one) for one in curves], json_file):
        print_curves(curves)
        click.echo(f"report: {file}")


@click.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@JSON
@WAIT
@user_errors
def report(run_directory: Path, json_file: Path | None) -> None:
    """Write report.md and report.html of a RUN directory anew, as after `losses` and `imbalance`."""
    with quick_imports():
        from ordermerge.commands.report import report_numbers, write_report

    file = write_report(run_directory)
    if not give_json(report_numbers(run_directory), json_file):
        click.echo(f"{file}\n{file.with_suffix('.html')}")


@click.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@user_errors
def card(run_directory: Path) -> None:
    """Put the scores into the model cards of a RUN directory's merged models, as the hub shows them."""
    with quick_imports():
        from ordermerge.commands.model_card import write_cards

    for file in write_cards(run_directory):
        click.echo(file)
