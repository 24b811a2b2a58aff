"""Answer a study's questions from its committed results: tables and the figure of score against price.

    python studies/answers.py studies/price

Reads `questions.yml` and `results/`, where it writes `answers.md`, `answers.json` and `price.png`, `.svg` and `.csv`.
A contrast is the mean score of some models less that of others, by family and document. Families and documents
are both drawn from larger populations, so the variance of the mean over F families and n documents is

    s_F^2 / F + s_n^2 / n - s^2 / (F n)

with s_F^2 the variance of the families' means, s_n^2 of the documents' and s^2 what is left of the single values
without both: the mean squares of two crossed random effects (Searle, Casella and McCulloch, Variance Components, 1992).
A component of variance that comes out negative is taken as 0: families that agree by chance leave the documents' part,
and never nothing.
Student's t has the F - 1 degrees of freedom of the families, which is cautious. p-values are corrected for the number
of questions (Holm).
"""

import argparse
import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy.stats import norm, t

from ordermerge.eval.run_figures import Kind, PricedScore, PricePanel, price_figure
from ordermerge.eval.scoring.table import NO_FILTER
from ordermerge.eval.statistics import LEVEL, POWER, holm


@dataclass(frozen=True)
class Contrast:
    """What a study says about one question.

    Attributes:
        name: The question.
        difference: Mean score of the first models less that of the others.
        low: Lower end of the interval over families and documents.
        high: Upper end.
        p_value: Two-sided, of a difference of 0, corrected for the study's number of questions.
        detectable: The smallest true difference found with a chance of 80 %, before that correction.
        families: The families it was measured on.
        documents: The documents of each.
    """

    name: str
    difference: float
    low: float
    high: float
    p_value: float
    detectable: float
    families: int
    documents: int


FEWEST = 5  # families whose interval is drawn: of fewer it fills the figure
Scores = dict[str, dict[int, np.ndarray]]  # by `experiment/model` and family: uint8 of shape [documents]


def read_documents(results: Path) -> Scores:
    """Return each model's scores of the documents, by family."""
    with open(results / "scores.csv", encoding="utf-8", newline="") as file:
        counts = {int(row["documents"]) for row in csv.DictReader(file)}
    (count,) = counts
    found: Scores = {}
    with np.load(results / "documents.npz") as arrays:
        for key, packed in arrays.items():
            experiment, family, model = key.split("/", 2)
            found.setdefault(f"{experiment}/{model}", {})[int(family)] = np.unpackbits(packed, count=count)
    return found


def mean_scores(scores: Scores, models: list[str], families: list[int]) -> np.ndarray:
    """Return the mean of models' scores, shape [families, documents]."""
    return np.mean([[scores[model][family] for family in families] for model in models], axis=0)


def common_families(scores: Scores, models: list[str]) -> list[int]:
    """Return the families in which all models were scored; an experiment that was not run has none."""
    return sorted(set.intersection(*(set(scores.get(model, {})) for model in models)))


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean of values by family and document, shape [F, n], both at random."""
    families, documents = values.shape
    of_families, of_documents = values.mean(axis=1), values.mean(axis=0)
    left = values - of_families[:, None] - of_documents + values.mean()
    rest = (left**2).sum() / ((families - 1) * (documents - 1))
    family = max(of_families.var(ddof=1) - rest / documents, 0)
    document = max(of_documents.var(ddof=1) - rest / families, 0)
    return float(np.sqrt(family / families + document / documents + rest / values.size))


def answer(name: str, first: np.ndarray, second: np.ndarray) -> Contrast:
    """Answer one question.

    Args:
        name: The question.
        first: Mean scores of the models asked about, by family and document.
        second: Of the models that they are held against.
    """
    values = first - second
    families, documents = values.shape
    difference, error = float(values.mean()), standard_error(values)
    student = t(families - 1)
    half = float(student.ppf((1 + LEVEL) / 2)) * error
    p_value = float(2 * student.sf(abs(difference) / error)) if error else float(difference == 0)
    detectable = (float(student.ppf((1 + LEVEL) / 2)) + float(norm.ppf(POWER))) * error
    return Contrast(name, difference, difference - half, difference + half, p_value, detectable, families, documents)


def answers(questions: list[dict], scores: Scores) -> list[Contrast]:
    """Answer the questions that two families or more can answer; p-values corrected for their number."""
    found = []
    for one in questions:
        families = common_families(scores, [*one["of"], *one["against"]])
        if len(families) < 2:  # nothing can be said over families
            continue
        first, second = (mean_scores(scores, one[side], families) for side in ("of", "against"))
        found.append(answer(one["name"], first, second))
    corrected = holm([one.p_value for one in found])
    return [Contrast(**(asdict(one) | {"p_value": p})) for one, p in zip(found, corrected, strict=True)]


def price_rows(results: Path, scores: Scores, names: dict[str, list[str]]) -> list[tuple]:
    """Return for each group label, price, mean score, half-width of its interval over families, and their number."""
    with open(results / "scores.csv", encoding="utf-8", newline="") as file:
        prices = {f"{row['experiment']}/{row['model']}": float(row["price"]) for row in csv.DictReader(file)}
    rows = []
    for label, models in names.items():
        if not (families := common_families(scores, models)):
            continue
        by_family = mean_scores(scores, models, families).mean(axis=1)
        half = float("nan")
        if len(by_family) > 1:
            half = t(len(by_family) - 1).ppf((1 + LEVEL) / 2) * by_family.std(ddof=1) / np.sqrt(len(by_family))
        rows.append((label, prices[models[0]], float(by_family.mean()), float(half), len(by_family)))
    return sorted(rows, key=lambda row: (row[1], row[2]))


def panel_of(rows: list[tuple], title: str) -> PricePanel:
    """Return the panel of score by price; in it single runs are controls, several models are merges."""
    scores = []
    for label, price, score, half, families in rows:
        kind: Kind = "base model" if not price else "controls" if label.startswith(("one ", "best")) else "merges"
        interval = (score - half, score + half) if families >= FEWEST else None
        scores.append(PricedScore(label, kind, price, score, interval))
    return PricePanel(title, "score", NO_FILTER, True, scores)


def main() -> None:
    """Read the study's folder, and write its answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study
    results, asked = study / "results", yaml.safe_load((study / "questions.yml").read_text(encoding="utf-8"))
    scores = read_documents(results)
    found = answers(asked["questions"], scores)
    rows = price_rows(results, scores, asked["prices"])
    lines = ["| what | price | score | families |", "|---|--:|--:|--:|"]
    lines += [f"| {label} | {price:.3g} | {score:.3f} | {families} |" for label, price, score, _, families in rows]
    lines += [
        "",
        "| question | difference | 95 % interval | p (Holm) | detectable | families |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        numbers = [f"{one.difference:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", f"{one.p_value:.3f}"]
        lines.append(f"| {' | '.join([one.name, *numbers, f'{one.detectable:.4f}', str(one.families)])} |")
    (results / "answers.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps([asdict(one) for one in found], indent=1) + "\n"
    (results / "answers.json").write_text(text, encoding="utf-8")
    price_figure([panel_of(rows, asked["title"])], results / "price")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
