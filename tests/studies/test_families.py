"""The experiments of a study are those that `ordermerge run` takes."""

from pathlib import Path

import families
import pytest

from ordermerge.config.load import load_experiment

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.mark.parametrize("study", ["price", "resampling", "banking77", "merges", "order_noise", "mixes", "four_epochs"])
def test_each_is_an_experiment(study: str) -> None:
    found = families.experiments(STUDIES / study)
    assert found
    for path in found:
        assert load_experiment(path).name == f"{study}_{path.stem}"


def test_one_can_be_chosen() -> None:
    assert [path.name for path in families.experiments(STUDIES / "price", ["annealed"])] == ["annealed.yml"]
