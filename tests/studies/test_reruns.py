"""What two studies trained each for itself, from the same settings and seeds, came out the same in every document."""

from pathlib import Path

import numpy as np
import pytest
from answers import read_documents

STUDIES = Path(__file__).resolve().parents[2] / "studies"
SAME = {  # in `price`, and in `merges`
    **{f"annealed/order_{order}": f"annealed/order_{order}" for order in range(4)},
    "annealed/two_orders": "annealed/average_2",
    "annealed/weighted_average": "annealed/average_4",
    "annealed/parameter_selection": "annealed/selection_4",
}


@pytest.mark.parametrize("model", SAME)
def test_studies_agree_on_what_both_trained(model: str) -> None:
    one, other = (read_documents(STUDIES / study / "results") for study in ("price", "merges"))
    families = one[model].keys() & other[SAME[model]].keys()
    assert len(families) >= 3
    for family in families:
        np.testing.assert_array_equal(one[model][family], other[SAME[model]][family])
