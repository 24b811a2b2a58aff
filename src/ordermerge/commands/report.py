"""The report of a run, report.md and report.html: what it found, and how to get every number of it again."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from ordermerge.commands.current import Current
from ordermerge.commands.html import html_page
from ordermerge.commands.price_table import (
    INTERVALS,
    MEAN,
    PricedModel,
    headline,
    main_scores,
    price_panel,
    price_table,
)
from ordermerge.commands.prices import Price, annealing_note, run_prices
from ordermerge.config.schema import MADE_WITH, Experiment
from ordermerge.config.trainings import control_runs, described, sub_models
from ordermerge.errors import UserError, counted, percent
from ordermerge.eval.comparison.curve import FIGURE as CURVE_FIGURE
from ordermerge.eval.comparison.curve import FILE as CURVE
from ordermerge.eval.comparison.curve import NOTE, load_curves, markdown_curve
from ordermerge.eval.comparison.record import FILE as COMPARISON
from ordermerge.eval.comparison.record import Comparison, ComparisonReport, load_comparison
from ordermerge.eval.comparison.table import REFERENCES, markdown_comparison
from ordermerge.eval.imbalance.analysis import FIGURES as IMBALANCE_FIGURES
from ordermerge.eval.imbalance.analysis import Findings
from ordermerge.eval.run_figures import MOST_PANELS, Kind, PricePanel, effect_figure, learning_figure, price_figure
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.scoring.table import ARROWS, NO_FILTER, Row, limit_note, markdown_table
from ordermerge.eval.tables import markdown_rows, markdown_text, with_minus
from ordermerge.files import write_text
from ordermerge.ingredients import models_in_words
from ordermerge.locks import lock
from ordermerge.run_directory import (
    BASE,
    ENSEMBLE,
    EXPERIMENT,
    REPORT,
    OrderRecord,
    changed_models,
    curve_folder,
    evaluation_folder,
    open_run,
    order_folder,
    order_name,
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


def report_numbers(run_directory: Path) -> dict[str, Any]:
    """Return what a run's report is about as JSON-like values: scores, comparison, and where the report is.

    Args:
        run_directory: The run directory.

    Raises:
        UserError: As `write_report`.
    """
    experiment, report = open_run(run_directory), run_directory / REPORT
    tasks = experiment.evaluation.tasks if experiment.evaluation else []
    outdated = Current(experiment, run_directory).outdated()
    names = [name for name in scored_models(experiment, run_directory) if name not in outdated]
    rows = load_rows(evaluation_folder(run_directory), names, tasks)
    comparison = None if outdated else _load_comparison(run_directory, rows)
    return {
        "name": experiment.name,
        "report": report,
        "html": report.with_suffix(".html"),
        "scores": [asdict(row) for row in rows],
        "outdated": outdated,
        "comparison": asdict(comparison) if comparison else None,
    }


def _write(experiment: Experiment, run_directory: Path) -> Path:
    resolved = read_yaml(run_directory / EXPERIMENT)
    made = _made_with(resolved.pop(MADE_WITH, None), run_directory)
    orders = [_trained(order_folder(run_directory, k)) for k in range(experiment.count)]
    tasks = experiment.evaluation.tasks if experiment.evaluation else []
    outdated = Current(experiment, run_directory).outdated()
    names = [name for name in scored_models(experiment, run_directory) if name not in outdated]
    rows = load_rows(evaluation_folder(run_directory), names, tasks)
    pictures: list[Path] = []
    models = _priced_models(experiment, run_directory)
    comparison = None if outdated else _load_comparison(run_directory, rows)
    panels = [price_panel(found, models) for found in main_scores(rows, tasks, comparison)]
    sections = {
        "Price and score": _prices(experiment, run_directory, rows, panels, models, comparison, orders, pictures),
        "Scores": _scores(rows) if len({(row.task, row.metric, row.filter) for row in rows}) > 1 else "",
        "What merging changed": _comparison(run_directory, comparison, pictures),
        "Number of orders": _curves(experiment, run_directory, pictures),
        "Learning curves": _learning(run_directory, orders, pictures),
        "Position of samples": _imbalance(experiment, run_directory, pictures),
        "Models": _models(experiment, run_directory),
        "Reproduce": _reproduce(run_directory, made, orders) if made else "",
        "Experiment": _fenced(yaml.safe_dump(resolved, sort_keys=False), "yaml"),
    }
    parts = [
        f"# {experiment.name}",
        "\n>\n".join(f"> {line}" for line in headline(panels, models, comparison)),
        _outdated(outdated),
        _made(run_directory, orders),
        *(f"## {title}\n\n{text.rstrip()}" for title, text in sections.items() if text),
    ]
    text = _without_places("\n\n".join(filter(None, parts)) + "\n", experiment.directory, run_directory)
    report = run_directory / REPORT
    write_text(report, text)
    write_text(report.with_suffix(".html"), html_page(text, experiment.name, run_directory, pictures))
    return report


def _without_places(text: str, *folders: Path) -> str:
    """Return a report in which paths start at the experiment file or the run directory, and the user's home is `~`."""
    for folder in folders:
        if len(folder.resolve().parts) > 1:
            place = re.escape(str(folder.resolve()))
            text = re.sub(rf"{place}/(?=[\w.-])", "", text)
            text = re.sub(rf"{place}(?![\w./-])", ".", text)
    home = Path.home()
    return re.sub(rf"{re.escape(str(home))}(?=/)", "~", text) if len(home.parts) > 1 else text


def _outdated(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f"> Outdated, and not shown: the scores of {', '.join(map(markdown_text, names))}, whose models were made anew "
        "since; `ordermerge run` scores them."
    )


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


def _made(run_directory: Path, orders: list[OrderRecord]) -> str:
    """Say when the scores were made, by the names of lm-eval's files, and where the rest is."""
    dates = [path.name[8:18] for path in evaluation_folder(run_directory).glob("*/results_*.json")]
    when = f", scored {max(dates)}" if dates else ""
    return f"{counted(len(orders), 'order')} of the same data{when}. As data: {_links(['experiment.yml', REPORT])}."


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{markdown_text(name)}]({quote(name)})" for name in names)


def _priced_models(experiment: Experiment, run_directory: Path) -> list[PricedModel]:
    """Return the lines of the table of prices: base model, orders and their mean, controls and theirs, merges."""
    prices = run_prices(experiment, run_directory)
    singles = [order_name(k) for k in range(experiment.count)]
    models = [PricedModel(BASE, "base model", prices[BASE].runs, prices[BASE].samples, [BASE])]
    models += _with_mean(singles, MEAN, "single runs", prices)
    runs = control_runs(experiment)
    for control in experiment.controls:
        names = [run.folder for run in runs if run.control == control]
        models += _with_mean(names, f"mean of {control}", "controls", prices)
    merged = [*experiment.merges, *([ENSEMBLE] if experiment.evaluation and experiment.evaluation.ensemble else [])]
    return models + [PricedModel(name, "merges", prices[name].runs, prices[name].samples, [name]) for name in merged]


def _with_mean(names: list[str], mean: str, kind: Kind, prices: dict[str, Price]) -> list[PricedModel]:
    """Return a line of each run, and where there are several one of their mean."""
    price = prices[names[0]]
    lines = [PricedModel(name, kind, price.runs, price.samples, [name]) for name in names]
    several: Kind = "means of runs" if kind == "single runs" else kind
    return [*lines, PricedModel(mean, several, price.runs, price.samples, names)] if len(names) > 1 else lines


def _prices(
    experiment: Experiment,
    run_directory: Path,
    rows: list[Row],
    panels: list[PricePanel],
    models: list[PricedModel],
    comparison: ComparisonReport | None,
    orders: list[OrderRecord],
    pictures: list[Path],
) -> str:
    """Return the table and the figure of score and price, and what their numbers are."""
    parts = [price_table(panels, models, comparison)]
    if panels:
        figure, *_ = price_figure(panels, run_directory / FIGURES / "prices")
        parts.append(_picture(pictures, run_directory, figure, "Score by price: what the same training buys"))
        parts.append(INTERVALS)
        sizes = dict.fromkeys(f"{markdown_text(row.task)} {row.n:,}" for row in rows if row.n is not None)
        shown = len(panels)
        if shown > MOST_PANELS:
            parts.append(f"Shown: the main scores of {MOST_PANELS} of {shown} tasks; all are below.")
        if len(sizes) <= MOST_PANELS:
            parts.append(f"Documents: {', '.join(sizes)}.")
        parts += [limit_note(limit) for limit in dict.fromkeys(row.limit for row in rows) if limit is not None]
    else:
        parts.append(
            "Nothing was evaluated: the experiment has no `evaluation` section, or `ordermerge run` did not finish."
        )
    parts += [note for note in [annealing_note(experiment)] if note]
    shared = (orders[0].get("branch") or 0) / orders[0]["steps"]
    common = f"; all share the first {percent(shared)} of their steps, which are trained once" if shared else ""
    parts.append(
        f"Price 1: one order, {orders[0]['samples_consumed']:,} samples, {orders[0]['seconds']:,.0f} s here{common}."
    )
    return "\n\n".join(parts)


def _scores(rows: list[Row]) -> str:
    return f"{markdown_table(rows).rstrip()}\n\nFrom lm-eval's results, `eval/MODEL/results_*.json`."


def _load_comparison(run_directory: Path, rows: list[Row]) -> ComparisonReport | None:
    file = evaluation_folder(run_directory) / COMPARISON
    return load_comparison(file) if rows and file.exists() else None


def _comparison(run_directory: Path, report: ComparisonReport | None, pictures: list[Path]) -> str:
    if report is None:
        return ""
    parts = [tallies(report)] if report.comparisons else []
    if report.comparisons:
        figure, *_ = effect_figure(report, run_directory / FIGURES / "effects")
        caption = (
            f"Differences with their {percent(report.confidence)} intervals; right of 0 the merged model scores more"
        )
        if (metrics := len({(one.task, one.metric, one.filter) for one in report.comparisons})) > MOST_PANELS:
            caption += f": the {MOST_PANELS} of {metrics} metrics where they are clearest"
        parts.append(_picture(pictures, run_directory, figure, caption))
    source = f"eval/{COMPARISON}"
    parts += [markdown_comparison(report), f"From {_links([source])}, which names the sample files behind each number."]
    return "\n\n".join(parts)


def tallies(report: ComparisonReport) -> str:
    """Return, as a table, how many merged models differ from each reference: by metric, or where many, over all.

    Args:
        report: The comparison, with at least one.
    """
    groups: dict[str, list[Comparison]] = {}
    for one in report.comparisons:
        name = " ".join([one.task, one.metric, *([] if one.filter == NO_FILTER else [one.filter])])
        groups.setdefault(name + ARROWS[one.higher_is_better], []).append(one)
    if len(groups) > MOST_PANELS:
        groups = {f"{len(groups)} scores": report.comparisons}
    against = [name for name in REFERENCES if any(one.reference == name for one in report.comparisons)]
    lines = [
        [title, *(_tally([one for one in found if one.reference == name]) for name in against)]
        for title, found in groups.items()
    ]
    table = markdown_rows(["merged models", *(f"against {REFERENCES[name]}" for name in against)], lines)
    return f"{table}\n\nBy p corrected for {counted(len(report.comparisons), 'comparison')}."


def _tally(found: list[Comparison]) -> str:
    sure = [one for one in found if one.told_apart]
    up = sum(one.difference > 0 for one in sure)
    kinds = {"higher": up, "lower": len(sure) - up, "not told apart": len(found) - len(sure)}
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)


def _curves(experiment: Experiment, run_directory: Path, pictures: list[Path]) -> str:
    parts = []
    for merge in experiment.merges:
        folder = curve_folder(run_directory, merge)
        if not (folder / CURVE).is_file() or not Current(experiment, run_directory).has_curve(merge):
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
    picture = _picture(
        pictures, run_directory, figure, "Loss along the training: a mean over the steps since the point before"
    )
    return f"{picture}\n\nFrom `orders/K/order/order.json`."


def _imbalance(experiment: Experiment, run_directory: Path, pictures: list[Path]) -> str:
    folder = run_directory / "imbalance"
    if not (folder / "imbalance.json").exists():
        return ""
    remedy = f"run `ordermerge imbalance {run_directory}` again, or delete it"
    found = read_json(folder / "imbalance.json", Findings, remedy=remedy)
    words = found["in_words"]
    if changed := changed_models(experiment, run_directory.resolve(), found.get("models", {})):
        return (
            f"Outdated: {', '.join(changed)} made anew since; `ordermerge losses` and `ordermerge imbalance` analyse "
            "what is there now."
        )
    shown = [
        _picture(pictures, run_directory, path, caption)
        for name, caption in IMBALANCE_FIGURES.items()
        if (path := folder / f"{name}.png").is_file()
    ]
    lines = "\n".join(f"{'  ' * line.startswith(' ')}- {with_minus(markdown_text(line))}" for line in words)
    return "\n\n".join([lines, *shown, f"From {_links(['imbalance/imbalance.json'])}."])


def _picture(pictures: list[Path], run_directory: Path, path: Path, caption: str) -> str:
    """Return a figure of ours in Markdown, with links to its files; note it among those that the page may show."""
    pictures.append(path)
    place = path.relative_to(run_directory)
    files = [place.with_suffix(f".{suffix}").as_posix() for suffix in ("png", "svg", "csv")]
    forms = ", ".join(f"[{file.rpartition('.')[2].upper()}]({quote(file)})" for file in files)
    return f"![{caption}]({quote(place.as_posix())})\n\n{forms}"


def _fenced(text: str, language: str = "") -> str:
    """Return a block of code, within a fence that the text does not hold."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _models(experiment: Experiment, run_directory: Path) -> str:
    orders, count = experiment.orders, experiment.count
    places = experiment.directory, run_directory
    given = f"from {markdown_text(_without_places(orders.file, *places))}" if orders.file else None
    drawn = f"strategy `{orders.strategy}`, {given or f'seed {orders.seed}'}"
    base = markdown_text(_without_places(experiment.model.path, *places))
    names = f"`order_0` to `order_{count - 1}`: sub-models, one for each" if count > 1 else "`order_0`: the sub-model"
    lines = [
        f"- `base`: {base}, before fine-tuning{_round(experiment)}",
        f"- {names} of {counted(count, 'order')} of the same data ({drawn})",
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


def _round(experiment: Experiment) -> str:
    """Say which round this is, and what it starts from, where that is a merge."""
    if experiment.rounds is None or experiment.rounds.number == 1:
        return ""
    return f" in round {experiment.rounds.number}: the merge `{experiment.rounds.merge}` of the round before"


def _reproduce(run_directory: Path, made: dict[str, Any], orders: list[OrderRecord]) -> str:
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
        *_origins(made, orders),
    ]
    return "\n".join(lines)


def _origins(made: dict[str, Any], orders: list[OrderRecord]) -> Iterator[str]:
    """Yield by which code the orders were trained, and where it is another, by which the last command went on."""
    groups: dict[str, list[str]] = {}
    for name, noted in [*((order_name(k), one) for k, one in enumerate(orders)), ("the last command", made)]:
        versions = ", ".join(f"{package} {version}" for package, version in noted.get("versions", {}).items())
        where = f"commit {noted.get('git_commit') or 'none, not in a git checkout'}; {noted.get('platform', '')}"
        groups.setdefault(f"{where}; {versions}", []).append(name)
    for origin, names in groups.items():
        yield f"- {', '.join(names)}: {origin}" if len(groups) > 1 else f"- {origin}"


def _typed(path: Path) -> str:
    """Return a path as one would type it: relative to the working directory where it is below that."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
