"""A comparison as tables: for each task and metric, one against each reference."""

from collections.abc import Iterator, Sequence
from typing import IO

from ordermerge.errors import counted, percent, printable
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.scoring.calibration import HEADER, NOTE, calibration_cells, print_calibration
from ordermerge.eval.scoring.table import ARROWS, NO_FILTER, digits, limit_note
from ordermerge.eval.tables import markdown_rows, markdown_text, print_columns

REFERENCES = {
    "single_mean": "the mean of the single models",
    "single_best": "the best single model",
    "weighted_average": "the weighted average",
    "control": "a control of equal or lower price",
    "mean": "the mean of the models",
    "best": "the best model",
    "model": "the reference",
}
_BEST_BY = {
    "validation_loss": "was chosen by its validation loss.",
    "test_score": "was chosen by its score on these same documents, which favours it.",
}

_NOT_ABOUT_ORDERS = "They tell what other documents would change, not what other training orders would."
_ABOUT_ORDERS = (
    "They tell what other documents would change. Over orders: what other training orders would change, on these same "
    "documents, by the jackknife over the orders merged."
)


def markdown_comparison(report: ComparisonReport) -> str:
    """Return the tables as Markdown, with headings of the third level.

    Args:
        report: The comparison.
    """
    parts: list[str] = []
    last = None
    for heading, against, comparisons in _blocks(report):
        columns = _header(report, comparisons)
        if heading != last:
            parts.append(f"### {markdown_text(heading)}")
        last = heading
        header = [*columns, "p", "p (Holm)", "detectable"]
        lines = [
            [*_cells(one, columns), _p(one.p_value), _p(one.p_value_holm), _detectable(one)] for one in comparisons
        ]
        parts.append(f"{markdown_text(against)}:\n\n{markdown_rows(header, lines)}")
    parts += map(markdown_text, [*_method_notes(report), *_limit_notes(report)])
    parts += [*_spread_table(report), *_left_out_table(report)]
    if report.calibration:
        parts += ["### Calibration", markdown_rows(HEADER, calibration_cells(report.calibration)), NOTE]
    return "\n\n".join(parts) + "\n"


def _spread_table(report: ComparisonReport) -> Iterator[str]:
    if report.spreads:
        yield "### Spread over orders and seeds"
        lines = [
            [
                _title(one.task, one.metric, one.filter),
                f"{len(one.models)} {one.over}",
                *map(digits, (one.mean, one.standard_deviation)),
                ", ".join(one.models),
            ]
            for one in report.spreads
        ]
        yield markdown_rows(["score", "over", "mean", "standard deviation", "models"], lines)


def _left_out_table(report: ComparisonReport) -> Iterator[str]:
    if report.left_out:
        yield "### Not compared"
        lines = [[_title(one.task, one.metric, one.filter), one.reason] for one in report.left_out]
        yield markdown_rows(["score", "because"], lines)


def print_comparison(report: ComparisonReport, file: IO[str] | None = None) -> None:
    """Print the tables; nothing is cut, in a terminal or in a pipe.

    Args:
        report: The comparison.
        file: Where to print; standard output if not given.
    """
    last = None
    for heading, against, comparisons in _blocks(report):
        columns = _header(report, comparisons)
        if heading != last:
            print(printable(heading), file=file)
        last = heading
        print(printable(f"{against}:"), file=file)
        lines = [[*_cells(one, columns), _p(one.p_value_holm)] for one in comparisons]
        print_columns([*columns, "p (Holm)"], lines, file=file)
    for note in comparison_notes(report):
        print(printable(note), file=file)
    print_calibration(report.calibration, file)


def comparison_notes(report: ComparisonReport) -> list[str]:
    """Return the lines that belong beneath any display of a comparison.

    Args:
        report: The comparison.
    """
    lines = _method_notes(report)
    for spread in report.spreads:
        lines.append(
            f"{_title(spread.task, spread.metric, spread.filter)} over {len(spread.models)} {spread.over} "
            f"({', '.join(spread.models)}): mean {digits(spread.mean)}, standard deviation "
            f"{digits(spread.standard_deviation)}."
        )
    for left in report.left_out:
        lines.append(f"{_title(left.task, left.metric, left.filter)} is not compared: {left.reason}.")
    return lines + _limit_notes(report)


def _method_notes(report: ComparisonReport) -> list[str]:
    lines = []
    if report.comparisons:
        lines += [
            f"Differences: model less reference, on the same documents. Intervals: bootstrap over documents "
            f"({report.resamples:,} resamples, seed {report.seed}). p: two-sided sign-flip test; Holm: corrected for "
            f"{'all ' * (len(report.comparisons) > 1)}{counted(len(report.comparisons), 'comparison')}.",
            _ABOUT_ORDERS if any(one.orders for one in report.comparisons) else _NOT_ABOUT_ORDERS,
        ]
    controls = [one.reference_models for one in report.comparisons if one.reference == "control"]
    if single := sorted({models[0] for models in controls if len(models) == 1}):
        lines.append(
            f"{', '.join(single)}: one run. Another order of it would score otherwise, which no interval here holds: "
            "nothing is told apart from it by these documents alone; the control's count trains it in more orders."
        )
    if detectable := [one.detectable for one in report.comparisons if one.detectable is not None]:
        lines.append(
            "Detectable: the smallest difference that so many documents show with a chance of "
            f"{percent(report.power)}, at 5 % and before correction; here {digits(min(detectable))} to "
            f"{digits(max(detectable))}."
        )
    for reference, which in (("single_best", "The best single model"), ("best", "The best model")):
        if any(one.reference == reference for one in report.comparisons):
            lines.append(f"{which} {_BEST_BY[report.best_single_by]}")
    return lines


def _limit_notes(report: ComparisonReport) -> list[str]:
    return [] if report.limit is None else [limit_note(report.limit)]


def _blocks(report: ComparisonReport) -> Iterator[tuple[str, str, list[Comparison]]]:
    """Yield heading, the line that names the reference, and the comparisons with it."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in report.comparisons:
        groups.setdefault((one.task, one.metric, one.filter), []).append(one)
    limited = "" if report.limit is None else f", limit={report.limit:g}: NOT COMPARABLE SCORES"
    for key, comparisons in groups.items():
        first = comparisons[0]
        heading = f"{_title(*key)}{ARROWS[first.higher_is_better]}, {first.documents:,} documents{limited}"
        for reference, name in REFERENCES.items():
            chosen = [one for one in comparisons if one.reference == reference]
            for models in dict.fromkeys(tuple(one.reference_models) for one in chosen):
                same = [one for one in chosen if tuple(one.reference_models) == models]
                which = f", {models[0]}" if len(models) == 1 else ""
                if reference == "control" and len(models) > 1:
                    which = f", the mean of {', '.join(models)}"
                yield heading, f"Against {name}{which} ({digits(same[0].reference_score)})", same


def _title(task: str, metric: str, filter_name: str) -> str:
    return " ".join([task, metric, *([] if filter_name == NO_FILTER else [filter_name])])


def _header(report: ComparisonReport, comparisons: Sequence[Comparison]) -> list[str]:
    over_orders = ["over orders"] if any(one.orders for one in comparisons) else []
    return ["model", "difference", f"{percent(report.confidence)} interval", *over_orders]


def _cells(one: Comparison, columns: Sequence[str]) -> list[str]:
    intervals = [(one.low, one.high), *([one.orders] if len(columns) > 3 else [])]
    texts = (f"{_signed(ends[0])} to {_signed(ends[1])}" if ends else "" for ends in intervals)
    return [one.model, _signed(one.difference), *texts]


def _signed(value: float) -> str:
    return f"+{digits(value)}" if value > 0 else digits(value)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _detectable(one: Comparison) -> str:
    return "" if one.detectable is None else digits(one.detectable)
