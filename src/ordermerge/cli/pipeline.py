"""Commands that make sub-models and merges: `init`, `run`, `train`, `orders`, `merge`, `check`."""

from pathlib import Path

import click

from ordermerge.cli.options import JSON, RUNS_DIR, SET, WAIT, any_path, give_json, user_errors
from ordermerge.config import STAGES
from ordermerge.imports import quick_imports


@click.command()
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["prompt", "chat", "lora", "merge"]),
    default="prompt",
    show_default=True,
    help="Prompts and completions; chats; LoRA adapters; or a recipe that merges checkpoints you have.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="PATH|ID",
    help="Your base model; with --kind merge, your checkpoints too, a --model each. [a tiny random one is written]",
)
@user_errors
def init(folder: Path, kind: str, models: tuple[str, ...]) -> None:
    """Write an experiment, a recipe, records and a task to start from to DIR; they run as they are, offline.

    Every usual key of the experiment has a line that says what it is for. No file is overwritten.
    """
    from ordermerge.commands.init import start_project

    for path in start_project(folder, kind, models):
        click.echo(path)
    goes = "merge recipe.yml merged" if kind == "merge" else "run experiment.yml"
    click.echo(f"next: cd {folder} && ordermerge {goes}", err=True)


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check everything that can be checked, print the plan, and stop.")
@click.option(
    "--force",
    type=click.Choice(STAGES),
    help="Redo this stage and those after it, even if they are done.",
)
@SET
@RUNS_DIR
@JSON
@WAIT
@user_errors
def run(
    experiment: Path,
    dry_run: bool,
    force: str | None,
    changes: tuple[str, ...],
    runs_dir: Path,
    json_file: Path | None,
) -> None:
    """Train, merge, evaluate and report, as the EXPERIMENT file says.

    Run it again to go on after an interruption: what is done is not done twice.
    """
    if json_file is not None and not dry_run:
        raise click.UsageError("--json goes with --dry-run; `ordermerge report RUN --json` has the results of a run")
    with quick_imports():
        from ordermerge.commands.finished import show_if_finished

    if not dry_run and force is None and show_if_finished(experiment, runs_dir, changes):
        return
    with quick_imports():
        from ordermerge.commands.run import run_experiment

    give_json(run_experiment(experiment, runs_dir, changes=changes, force=force, dry_run=dry_run), json_file)


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--order", help="Train only this order (0 to K-1) or control (its name), as in a Slurm array.")
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
@SET
@RUNS_DIR
@WAIT
@user_errors
def train(
    experiment: Path,
    order: str | None,
    executor: str,
    cpus_per_order: int | None,
    gpus_per_order: float | None,
    changes: tuple[str, ...],
    runs_dir: Path,
) -> None:
    """Fine-tune the base model once for each order of the data, and for each control."""
    if executor == "local" and (cpus_per_order, gpus_per_order) != (None, None):
        raise click.UsageError("--cpus-per-order and --gpus-per-order go with --executor ray")
    if order is not None and order.startswith("-"):
        raise click.UsageError(f"--order is a number from 0 on, or the name of a control; got {order}")
    with quick_imports():
        from ordermerge.commands.run import train_experiment
        from ordermerge.train.distributed import rank
        from ordermerge.train.ray_executor import Resources

    on_ray = Resources(cpus_per_order or 1, gpus_per_order) if executor == "ray" else None
    directories = train_experiment(experiment, runs_dir, changes=changes, only=order, on_ray=on_ray)
    for directory in directories if rank() == 0 else []:
        click.echo(directory)


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes will train one order; the strategy `batch` depends on it.",
)
@JSON
@SET
@user_errors
def orders(experiment: Path, processes: int, json_file: Path | None, changes: tuple[str, ...]) -> None:
    """Show the orders that training will use, and how balanced they are, without training.

    The data is loaded and tokenised as training does it, as that decides which samples are left; no model is loaded.
    """
    with quick_imports():
        from ordermerge.commands.orders import preview, print_summary

    summary = preview(experiment, changes=changes, processes=processes)
    if not give_json(summary, json_file):
        print_summary(summary)


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    options_metavar="",
)
@click.argument(
    "arguments",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=any_path,
    metavar="RECIPE OUT [--by-name] [--adapter [--rank R]] [mergekit-yaml's options]",
)
@user_errors
def merge(arguments: tuple[str, ...]) -> None:
    """Merge models with mergekit, with the recipe checked first. Takes mergekit-yaml's options."""
    with quick_imports():
        from mergekit.options import MergeOptions, PrettyPrintHelp
        from mergekit.scripts.run_yaml import main as mergekit_yaml

        from ordermerge.commands.merging import merge as merge_recipe
        from ordermerge.locks import waits

    command = PrettyPrintHelp(
        "merge",
        callback=mergekit_yaml.callback,
        params=[*mergekit_yaml.params, *_merge_options()],
        help=_MERGE_HELP,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    try:
        context = command.make_context("ordermerge merge", list(arguments))
    except ValueError as error:  # mergekit's parser of sizes
        raise click.UsageError(f"--out-shard-size must be a number such as 5B, 200M or 10k; got {error}") from error
    recipe, out = Path(context.params.pop("config_file")), Path(context.params.pop("out_path"))
    given = {name: context.params.pop(name) for name in ("by_name", "adapter", "rank", "max_loss")}
    waits.set(context.params.pop("wait"))
    options = MergeOptions(**context.params)
    if not given["adapter"] and (given["rank"] or given["max_loss"] is not None):
        raise click.UsageError("--rank and --max-loss go with --adapter")
    if given["adapter"] and given["by_name"]:
        raise click.UsageError("--by-name is for whole models; --adapter takes what adapters adapt, by its name")
    options.apply_global_options()
    if given["adapter"]:
        from ordermerge.commands.adapter_merge import merge_adapters

        made = merge_adapters(recipe, out, options, rank=given["rank"], most_lost=given["max_loss"])
        click.echo(f"merged {recipe} into {out}: {made}", err=True)
        return
    merge_recipe(recipe, out, options, by_name=given["by_name"])
    click.echo(f"merged {recipe} into {out}", err=True)


_MERGE_HELP = """Merge the models of the recipe CONFIG_FILE into OUT_PATH: `mergekit-yaml`, and what it lacks.

    The recipe is checked first: misspelt and misplaced keys, models that do not fit together, tensors that would be
    lost. The model is whole or absent. Config, tokenizer and chat template come from the first sub-model, not from the
    base model, and relative paths are looked for in the recipe's folder too. Methods that measure the whole model first
    work. Added options: --by-name, --adapter, --rank, --max-loss, --wait; all others are mergekit-yaml's.
    """


def _merge_options() -> list[click.Parameter]:
    """Return the options of `ordermerge merge` that mergekit-yaml has not."""
    wait = click.Option(["--wait"], is_flag=True, help="Wait for another process that merges there")
    by_name = click.Option(["--by-name"], is_flag=True, help="Merge by tensor name, without tables of architectures")
    adapter = click.Option(["--adapter"], is_flag=True, help="Merge adapters to an adapter: an average, exactly")
    rank = click.Option(
        ["--rank"], type=click.IntRange(min=1), help="With --adapter: the most that it may have, by SVD"
    )
    most_lost = click.Option(
        ["--max-loss"],
        type=click.FloatRange(0, 1),
        help="With --rank: the share of the change's squared norm that may be lost  [0.05; of averages: 1]",
    )
    return [by_name, adapter, rank, most_lost, wait]


@click.command(name="frank-wolfe")
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(min=0), default=10, show_default=True, help="Steps in all.")
@click.option("--scale", type=float, default=0.3, show_default=True, help="Multiplies the sub-models' changes.")
@click.option("--step-size", type=float, default=1.0, show_default=True, help="Multiplies the steps, 2 / (t + 2).")
@WAIT
@user_errors
def frank_wolfe(run_directory: Path, steps: int, scale: float, step_size: float) -> None:
    """Merge a RUN directory's sub-models step by step along the gradient of the validation loss (FW-Merging).

    The model goes to RUN/frank_wolfe, what was chosen for each tensor to RUN/frank_wolfe.json. Run it again to go
    on after an interruption, or with more steps.
    """
    from ordermerge.commands.frank_wolfe import merge_along_gradient

    click.echo(merge_along_gradient(run_directory, steps=steps, scale=scale, step_size=step_size))


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import json

    from ordermerge.config.reference import experiment_schema

    click.echo(json.dumps(experiment_schema(), indent=1))
    context.exit()


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of the experiment file, for editors, and stop.",
)
@click.option("--deep", is_flag=True, help="Of a run directory: read every file that was made, and compare digests.")
@click.option(
    "--explain", is_flag=True, help="Of a recipe: what each model is really multiplied with, tensor by tensor."
)
@SET
@JSON
@user_errors
def check(file: Path, deep: bool, explain: bool, changes: tuple[str, ...], json_file: Path | None) -> None:
    """Check a mergekit recipe or an experiment FILE, or that a run directory's files are as they were made.

    All problems are reported at once.
    """
    from ordermerge.errors import UserError

    if file.is_dir() and explain:
        raise click.UsageError("--explain goes with a recipe file")
    try:
        kind, said = _check(file, deep, changes)
    except UserError as error:
        give_json({"file": str(file), "problems": error.problems}, json_file)
        raise
    if not give_json({"file": str(file), "kind": kind, "problems": []}, json_file):
        click.echo(f"{file}: {said}")
        if explain:
            from ordermerge.commands.explain_recipe import explain_recipe

            explain_recipe(file)


def _check(file: Path, deep: bool, changes: tuple[str, ...]) -> tuple[str, str]:
    """Return what a file is, and what to say of it, if nothing is wrong with it."""
    from ordermerge.errors import UserError

    if file.is_dir():
        if changes:
            raise click.UsageError("--set goes with an experiment file")
        from ordermerge.commands.check_run import check_run

        problems, old = check_run(file, deep=deep)
        for marker in old:
            click.echo(f"warning: {marker}: holds no digests, so its files were not checked", err=True)
        if problems:
            raise UserError(problems)
        how = "what they were when made" if deep else "of the size and time they were made with (`--deep` reads them)"
        return "run", f"all other files are {how}" if old else f"all files are {how}"
    if deep:
        raise click.UsageError("--deep goes with a run directory")
    with quick_imports():
        from ordermerge.commands.check_file import check_file

    kind = check_file(file, changes)
    return kind, f"the {kind} is well-formed"
