"""The first table of a report, score and price of each model, and the headline above it: what the price bought."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import norm

from ordermerge.errors import counted, percent
from ordermerge.eval.comparison.record import Comparison, ComparisonReport
from ordermerge.eval.run_figures import MOST_PANELS, Kind, PricedScore, PricePanel
from ordermerge.eval.scoring.table import ARROWS, NO_FILTER, Row, digits
from ordermerge.eval.statistics import LEVEL, mean_interval
from ordermerge.eval.tables import markdown_rows, markdown_text, with_minus

MEAN = "mean of single runs"
INTERVALS = (
    f"Intervals ({percent(LEVEL)}): of one model over documents, by lm-eval's standard error; of a mean of runs "
    "over the runs, by Student's t. Bold: the best of equal price. Told apart: by the corrected p of the comparison "
    "below, and never one run from another."
)
_HEADLINES = 3  # tasks with sentences of their own; the table has them all
_NAMED = 2  # of the models that one is told apart from
_SAME = 0.005  # prices that differ by less count as equal


@dataclass(frozen=True)
class PricedModel:
    """A model of the table.

    Attributes:
        name: Its name in tables.
        kind: What it is.
        price: Of its training, in runs of one order.
        samples: That were trained on for it; None where that is not known.
        runs: The models that it stands for: itself, or those of which it is the mean.
    """

    name: str
    kind: Kind
    price: float
    samples: int | None
    runs: Sequence[str]


def main_scores(rows: Sequence[Row], tasks: Sequence[str], report: ComparisonReport | None) -> list[Sequence[Row]]:
    """Return the rows of the main score of each task: of its scores the first that is compared, else the first.

    Args:
        rows: The scores of all models.
        tasks: The tasks asked for; of others there is no main score, unless there is none of these.
        report: The comparison, None where there is none.
    """
    compared = {(one.task, one.metric, one.filter) for one in report.comparisons} if report else set()
    chosen: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        key = (row.task, row.metric, row.filter)
        if row.task not in chosen or (key in compared and chosen[row.task] not in compared):
            chosen[row.task] = key
    asked = [chosen[task] for task in tasks if task in chosen] or list(chosen.values())
    return [[row for row in rows if (row.task, row.metric, row.filter) == key] for key in asked]


def price_panel(rows: Sequence[Row], models: Sequence[PricedModel]) -> PricePanel:
    """Return the score of each model on one task, with its interval.

    The interval of one model is over documents, lm-eval's standard error times the normal quantile; that of a mean of
    runs is Student's, over the runs.

    Args:
        rows: One score of all models.
        models: The models.
    """
    by_name = {row.model: row for row in rows}
    scores = []
    for model in models:
        if not all(name in by_name for name in model.runs):
            continue
        values = [by_name[name].value for name in model.runs]
        interval: tuple[float, float] | None = None
        if len(values) > 1:
            mean, *ends = mean_interval(values)
            interval = (ends[0], ends[1])
        else:
            mean, error = values[0], by_name[model.runs[0]].stderr
            half = float(norm.ppf((1 + LEVEL) / 2)) * error if error is not None else None
            interval = None if half is None else (mean - half, mean + half)
        scores.append(PricedScore(model.name, model.kind, model.price, mean, interval))
    first = rows[0]
    return PricePanel(first.task, first.metric, first.filter, first.higher_is_better, scores)


def price_table(panels: Sequence[PricePanel], models: Sequence[PricedModel], report: ComparisonReport | None) -> str:
    """Return the table as Markdown; of equal price the best is in bold type, with whether it is told apart.

    Args:
        panels: The scores, by task; the first `MOST_PANELS` are shown.
        models: The models, in order.
        report: The comparison, None where there is none.
    """
    header = ["model", "samples", "price, runs"]
    lines = [
        [model.name, "" if model.samples is None else f"{model.samples:,}", f"{model.price:.3g}"] for model in models
    ]
    marked = []
    for panel in panels[:MOST_PANELS]:
        found = {one.model: one for one in panel.scores}
        best = best_of_price(panel, report)
        header += [f"{score_title(panel)} ({percent(LEVEL)} interval)", "of equal price"]
        for number, (model, line) in enumerate(zip(models, lines, strict=True)):
            line += [_with_interval(found.get(model.name)), best.get(model.name, "")]
            marked += [(number, len(line) - 2)] if model.name in best else []
    return markdown_rows(header, lines, marked)


def best_of_price(panel: PricePanel, report: ComparisonReport | None) -> dict[str, str]:
    """Return, for the best model of each price that several have, which of the others it is told apart from.

    One run is never told apart from another: documents do not say what another order would have changed. Means of runs
    take no part: they are no model.

    Args:
        panel: The scores on one task.
        report: The comparison, None where there is none.
    """
    if panel.higher_is_better is None:
        return {}
    found = {}
    scores = [one for one in panel.scores if one.kind != "means of runs"]
    single = next((one.price for one in scores if one.kind == "single runs"), None)
    for price in dict.fromkeys(one.price for one in scores):
        same = [one for one in scores if abs(one.price - price) < _SAME]
        value = (max if panel.higher_is_better else min)(one.score for one in same)
        firsts, others = [one for one in same if one.score == value], [one for one in same if one.score != value]
        if not others:
            continue
        for first in firsts:
            # At the price of one run, a merge along it is one run too.
            told = [] if price == single else others
            apart = [one.model for one in told if _told_apart(report, panel, first.model, one.model)]
            names = ", ".join(apart[:_NAMED]) + (f" and {len(apart) - _NAMED} more" if len(apart) > _NAMED else "")
            some = f"told apart from {names}" if apart else "not told apart"
            found[first.model] = f"best, {'told apart' if len(apart) == len(same) - 1 else some}"
    return found


def _told_apart(report: ComparisonReport | None, panel: PricePanel, first: str, second: str) -> bool:
    """Return whether a comparison of these two models, one of them merged, tells them apart."""
    return any(
        one.told_apart and {one.model, *one.reference_models} == {first, second}
        for one in _of_panel(report, panel)
        if len(one.reference_models) == 1
    )


def headline(
    panels: Sequence[PricePanel], models: Sequence[PricedModel], report: ComparisonReport | None
) -> Iterator[str]:
    """Yield, as Markdown, what the best merge of each task bought and what that supports; the first tasks only.

    Args:
        panels: The scores, by task.
        models: The models.
        report: The comparison, None where there is none.
    """
    prices = {model.name: model.price for model in models}
    told = [panel for panel in panels if panel.higher_is_better is not None and _of_panel(report, panel)]
    for panel in told[:_HEADLINES]:
        merges = [one for one in panel.scores if one.kind == "merges"]
        best = (max if panel.higher_is_better else min)(merges, key=lambda one: one.score)
        chosen = f", the best of {len(merges)} merges on these documents," if len(merges) > 1 else ""
        found = [one for one in _of_panel(report, panel) if one.model == best.model]
        single = next(one for one in found if one.reference == "single_mean")
        controls = [one for one in found if one.reference == "control"]
        control = (max if panel.higher_is_better else min)(controls, key=lambda one: one.reference_score, default=None)
        effect = f"{_effect(single)} over the mean single run ({digits(single.reference_score)}, price 1)"
        yield (
            f"**{markdown_text(score_title(panel))}: {markdown_text(best.model)} {effect}.** It{chosen} scores "
            f"{digits(best.score)} at a price of {best.price:.3g} runs. {_against_control(best, control, prices)}"
        )
        yield f"{_decision(best, single, control, prices)}"
    if len(told) > _HEADLINES:
        yield f"{counted(len(told) - _HEADLINES, 'more task')}: in the table."


def _against_control(best: PricedScore, control: Comparison | None, prices: Mapping[str, float]) -> str:
    if control is None:
        return "A control of equal or lower price, such as one longer run or one annealed run, was not trained."
    return (
        f"Over the best control of equal or lower price, {_control_name(control)} "
        f"({digits(control.reference_score)}, price {prices[control.reference_models[0]]:.3g}): {_effect(control)}"
        f"{'' if control.told_apart else ', not told apart'}."
    )


def _decision(best: PricedScore, single: Comparison, control: Comparison | None, prices: Mapping[str, float]) -> str:
    """Say what the numbers support: the merge, the control, or neither."""
    if control is None:
        if not single.told_apart:
            return "Supported: no gain by merging was shown over training once."
        verb = "above" if _is_better(single) else "below"
        return (
            f"Supported: the merge is {verb} one run. Not measured: what the same price buys otherwise; "
            "`controls: {longer: true, annealed: true}` trains that."
        )
    name = _control_name(control)
    if control.told_apart:
        if _is_better(control):
            return f"Supported: the merge is worth its price here, against {name}."
        return f"Supported: {name} in place of the merge."
    why = "documents alone do not tell one run from others; give it `count: 3` or more" * (
        len(control.reference_models) == 1
    )
    open_ = f"Supported: no choice between the merge and {name}" + (f": {why}." if why else ".")
    if prices[control.reference_models[0]] < best.price - _SAME:
        open_ += f" {name[0].upper()}{name[1:]} is the cheaper one."
    return open_


def _is_better(one: Comparison) -> bool:
    return (one.difference > 0) == bool(one.higher_is_better)


def _control_name(control: Comparison) -> str:
    runs = control.reference_models
    return f"`{runs[0]}`" if len(runs) == 1 else f"`{runs[0]}`, the mean of {len(runs)} runs"


def _effect(one: Comparison) -> str:
    ends = f"{_signed(one.low)} to {_signed(one.high)}"
    return f"{_signed(one.difference)} ({ends})"


def _signed(value: float) -> str:
    return with_minus(f"{value:+.3f}" if digits(value) == f"{value:.3f}" else digits(value))


def _of_panel(report: ComparisonReport | None, panel: PricePanel) -> list[Comparison]:
    key = (panel.task, panel.metric, panel.filter)
    return [one for one in report.comparisons if (one.task, one.metric, one.filter) == key] if report else []


def score_title(panel: PricePanel) -> str:
    """Return the score's name in tables.

    Args:
        panel: The scores on one task.
    """
    filter_name = [] if panel.filter == NO_FILTER else [panel.filter]
    return " ".join([panel.task, panel.metric, *filter_name]) + ARROWS[panel.higher_is_better]


def _with_interval(one: PricedScore | None) -> str:
    if one is None:
        return ""
    return digits(one.score) + (f" ({digits(one.interval[0])} to {digits(one.interval[1])})" if one.interval else "")
