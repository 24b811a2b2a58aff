"""`ordermerge compare`: the statistics of a run's comparison for any results of lm-eval on disk."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ordermerge.commands.html import html_page
from ordermerge.errors import UserError, did_you_mean, percent
from ordermerge.eval.comparison.compare import against, compare_values
from ordermerge.eval.comparison.folders import find_all, find_scores, read_models
from ordermerge.eval.comparison.record import FILE, ComparisonReport, write_comparison
from ordermerge.eval.comparison.table import markdown_comparison
from ordermerge.eval.scoring.saved import SavedScores
from ordermerge.eval.scoring.table import Row, markdown_table
from ordermerge.files import user_path, write_text

COLUMNS = (
    "task", "metric", "filter", "documents", "model", "reference", "reference_models", "score", "reference_score",
    "difference", "low", "high", "p_value", "p_value_holm", "detectable",
)  # fmt: skip


def compare_results(
    results: Sequence[str], *, reference: str | None = None, tasks: Sequence[str] = (), start: Path | None = None
) -> tuple[list[Row], ComparisonReport]:
    """Compare models by their results on disk, document by document.

    Args:
        results: Folders, each as for `find_scores`.
        reference: "mean", "best", a model's name, the end of one, or a folder that is none of `results`; the first
            model, if not given.
        tasks: The tasks and groups that count; all, if none is given.
        start: Where the paths of lm-eval's files are to start in the report; the working directory if not given.

    Returns:
        The scores, and the comparison.

    Raises:
        UserError: If results are missing, cannot be read, or were not made alike; and if nothing can be compared.
    """
    found = {name: saved for models in find_all(results).values() for name, saved in models.items()}
    names, reference = list(found), next(iter(found)) if reference is None else reference
    if reference not in ("mean", "best"):
        name, saved = _find_reference(reference, found)
        found, reference = (found if name in found else {name: saved, **found}), name
    if len(found) < 2:
        raise UserError(f"a comparison takes at least 2 models; got {', '.join(found)}")
    models = read_models(found, tasks)
    report = compare_values(models, against(names, reference), start or Path.cwd())
    if not report.comparisons:
        reasons = dict.fromkeys(f"{left.task} {left.metric}: {left.reason}" for left in report.left_out)
        raise UserError([f"nothing can be compared: {reason}" for reason in reasons])
    return [row for model in models for row in model.saved.rows], report


def write_files(rows: Sequence[Row], report: ComparisonReport, out: Path) -> list[Path]:
    """Write a comparison as JSON, Markdown and one HTML page, with a figure of the differences.

    Args:
        rows: The scores.
        report: At least one comparison.
        out: The folder.

    Returns:
        The files that are to be read first.
    """
    from ordermerge.eval.run_figures import effect_figure

    figure, *_ = effect_figure(report, out / "effects")
    parts = [
        "# Comparison",
        f"## Scores\n\n{markdown_table(rows).rstrip()}",
        f"## Differences\n\n![Differences with their {percent(report.confidence)} intervals]({figure.name})",
        markdown_comparison(report),
        f"From `{FILE}`, which names lm-eval's files behind each number.",
    ]
    page = out / Path(FILE).with_suffix(".md")
    text = "\n\n".join(parts) + "\n"
    write_text(page, text)
    write_text(page.with_suffix(".html"), html_page(text, "Comparison", out, [figure]))
    write_comparison(report, out / FILE)
    return [out / FILE, page, page.with_suffix(".html")]


def print_csv(report: ComparisonReport) -> None:
    """Print the comparisons as CSV; several models behind a reference are parted by spaces.

    Args:
        report: The comparison.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in report.comparisons:
        row = {**asdict(one), "reference_models": " ".join(one.reference_models)}
        writer.writerow([row[column] for column in COLUMNS])


def _find_reference(given: str, found: dict[str, SavedScores]) -> tuple[str, SavedScores]:
    """Return the model that is meant: one of those found, by name or by the end of it, or one in another folder."""
    given = given.rstrip("/")
    endings = [name for name in found if name == given] or [name for name in found if name.endswith(f"/{given}")]
    if len(endings) == 1:
        return endings[0], found[endings[0]]
    if endings or not user_path(given).exists():
        which = f" may be {' or '.join(endings)}" if endings else did_you_mean(given, list(found))
        raise UserError(f"--reference {given}: give `mean`, `best`, a model's name or a folder of results{which}")
    others = find_scores(given)
    if len(others) > 1:
        raise UserError(f"--reference {given}: holds {len(others)} models; name one: {', '.join(others)}")
    ((name, saved),) = others.items()
    same = [known for known, one in found.items() if one.place == saved.place]  # written in another way
    return (same or [name])[0], saved
