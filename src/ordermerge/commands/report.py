"""The report of a run, report.md and report.html: what it found, and how to get every number of it again."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ordermerge.commands.html import html_page
from ordermerge.config.schema import MADE_WITH, Experiment
from ordermerge.errors import UserError
from ordermerge.eval.comparison.record import FILE as COMPARISON
from ordermerge.eval.comparison.record import Comparison, ComparisonReport, load_comparison
from ordermerge.eval.comparison.table import REFERENCES, markdown_comparison
from ordermerge.eval.run_figures import effect_figure, learning_figure
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.scoring.table import ARROWS, NO_FILTER, Row, markdown_table
from ordermerge.files import read_yaml, write_text
from ordermerge.run_directory import model_paths, open_run

EXPERIMENT = "experiment.yml"
FIGURES = "figures"
_ALPHA = 0.05


def write_report(run_directory: Path) -> Path:
    """Write `report.md` and `report.html` of a run from the files that it holds.

    Args:
        run_directory: The run directory, with all orders trained.

    Returns:
        The Markdown file.

    Raises:
        UserError: If the directory holds no run, or a part of it is missing or damaged.
    """
    experiment = open_run(run_directory)
    resolved = read_yaml(run_directory / EXPERIMENT)
    made = resolved.pop(MADE_WITH, None)
    orders = [_order_record(run_directory / "orders" / str(k)) for k in range(experiment.orders.count)]
    tasks = experiment.evaluation.tasks if experiment.evaluation else []
    rows = load_rows(run_directory / "eval", model_paths(experiment, run_directory), tasks)
    sections = {
        "Scores": _scores(rows),
        "What merging changed": _comparison(run_directory, rows),
        "Learning curves": _learning(run_directory, orders),
        "Position of samples": _imbalance(run_directory),
        "Models": _models(experiment),
        "Cost": _cost(experiment, orders),
        "Reproduce": _reproduce(run_directory, made) if made else "",
        "Experiment": f"```yaml\n{yaml.safe_dump(resolved, sort_keys=False).rstrip()}\n```",
    }
    parts = [f"# {experiment.name}", *(f"## {title}\n\n{text.rstrip()}" for title, text in sections.items() if text)]
    text = "\n\n".join(parts) + "\n"
    report = run_directory / "report.md"
    write_text(report, text)
    write_text(report.with_suffix(".html"), html_page(text, experiment.name, run_directory))
    return report


def _order_record(folder: Path) -> dict[str, Any]:
    marker = folder / "order" / "order.json"
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not trained yet; `ordermerge run` trains it and writes the report") from None
    except ValueError as error:
        raise UserError(f"{marker}: damaged ({error}); redo the order with `--force train`") from None


def _scores(rows: list[Row]) -> str:
    if not rows:
        return "Nothing was evaluated: the experiment has no `evaluation` section, or `ordermerge run` did not finish."
    sizes = dict.fromkeys(f"{row.task}: {row.n:,} documents." for row in rows if row.n is not None)
    return "\n\n".join([markdown_table(rows).rstrip(), *sizes, "From lm-eval's results, `eval/MODEL/results_*.json`."])


def _comparison(run_directory: Path, rows: list[Row]) -> str:
    file = run_directory / "eval" / COMPARISON
    if not rows or not file.exists():
        return ""
    report = load_comparison(file)
    parts = list(in_short(report))
    if report.comparisons:
        figure, *_ = effect_figure(report, run_directory / FIGURES / "effects")
        parts.append(_picture(run_directory, figure, f"Differences with their {report.confidence:.0%} intervals"))
    parts += [
        markdown_comparison(report),
        f"From `eval/{COMPARISON}`, which names the sample files behind each number.",
    ]
    return "\n\n".join(parts)


def in_short(report: ComparisonReport) -> Iterator[str]:
    """Yield for each metric, as Markdown, how many merged models differ from each reference.

    Args:
        report: The comparison.
    """
    groups: dict[tuple[str, str, str], dict[str, list[Comparison]]] = {}
    for one in report.comparisons:
        groups.setdefault((one.task, one.metric, one.filter), {}).setdefault(one.reference, []).append(one)
    for (task, metric, filter_name), references in groups.items():
        first = next(iter(references.values()))[0]
        title = f"{task} {metric}{'' if filter_name == NO_FILTER else ' ' + filter_name}"
        lines = [f"{title}{ARROWS[first.higher_is_better]}, p corrected for {len(report.comparisons)} comparisons:", ""]
        for name in REFERENCES:
            if found := references.get(name):
                sure = [one for one in found if one.p_value_holm < _ALPHA]
                up = sum(one.difference > 0 for one in sure)
                lines.append(
                    f"- against {REFERENCES[name]}: of {len(found)} merged models {up} higher, {len(sure) - up} lower, "
                    f"{len(found) - len(sure)} not told apart"
                )
        yield "\n".join(lines)


def _learning(run_directory: Path, orders: list[dict[str, Any]]) -> str:
    curves = {
        kind: {
            f"order_{record['order']}": [(entry["step"], entry["loss"]) for entry in record.get(kind, [])]
            for record in orders
        }
        for kind in ("losses", "eval_losses")
    }
    if not all(curves["losses"].values()):
        return ""
    figure, *_ = learning_figure(curves["losses"], curves["eval_losses"], run_directory / FIGURES / "learning")
    return _picture(run_directory, figure, "Loss along the training steps") + "\n\nFrom `orders/K/order/order.json`."


def _imbalance(run_directory: Path) -> str:
    folder = run_directory / "imbalance"
    if not (folder / "imbalance.json").exists():
        return ""
    words = json.loads((folder / "imbalance.json").read_text(encoding="utf-8"))["in_words"]
    pictures = [_picture(run_directory, path, path.stem.replace("_", " ")) for path in sorted(folder.glob("*.png"))]
    return "\n\n".join(["\n".join(f"- {line}" for line in words), *pictures, "From `imbalance/imbalance.json`."])


def _picture(run_directory: Path, path: Path, caption: str) -> str:
    return f"![{caption}]({path.relative_to(run_directory).as_posix()})"


def _models(experiment: Experiment) -> str:
    orders, count = experiment.orders, experiment.orders.count
    drawn = f"seed {orders.seed}" if orders.file is None else f"from {orders.file}"
    lines = [
        f"- `base`: {experiment.model.path}, before fine-tuning",
        f"- `order_0` to `order_{count - 1}`: sub-models, one for each of {count} orders of the same data "
        f"(strategy `{orders.strategy}`, {drawn})",
    ]
    for name, recipe in experiment.merges.items():
        lines.append(f"- `{name}`: the {count} sub-models merged with `{recipe.get('merge_method')}`")
    return "\n".join(lines)


def _cost(experiment: Experiment, orders: list[dict[str, Any]]) -> str:
    """Say what the merged models cost, because training once for longer is the alternative to them."""
    consumed = sum(order["samples_consumed"] for order in orders)
    seconds = sum(order["seconds"] for order in orders)
    single = f"A sub-model was trained on {orders[0]['samples_consumed']:,} samples, in {seconds / len(orders):,.0f} s."
    if not experiment.merges:
        return single
    return (
        f"{single} A merged model used all {len(orders)}: {consumed:,} samples, {seconds:,.0f} s. One run on as many "
        "samples costs the same; whether it scores better is not measured here."
    )


def _reproduce(run_directory: Path, made: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        "```",
        shlex.join(["ordermerge", "run", _typed(Path(made["file"])), "--runs-dir", _typed(run_directory.parent)]),
        shlex.join(["ordermerge", "report", _typed(run_directory)]),
        "```",
        "",
        "- orders: `orders/K/order/` (what was trained on, when), recipes: `recipes/NAME.yml` (each names its command)",
        "- scores: `eval/MODEL/` holds lm-eval's own result and sample files",
        f"- figures: each is there as PNG, SVG and CSV, in `{FIGURES}/` and `imbalance/`",
        f"- commit: {made['git_commit'] or 'not in a git checkout'}",
        f"- versions: {versions}",
        f"- platform: {made['platform']}",
    ]
    return "\n".join(lines)


def _typed(path: Path) -> str:
    """Return a path as one would type it: relative to the working directory where it is below that."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
