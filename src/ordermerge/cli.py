"""The command line. Each command imports what it needs itself, so that `--help` is quick."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ordermerge import __version__
from ordermerge.errors import UserError
from ordermerge.options import LM_EVAL_NAMES, evaluation_options, names
from ordermerge.stages import STAGES

SOUP_METHODS = ("linear", "parameter_selection", "parameter_selection_resample")
RUNS_DIR = click.option(
    "--runs-dir", default="runs", show_default=True, type=click.Path(path_type=Path), help="Holds the run directories."
)


def _user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a user's mistake into one clear message and exit status 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except Exception as error:
            # safetensors says "no space left" and the like by an exception of its own; importing it here takes time.
            if isinstance(error, (UserError, OSError)) or type(error).__name__ == "SafetensorError":
                raise click.ClickException(str(error)) from error
            raise

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ordermerge")
def main() -> None:
    """Fine-tune one model on the same data in several orders, merge the results, and score what it bought."""
    # Fast enough to never notice, and it keeps tokenizers from warning about every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked, print the plan, and stop.")
@click.option(
    "--force",
    type=click.Choice(STAGES),
    help="Redo this stage and those after it, even if they are done.",
)
@RUNS_DIR
@_user_errors
def run(experiment: Path, dry_run: bool, force: str | None, runs_dir: Path) -> None:
    """Train, merge, evaluate and report, as the EXPERIMENT file says.

    Run it again to go on after an interruption: what is done is not done twice.
    """
    from ordermerge.run import run_experiment

    run_experiment(experiment, runs_dir, force=force, dry_run=dry_run)


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--order", type=click.IntRange(min=0), help="Train only this order (0 to K-1), as in a Slurm array.")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="One order after another here, or all of them on a Ray cluster: $RAY_ADDRESS, or this machine.",
)
@click.option("--cpus-per-order", type=click.IntRange(min=1), help="With ray: CPUs, and threads, of each order. [1]")
@click.option(
    "--gpus-per-order", type=click.FloatRange(0, 1), help="With ray: GPUs of each order. [1 if there are any]"
)
@RUNS_DIR
@_user_errors
def train(
    experiment: Path,
    order: int | None,
    executor: str,
    cpus_per_order: int | None,
    gpus_per_order: float | None,
    runs_dir: Path,
) -> None:
    """Fine-tune the base model once for each order of the data."""
    if executor == "local" and (cpus_per_order, gpus_per_order) != (None, None):
        raise click.UsageError("--cpus-per-order and --gpus-per-order go with --executor ray")
    from ordermerge.run import train_experiment
    from ordermerge.train import Resources
    from ordermerge.train.processes import rank

    on_ray = Resources(cpus_per_order or 1, gpus_per_order) if executor == "ray" else None
    directories = train_experiment(experiment, runs_dir, only=order, on_ray=on_ray)
    for directory in directories if rank() == 0 else []:
        click.echo(directory)


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes will train one order; the strategy `batch` depends on it.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers to this file too.")
@_user_errors
def orders(experiment: Path, processes: int, json_file: Path | None) -> None:
    """Show the orders that training will use, and how balanced they are, without training.

    The data is loaded and tokenised as training does it, as that decides which samples are left; no model is loaded.
    """
    from ordermerge.preview import show_orders

    show_orders(experiment, processes=processes, json_file=json_file)


@main.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    options_metavar="",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="RECIPE OUT [mergekit-yaml's options]")
@_user_errors
def merge(arguments: tuple[str, ...]) -> None:
    """Merge models with mergekit, with the recipe checked first. Takes mergekit-yaml's options."""
    from mergekit.options import MergeOptions
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    from ordermerge.merging import merge as merge_recipe

    try:
        context = mergekit_yaml.make_context("ordermerge merge", list(arguments))
    except ValueError as error:  # mergekit's parser of sizes
        raise click.UsageError(f"--out-shard-size must be a number such as 5B, 200M or 10k; got {error}") from error
    recipe, out = Path(context.params.pop("config_file")), Path(context.params.pop("out_path"))
    options = MergeOptions(**context.params)
    options.apply_global_options()
    merge_recipe(recipe, out, options)
    click.echo(f"merged {recipe} into {out}", err=True)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_user_errors
def check(file: Path) -> None:
    """Check a mergekit recipe or an experiment FILE; report all problems at once."""
    from ordermerge.run import check_file

    kind = check_file(file)
    click.echo(f"{file}: the {kind} is well-formed")


@main.command(name="eval", context_settings=LM_EVAL_NAMES)
@click.argument("models", nargs=-1, required=True)
@click.option("--out", default="eval-results", show_default=True, type=click.Path(path_type=Path), help="For results.")
@evaluation_options
@_user_errors
def evaluate(models: tuple[str, ...], out: Path, tasks: str, **settings: Any) -> None:
    """Score MODELS (folders or hub ids) with lm-evaluation-harness and print one table.

    Options may be written as lm-eval writes them, with underscores. `ordermerge tasks` has tasks for your own data.
    """
    from ordermerge.run import evaluate_models

    evaluate_models(models, out, {"tasks": names(tasks), **settings})


@main.command(context_settings=LM_EVAL_NAMES)
@click.argument("models", nargs=-1, required=True)
@click.option("--out", default="soup", show_default=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--method", default="linear", show_default=True, type=click.Choice(SOUP_METHODS), help="How to merge.")
@click.option("--base", help="Base model's folder, for parameter_selection_resample.")
@click.option("--metric", help='The score that chooses: "metric" or "metric,filter"; needed where a task has several.')
@click.option("--test-tasks", default="", help="Tasks to score the finished soup on, once; others than --tasks.")
@evaluation_options
@_user_errors
def soup(models: tuple[str, ...], tasks: str, test_tasks: str, **options: Any) -> None:
    """Merge those of MODELS that together score best on validation tasks, chosen one at a time.

    OUT/model is the merged model, OUT/soup.json says what was tried.
    """
    from ordermerge.experiment import evaluation_section
    from ordermerge.soup import make_soup

    own = {name: options.pop(name) for name in ("out", "method", "base", "metric")}
    given = {"tasks": names(tasks), **{key: value for key, value in options.items() if value not in (None, "")}}
    make_soup(models, settings=evaluation_section(given), test_tasks=names(test_tasks), **own)


@main.command()
def tasks() -> None:
    """Print the folder of ordermerge's lm-eval tasks for your own data: for lm_eval's --include_path, or to copy."""
    from ordermerge.eval.task_data import PACK

    click.echo(PACK)


@main.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--base", required=True, help="The model that they were fine-tuned from: a folder or hub id.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Compare as a recipe with this dtype would; default: what MODELS are stored in.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write inspect.json, CSV tables and a heat map here.")
@_user_errors
def inspect(models: tuple[str, ...], base: str, dtype: str | None, out: Path | None) -> None:
    """Tell from the files of MODELS whether merging them, and resampling, will matter.

    Values unchanged from the base model, agreement of the task vectors, what resampling will reach; per layer.
    """
    from ordermerge.eval.inspect import inspect_models, write_inspection
    from ordermerge.eval.inspect_report import print_report

    found = inspect_models(base, models, dtype=dtype)
    print_report(found)
    if out:
        write_inspection(found, out)
        click.echo(f"wrote {out}")


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, help="Only this model (base, order_0, a merge's name); repeatable.")
@click.option("--device", help='Such as "cuda:0" or "cpu"; the accelerator if there is one, if not given.')
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Most tokens in a batch."
)
@click.option("--steps", is_flag=True, help="Validation losses along the training instead, from its step checkpoints.")
@_user_errors
def losses(run_directory: Path, models: tuple[str, ...], device: str | None, batch_tokens: int, steps: bool) -> None:
    """Take each sample's loss under each model of a RUN directory.

    Run it again to go on after an interruption: models whose losses are there are skipped.
    """
    from ordermerge.losses import take_losses
    from ordermerge.measure import Machine
    from ordermerge.steps import take_step_losses

    if steps and models:
        raise click.UsageError("--steps measures all models of the run; leave out --model")
    machine = Machine(device, batch_tokens)
    files = take_step_losses(run_directory, machine) if steps else take_losses(run_directory, machine, only=models)
    for file in files:
        click.echo(file)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--bins", type=click.IntRange(min=2), default=10, show_default=True, help="How many bins the curves have."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of permutations and bootstrap.")
@_user_errors
def imbalance(run_directory: Path, bins: int, seed: int) -> None:
    """Say whether the position of a sample in the training order shows in its loss, from what `losses` found.

    Figures, their data and all numbers go to RUN/imbalance.
    """
    from ordermerge.imbalance import analyse

    click.echo(f"numbers: {analyse(run_directory, bins=bins, seed=seed)}", err=True)


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@_user_errors
def report(run_directory: Path) -> None:
    """Write report.md and report.html of a RUN directory anew, as after `losses` and `imbalance`."""
    from ordermerge.report import write_report

    file = write_report(run_directory)
    click.echo(f"{file}\n{file.with_suffix('.html')}")


@main.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@_user_errors
def card(run_directory: Path) -> None:
    """Put the scores into the model cards of a RUN directory's merged models, as the hub shows them."""
    from ordermerge.scored_card import write_cards

    for file in write_cards(run_directory):
        click.echo(file)


if __name__ == "__main__":
    sys.exit(main())
