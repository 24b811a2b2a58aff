"""`comparison.json`: what it holds, how it is written and read."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ordermerge.eval.scoring.calibration import Calibration
from ordermerge.eval.statistics import ALPHA
from ordermerge.files import write_json
from ordermerge.yaml_json import read_json

FILE = "comparison.json"
Reference = Literal["single_mean", "single_best", "weighted_average", "control", "mean", "best", "model"]


@dataclass(frozen=True)
class Comparison:
    """A model against a reference, on one task and metric.

    Attributes:
        task: Task or group of tasks.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers.
        higher_is_better: None where the task does not say.
        documents: How many both were scored on.
        model: The model: in a run's comparison a merged one.
        reference: What it is compared with.
        reference_models: The models behind that; their mean is compared with.
        score: Of the model.
        reference_score: Of the reference.
        difference: Score less reference score.
        low: Lower end of the confidence interval of the difference.
        high: Upper end.
        p_value: Two-sided, of no difference.
        p_value_holm: Corrected for the number of comparisons.
        p_value_exact: Whether it comes from all sign flips, not from a sample of them.
        detectable: Smallest difference that these documents would show; None where that cannot be told.
        orders: Ends of the confidence interval of the difference over training orders, on these documents; None where
            no merges of fewer orders were scored.
    """

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    documents: int
    model: str
    reference: Reference
    reference_models: list[str]
    score: float
    reference_score: float
    difference: float
    low: float
    high: float
    p_value: float
    p_value_holm: float
    p_value_exact: bool
    detectable: float | None
    orders: tuple[float, float] | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the difference is beyond chance, corrected; of a single run of a control documents cannot say it."""
        return self.p_value_holm < ALPHA and not (self.reference == "control" and len(self.reference_models) == 1)


@dataclass(frozen=True)
class Spread:
    """How scores vary over models that differ in one thing only.

    Attributes:
        task: Task or group of tasks.
        metric: Such as "exact_match".
        filter: lm-eval's filter of the answers.
        over: "orders" (the sub-models) or "seeds" (draws of one merge).
        models: The models.
        mean: Of their scores.
        standard_deviation: Of their scores (n - 1).
    """

    task: str
    metric: str
    filter: str
    over: Literal["orders", "seeds"]
    models: list[str]
    mean: float
    standard_deviation: float


@dataclass(frozen=True)
class LeftOut:
    """What is not compared.

    Attributes:
        task: Task or group of tasks.
        metric: Such as "word_perplexity".
        filter: lm-eval's filter of the answers.
        reason: Why.
    """

    task: str
    metric: str
    filter: str
    reason: str


@dataclass(frozen=True)
class ComparisonReport:
    """Everything in `comparison.json`.

    Attributes:
        comparisons: By task and metric, merged model and reference.
        spreads: Over orders and seeds, also of metrics that are not compared.
        left_out: What is not compared.
        best_single_by: How the best model was chosen: "validation_loss", or "test_score", which favours it.
        limit: lm-eval's limit; if not None, only a part of each task was scored.
        confidence: Of the intervals.
        power: Chance to find the detectable difference.
        resamples: Of the bootstrap, and of sign flips where these are sampled.
        seed: Of both.
        methods: How each kind of number is made.
        files: lm-eval's files behind the numbers, relative to this one: by model, "results" and "samples", by task.
        subtasks: The tasks that each group comes down to.
        versions: Of Python and packages.
        calibration: Of each model on each task of multiple choice.
    """

    comparisons: list[Comparison]
    spreads: list[Spread]
    left_out: list[LeftOut]
    best_single_by: Literal["validation_loss", "test_score"]
    limit: float | None
    confidence: float
    power: float
    resamples: int
    seed: int
    methods: dict[str, str]
    files: dict[str, dict[str, dict[str, str]]]
    subtasks: dict[str, list[str]]
    versions: dict[str, str]
    calibration: list[Calibration] = field(default_factory=list)


def write_comparison(report: ComparisonReport, path: Path) -> None:
    """Write a report.

    Args:
        report: The report.
        path: The JSON file.
    """
    write_json(path, asdict(report))


def load_comparison(path: Path) -> ComparisonReport:
    """Read a report.

    Args:
        path: The JSON file.

    Raises:
        UserError: If it is missing or was not written by this version.
    """
    report: ComparisonReport = read_json(path, ComparisonReport, remedy="`ordermerge run` writes it anew")
    return report
