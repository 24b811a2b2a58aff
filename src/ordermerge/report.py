"""One page that says what a run found and how to get every number of it again."""

import json
import os
import shlex
from pathlib import Path

from ordermerge.eval.comparison import ComparisonReport
from ordermerge.eval.comparison_table import markdown_comparison
from ordermerge.eval.table import Row, markdown_table
from ordermerge.experiment import Experiment
from ordermerge.files import write_text
from ordermerge.provenance import record


def write_report(
    experiment: Experiment, run_directory: Path, path: Path, rows: list[Row], comparison: ComparisonReport | None = None
) -> Path:
    """Write `report.md` of a run.

    Args:
        experiment: The experiment.
        run_directory: Its run directory.
        path: The experiment file.
        rows: The scores; none if nothing was evaluated.
        comparison: What is compared; None if there is nothing to compare.

    Returns:
        The file.
    """
    sizes = dict.fromkeys(f"{row.task}: {row.n:,} documents." for row in rows if row.n is not None)
    table = (
        "\n\n".join([markdown_table(rows).rstrip(), *sizes])
        if rows
        else "Nothing was evaluated: the experiment has no `evaluation` section."
    )
    sections = [
        f"# {experiment.name}",
        f"## Scores\n\n{table}",
        *([f"## Comparison\n\n{markdown_comparison(comparison)}"] if comparison else []),
        f"## Models\n\n{_models(experiment)}",
        f"## Cost\n\n{_cost(experiment, run_directory)}",
        f"## Reproduce\n\n{_reproduce(experiment, run_directory, path)}",
    ]
    report = run_directory / "report.md"
    write_text(report, "\n\n".join(section.rstrip() for section in sections) + "\n")
    return report


def _models(experiment: Experiment) -> str:
    count = experiment.orders.count
    lines = [
        f"- `base`: {experiment.model.path}, before fine-tuning",
        f"- `order_0` to `order_{count - 1}`: sub-models, one for each of {count} orders of the same data "
        f"(strategy `{experiment.orders.strategy}`, seed {experiment.orders.seed})",
    ]
    for name, recipe in experiment.merges.items():
        lines.append(f"- `{name}`: the {count} sub-models merged with `{recipe.get('merge_method')}`")
    return "\n".join(lines)


def _cost(experiment: Experiment, run_directory: Path) -> str:
    """Say what the merged models cost, because training once for longer is the alternative to them."""
    orders = [
        json.loads((run_directory / "orders" / str(k) / "order" / "order.json").read_text(encoding="utf-8"))
        for k in range(experiment.orders.count)
    ]
    consumed = sum(order["samples_consumed"] for order in orders)
    seconds = sum(order["seconds"] for order in orders)
    single = f"A sub-model was trained on {orders[0]['samples_consumed']:,} samples, in {seconds / len(orders):,.0f} s."
    if not experiment.merges:
        return single
    return (
        f"{single} A merged model used all {len(orders)}: {consumed:,} samples, {seconds:,.0f} s. One run on as many "
        "samples costs the same; whether it scores better is not measured here."
    )


def _reproduce(experiment: Experiment, run_directory: Path, path: Path) -> str:
    made = record(path.resolve().parent)
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        "```",
        shlex.join(["ordermerge", "run", _relative(path), "--runs-dir", _relative(run_directory.parent)]),
        "```",
        "",
        "- experiment with its defaults filled in: `experiment.yml`, beside this file",
        "- orders: `orders/K/order/` (what was trained on, when), recipes: `recipes/NAME.yml` (each names its command)",
        "- scores: `eval/NAME/` holds lm-eval's own result and sample files",
        "- comparison: `eval/comparison.json` names the methods and the files behind each number",
        f"- commit: {made['git_commit'] or 'not in a git checkout'}",
        f"- versions: {versions}",
        f"- platform: {made['platform']}",
    ]
    return "\n".join(lines)


def _relative(path: Path) -> str:
    """Return a path as one would type it: relative to the working directory where it is below that."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
