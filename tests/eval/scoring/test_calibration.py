"""Calibration of multiple choice, by hand and from lm-eval's own samples."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ordermerge.eval.scoring.calibration import Answer, calibration, expected_calibration_error, read_answer
from ordermerge.eval.scoring.saved import load_scores


def sample(chances: list[float], target: str, acc: float, choices: str = "ABC") -> dict[str, Any]:
    return {
        "arguments": {f"gen_args_{i}": {"arg_0": "q", "arg_1": f" {choice}"} for i, choice in enumerate(choices)},
        "filtered_resps": [[str(math.log(chance) - 7), "False"] for chance in chances],
        "target": target,
        "acc": acc,
    }


@pytest.mark.parametrize(("target", "acc"), [("1", 1.0), ("B", 1.0), ("2", 0.0), ("C", 0.0)])
def test_an_answer_is_read_whether_the_target_is_an_index_or_a_text(target: str, acc: float) -> None:
    answer = read_answer(sample([0.2, 0.5, 0.3], target, acc))
    right = [0, 1, 0] if acc else [0, 0, 1]
    assert (answer.right, answer.confidence) == (bool(acc), pytest.approx(0.5))
    assert answer.brier == pytest.approx(sum((p - y) ** 2 for p, y in zip([0.2, 0.5, 0.3], right, strict=True)))


def test_choices_that_are_digits_are_told_from_indices_by_the_accuracy() -> None:
    one_is_the_text_of_the_first = sample([0.6, 0.3, 0.1], "1", 1.0, choices="123")
    assert read_answer(one_is_the_text_of_the_first).brier == pytest.approx(0.4**2 + 0.3**2 + 0.1**2)


def test_what_does_not_tell_the_right_answer_is_left_out() -> None:
    assert read_answer(sample([0.2, 0.5, 0.3], "[0, 1]", 1.0)) is None
    assert read_answer({**sample([0.2, 0.5, 0.3], "1", 1.0), "filtered_resps": [["0", "False"]] * 6}) is None


def test_expected_calibration_error_of_bins_by_hand() -> None:
    confidence, right = np.array([0.9, 0.92, 0.55, 0.55, 1.0]), np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    assert expected_calibration_error(confidence, right) == pytest.approx((0.82 + 0.9 + 0) / 5)
    always_sure = calibration("m", "t", [Answer(1.0, True, 0.0), Answer(1.0, False, 2.0)])
    assert (always_sure.accuracy, always_sure.calibration_error, always_sure.brier_score) == (0.5, 0.5, 1.0)


def test_a_calibrated_model_has_no_error_beyond_chance() -> None:
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1, 100_000)
    right = (random.random(100_000) < confidence).astype(float)
    assert expected_calibration_error(confidence, right) < 0.01  # 11 bins, each mean's s.e. below .005


@pytest.mark.integration
def test_lm_evals_own_samples_of_multiple_choice(scored: Path) -> None:
    saved = load_scores(scored / "base")
    assert saved.choices == {"choice"}
    samples = [json.loads(line) for line in saved.samples["choice"].read_text().splitlines()]
    answers = [read_answer(sample) for sample in samples]
    for one, answer in zip(samples, answers, strict=True):
        logs = np.array([float(response[0]) for response in one["filtered_resps"]])
        chances = np.exp(logs) / np.exp(logs).sum()
        assert answer.brier == pytest.approx(((chances - np.eye(3)[one["doc"]["label"]]) ** 2).sum())
        assert answer.right == bool(one["acc"])
