"""The figure of the guide shows what the committed results say."""

import csv

import decision
import pytest


def test_figure_is_that_of_the_committed_results() -> None:
    with open(decision.HERE / "decision.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = [(row["study"], row["curve"], float(row["score"]), float(row["half_interval"])) for row in rows]
    found = [
        (study, curve, score, half)
        for study, (_, curves) in decision.PANELS.items()
        for curve, models in curves.items()
        for _, _, score, half, _ in decision.points(study, models)
    ]
    assert [row[:2] for row in drawn] == [row[:2] for row in found]
    assert [row[2:] for row in drawn] == [pytest.approx(row[2:]) for row in found]
