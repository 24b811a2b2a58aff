"""The report of a run, report.md and report.html: what it found, and how to get every number of it again."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ordermerge.commands.html import html_page
from ordermerge.commands.prices import annealing_note
from ordermerge.config.schema import LONGER, MADE_WITH, Experiment
from ordermerge.config.trainings import branched_price, control_runs, described, sub_models
from ordermerge.errors import UserError, counted
from ordermerge.eval.comparison.curve import FIGURE as CURVE_FIGURE
from ordermerge.eval.comparison.curve import FILE as CURVE
from ordermerge.eval.comparison.curve import NOTE, load_curves, markdown_curve
from ordermerge.eval.comparison.record import FILE as COMPARISON
from ordermerge.eval.comparison.record import Comparison, ComparisonReport, load_comparison
from ordermerge.eval.comparison.table import REFERENCES, markdown_comparison
from ordermerge.eval.imbalance.analysis import FIGURES as IMBALANCE_FIGURES
from ordermerge.eval.imbalance.analysis import Findings
from ordermerge.eval.run_figures import MOST_PANELS, effect_figure, learning_figure
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.scoring.table import ARROWS, NO_FILTER, Row, markdown_table
from ordermerge.eval.tables import markdown_text
from ordermerge.files import write_text
from ordermerge.ingredients import models_in_words
from ordermerge.locks import lock
from ordermerge.run_directory import (
    ENSEMBLE,
    EXPERIMENT,
    REPORT,
    OrderRecord,
    curve_folder,
    evaluation_folder,
    open_run,
    order_folder,
    order_record,
    recipe_file,
    scored_models,
)
from ordermerge.yaml_json import read_json, read_yaml

FIGURES = "figures"
_NOTED = {"file", "versions", "git_commit", "platform"}


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
    with lock(run_directory / REPORT):
        return _write(experiment, run_directory)


def _write(experiment: Experiment, run_directory: Path) -> Path:
    resolved = read_yaml(run_directory / EXPERIMENT)
    made = _made_with(resolved.pop(MADE_WITH, None), run_directory)
    orders = [_trained(order_folder(run_directory, k)) for k in range(experiment.count)]
    tasks = experiment.evaluation.tasks if experiment.evaluation else []
    rows = load_rows(evaluation_folder(run_directory), scored_models(experiment, run_directory), tasks)
    pictures: list[Path] = []
    sections = {
        "Scores": _scores(rows),
        "What merging changed": _comparison(run_directory, rows, pictures),
        "Number of orders": _curves(experiment, run_directory, pictures),
        "Learning curves": _learning(run_directory, orders, pictures),
        "Position of samples": _imbalance(run_directory, pictures),
        "Models": _models(experiment, run_directory),
        "Cost": _cost(experiment, orders),
        "Reproduce": _reproduce(run_directory, made) if made else "",
        "Experiment": _fenced(yaml.safe_dump(resolved, sort_keys=False), "yaml"),
    }
    parts = [f"# {experiment.name}", *(f"## {title}\n\n{text.rstrip()}" for title, text in sections.items() if text)]
    text = "\n\n".join(parts) + "\n"
    report = run_directory / REPORT
    write_text(report, text)
    write_text(report.with_suffix(".html"), html_page(text, experiment.name, run_directory, pictures))
    return report


def _made_with(noted: Any, run_directory: Path) -> dict[str, Any] | None:
    whole = isinstance(noted, dict) and noted.keys() >= _NOTED and isinstance(noted["versions"], dict)
    if whole or noted is None:
        return noted
    raise UserError(
        f"{run_directory / EXPERIMENT}: `{MADE_WITH}` is damaged; start `ordermerge run` again, which writes it anew"
    )


def _trained(folder: Path) -> OrderRecord:
    if record := order_record(folder):
        return record
    raise UserError(f"{folder}: not trained yet; `ordermerge run` trains it and writes the report")


def _scores(rows: list[Row]) -> str:
    if not rows:
        return "Nothing was evaluated: the experiment has no `evaluation` section, or `ordermerge run` did not finish."
    sizes = dict.fromkeys(f"{markdown_text(row.task)}: {row.n:,} documents." for row in rows if row.n is not None)
    return "\n\n".join([markdown_table(rows).rstrip(), *sizes, "From lm-eval's results, `eval/MODEL/results_*.json`."])


def _comparison(run_directory: Path, rows: list[Row], pictures: list[Path]) -> str:
    file = evaluation_folder(run_directory) / COMPARISON
    if not rows or not file.exists():
        return ""
    report = load_comparison(file)
    parts = list(in_short(report))
    if report.comparisons:
        figure, *_ = effect_figure(report, run_directory / FIGURES / "effects")
        caption = f"Differences with their {report.confidence:.0%} intervals"
        if (metrics := len({(one.task, one.metric, one.filter) for one in report.comparisons})) > MOST_PANELS:
            caption += f": the {MOST_PANELS} of {metrics} metrics where they are clearest"
        parts.append(_picture(pictures, run_directory, figure, caption))
    parts += [
        markdown_comparison(report),
        f"From `eval/{COMPARISON}`, which names the sample files behind each number.",
    ]
    return "\n\n".join(parts)


def in_short(report: ComparisonReport) -> Iterator[str]:
    """Yield, as Markdown, how many merged models differ from each reference: by metric, or where many, over all.

    Args:
        report: The comparison.
    """
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in report.comparisons:
        groups.setdefault((one.task, one.metric, one.filter), []).append(one)
    corrected = f"p corrected for {len(report.comparisons)} comparisons"
    if len(groups) > MOST_PANELS:
        yield "\n".join([f"{len(groups)} metrics, {corrected}:", "", *_tallies(report.comparisons, "comparisons")])
        return
    for (task, metric, filter_name), found in groups.items():
        title = markdown_text(f"{task} {metric}{'' if filter_name == NO_FILTER else ' ' + filter_name}")
        head = f"{title}{ARROWS[found[0].higher_is_better]}, {corrected}:"
        yield "\n".join([head, "", *_tallies(found, "merged models")])


def _tallies(comparisons: list[Comparison], what: str) -> Iterator[str]:
    for name, words in REFERENCES.items():
        if found := [one for one in comparisons if one.reference == name]:
            sure = [one for one in found if one.told_apart]
            up = sum(one.difference > 0 for one in sure)
            yield (
                f"- against {words}: of {len(found)} {what} {up} higher, {len(sure) - up} lower, "
                f"{len(found) - len(sure)} not told apart"
            )


def _curves(experiment: Experiment, run_directory: Path, pictures: list[Path]) -> str:
    parts = []
    for merge in experiment.merges:
        folder = curve_folder(run_directory, merge)
        if not (folder / CURVE).is_file():
            continue
        if (folder / CURVE_FIGURE).is_file():
            parts.append(_picture(pictures, run_directory, folder / CURVE_FIGURE, f"Merges of fewer orders: {merge}"))
        for curve in load_curves(folder / CURVE):
            parts.append(f"{markdown_text(curve.title)}:\n\n{markdown_curve(curve)}")
    return "\n\n".join([*parts, NOTE, "From `curve/MERGE/curve.json`."]) if parts else ""


def _learning(run_directory: Path, orders: list[OrderRecord], pictures: list[Path]) -> str:
    curves = {
        kind: {
            f"order_{record['order']}": [(entry["step"], entry["loss"]) for entry in entries]
            for record in orders
            for entries in [record["losses"] if kind == "losses" else record["eval_losses"]]
        }
        for kind in ("losses", "eval_losses")
    }
    if not all(curves["losses"].values()):
        return ""
    figure, *_ = learning_figure(curves["losses"], curves["eval_losses"], run_directory / FIGURES / "learning")
    picture = _picture(pictures, run_directory, figure, "Loss along the training steps")
    return f"{picture}\n\nFrom `orders/K/order/order.json`."


def _imbalance(run_directory: Path, pictures: list[Path]) -> str:
    folder = run_directory / "imbalance"
    if not (folder / "imbalance.json").exists():
        return ""
    remedy = f"run `ordermerge imbalance {run_directory}` again, or delete it"
    words = read_json(folder / "imbalance.json", Findings, remedy=remedy)["in_words"]
    drawn = [folder / f"{name}.png" for name in IMBALANCE_FIGURES]
    shown = [_picture(pictures, run_directory, path, path.stem.replace("_", " ")) for path in drawn if path.is_file()]
    lines = "\n".join(f"- {markdown_text(line)}" for line in words)
    return "\n\n".join([lines, *shown, "From `imbalance/imbalance.json`."])


def _picture(pictures: list[Path], run_directory: Path, path: Path, caption: str) -> str:
    """Return a figure of ours in Markdown, and note it among those that the page may show."""
    pictures.append(path)
    return f"![{caption}]({path.relative_to(run_directory).as_posix()})"


def _fenced(text: str, language: str = "") -> str:
    """Return a block of code, within a fence that the text does not hold."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _models(experiment: Experiment, run_directory: Path) -> str:
    orders, count = experiment.orders, experiment.count
    drawn = f"seed {orders.seed}" if orders.file is None else f"from {markdown_text(orders.file)}"
    names = f"`order_0` to `order_{count - 1}`: sub-models, one for each" if count > 1 else "`order_0`: the sub-model"
    lines = [
        f"- `base`: {markdown_text(experiment.model.path)}, before fine-tuning",
        f"- {names} of {counted(count, 'order')} of the same data (strategy `{orders.strategy}`, {drawn})",
    ]
    if experiment.vary:
        values = (f"`order_{k}` {markdown_text(described(model))}" for k, model in enumerate(sub_models(experiment)))
        lines.append(f"- varied: {'; '.join(values)}")
    for run in control_runs(experiment):
        lines.append(f"- `{run.folder}`: a control, one run with {markdown_text(described(run))}")
    for name, recipe in experiment.merges.items():
        what = f"the {counted(count, 'sub-model')}"
        if recipe.keys() & {"ingredients", "weights"} and (written := recipe_file(run_directory, name)).is_file():
            what = markdown_text(models_in_words(read_yaml(written)["models"]))
        lines.append(f"- `{name}`: {what} merged with {markdown_text(str(recipe.get('merge_method')))}")
    if experiment.evaluation and experiment.evaluation.ensemble:
        lines.append(
            f"- `{ENSEMBLE}`: the mean of the {count} sub-models' token probabilities; it costs {count} at inference"
        )
    return "\n".join(lines)


def _cost(experiment: Experiment, orders: list[OrderRecord]) -> str:
    """Say what the merged models cost, because training once for longer is the alternative to them."""
    shared = (orders[0].get("branch") or 0) / orders[0]["steps"]  # trained once for all
    share = branched_price(experiment.count, shared) / len(orders)
    consumed = round(share * sum(order["samples_consumed"] for order in orders))
    seconds = share * sum(order["seconds"] for order in orders)
    single = f"A sub-model was trained on {orders[0]['samples_consumed']:,} samples, in {orders[0]['seconds']:,.0f} s."
    if shared:
        single += (
            f" All share the first {shared:.0%} of their steps, so that {len(orders)} cost {share * len(orders):.3g} "
            "trainings."
        )
    if not experiment.merges or len(orders) == 1:
        return single
    alternative = annealing_note(experiment) or ""
    if LONGER not in experiment.controls:
        alternative += " One run on as many samples costs the same; whether it scores better is not measured here."
    return f"{single} A merged model used all {len(orders)}: {consumed:,} samples, {seconds:,.0f} s. {alternative}"


def _reproduce(run_directory: Path, made: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    sets = [word for one in made.get("set") or [] for word in ("--set", str(one))]
    commands = [
        shlex.join(
            ["ordermerge", "run", _typed(Path(str(made["file"]))), *sets, "--runs-dir", _typed(run_directory.parent)]
        ),
        shlex.join(["ordermerge", "report", _typed(run_directory)]),
    ]
    lines = [
        _fenced("\n".join(commands)),
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
