"""Random orders: permutations, independent of each other, the same on every machine and version."""

import math
import subprocess
import sys

import pytest
import torch
from scipy import stats

from ordermerge.errors import UserError
from ordermerge.train import STRATEGIES, check_distinct, epoch_fingerprints, random_orders

GOLDEN_ROW = [5, 3, 0, 2, 6, 4, 1, 7]
GOLDEN_FINGERPRINTS = [
    "3157de60f72e66a4fc2b8727bce5b8db0107829dc8251b890de1c52b038c1134",
    "6c466093a17a2aaa8a6170ac9bd7b746dadf0464edf406e3e7cc9a4fc1ec247a",
    "f33a8c3e12b41903758e5b7ae996da702880d2c679f71a1ff77200295e4638b3",
]


def test_random_orders_are_the_same_as_ever():
    assert random_orders(8, 1, 1, 0).tolist() == [[GOLDEN_ROW]]
    assert epoch_fingerprints(random_orders(1000, 3, 2, 5)[1]) == GOLDEN_FINGERPRINTS


@pytest.mark.parametrize("samples", [1, 2, 17, 1000])
def test_every_epoch_of_every_order_is_a_permutation(samples: int):
    orders = random_orders(samples, 3, 4, 1)
    assert orders.shape == (4, 3, samples)
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(dim=-1).values, torch.arange(samples).expand(4, 3, samples))


def test_random_orders_depend_neither_on_count_nor_on_epochs():
    assert torch.equal(random_orders(50, 2, 3, 9), random_orders(50, 4, 7, 9)[:3, :2])


def test_random_orders_are_uncorrelated_with_each_other_and_with_the_identity():
    samples = 2000
    rows = torch.cat([random_orders(samples, 3, 5, 0).flatten(0, 1), torch.arange(samples)[None]])
    # Spearman's rho of independent permutations has standard deviation 1 / sqrt(n - 1); 5 of them over 120 pairs fail
    # by chance once in 10^4.
    centred = rows.double() - (samples - 1) / 2
    rho = centred @ centred.T / (samples * (samples**2 - 1) / 12)
    assert (rho - torch.eye(len(rows))).abs().max() < 5 / math.sqrt(samples - 1)


def test_random_orders_draw_every_permutation_equally_often():
    rows = torch.cat([random_orders(4, 10, 10, seed).flatten(0, 1) for seed in range(24)])
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_neighbouring_seeds_share_no_epoch():
    prints = [p for seed in range(20) for order in random_orders(30, 4, 4, seed) for p in epoch_fingerprints(order)]
    assert len(set(prints)) == 20 * 4 * 4


def test_check_distinct_names_what_orders_share_and_the_remedy():
    orders = random_orders(30, 2, 3, 0)
    check_distinct(orders)
    orders[2, 1] = orders[0, 0]
    with pytest.raises(
        UserError, match=r"order 0 epoch 0 = order 2 epoch 1\): with 30 training samples .*`orders.seed`"
    ):
        check_distinct(orders)


def test_check_distinct_refuses_more_orders_than_permutations():
    with pytest.raises(UserError, match=r"with 2 training samples there are too few"):
        check_distinct(random_orders(2, 1, 3, 0))


def test_check_distinct_lets_an_order_repeat_its_own_epoch():
    check_distinct(torch.tensor([[[0, 1, 2], [0, 1, 2]], [[2, 1, 0], [2, 1, 0]]]))


def test_strategies_are_what_the_experiment_schema_offers():
    from ordermerge.experiment import OrdersSection

    assert tuple(STRATEGIES) == OrdersSection.model_fields["strategy"].annotation.__args__


def test_importing_the_package_loads_neither_torch_nor_trl():
    code = "import sys, ordermerge.train; print(sorted({'torch', 'trl', 'datasets'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_every_public_name_can_be_imported():
    import ordermerge.train

    for name in ordermerge.train.__all__:
        assert getattr(ordermerge.train, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = ordermerge.train.nothing
