"""The command line. Each command imports what it needs itself, so that `--help` is quick."""

import os

import click

from ordermerge import __version__
from ordermerge.cli import analysis, evaluation, pipeline
from ordermerge.cli.options import DEBUG
from ordermerge.console import take_any_text


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ordermerge")
@click.option("--debug", is_flag=True, help="Show the traceback behind an error; so does ORDERMERGE_DEBUG=1.")
def main(debug: bool) -> None:
    """Fine-tune one model on the same data in several orders, merge the results, and score what it bought."""
    if debug:
        os.environ[DEBUG] = "1"
    take_any_text()
    # Fast enough to never notice, and it keeps tokenizers from warning about every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


for _command in (
    pipeline.init, pipeline.run, pipeline.train, pipeline.orders, pipeline.merge, pipeline.frank_wolfe, pipeline.check,
    evaluation.evaluate, evaluation.compare, evaluation.soup, evaluation.pareto, evaluation.tasks,
    analysis.inspect, analysis.losses, analysis.imbalance, analysis.noise, analysis.curve,
    analysis.report, analysis.card,
):  # fmt: skip
    main.add_command(_command)
