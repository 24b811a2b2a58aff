"""Strategies without files: permutations, each by its own law, the same on every machine and version."""

import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ordermerge.errors import UserError
from ordermerge.train.balance import positions, visits
from ordermerge.train.orders import (
    STRATEGIES,
    batch_orders,
    branch_orders,
    branch_step,
    check_distinct,
    epoch_fingerprints,
    random_orders,
    rotate_orders,
)

GOLDEN_ROW = [5, 3, 0, 2, 6, 4, 1, 7]
GOLDEN_FINGERPRINTS = [
    "3157de60f72e66a4fc2b8727bce5b8db0107829dc8251b890de1c52b038c1134",
    "6c466093a17a2aaa8a6170ac9bd7b746dadf0464edf406e3e7cc9a4fc1ec247a",
    "f33a8c3e12b41903758e5b7ae996da702880d2c679f71a1ff77200295e4638b3",
]
BATCH_GOLDEN_ROW = [1, 0, 4, 5, 2, 7, 6, 3]
BATCH_FINGERPRINTS = [
    "f9010ac08475c5075c885452faebfd09f918f1e837d7dc77b718be7bcc72853a",
    "99ae5264efc8128bc61687b6bc75533b5af781ae9a60870f366e12c397c795c4",
    "2405a2ff679d7060a4737b0c70398641de3b84f1b62007ba657f94108b74dd27",
]
ROTATE_GOLDEN_ROWS = [[3, 6, 5, 2, 0, 7, 1, 4], [5, 2, 0, 7, 1, 4, 3, 6], [7, 1, 4, 3, 6, 5, 2, 0]]
ROTATE_FINGERPRINTS = [
    "139dbdedc9bdcacc526e505486b8242702493efaea1a60286ce6a8f2d43ddbed",
    "12b1e114850e7596797ecd22fd1059c93a1fe20b7d2f3bf9637af5d940d41468",
    "668776d8ea97a463551eb212887cbeb648a290818763f94747af9cb2774a6e67",
]
# The examples are derandomised: every run tries the same ones.
laws = settings(max_examples=100, derandomize=True, deadline=None, database=None)
SAMPLES, EPOCHS, COUNTS = st.integers(1, 60), st.integers(1, 3), st.integers(2, 7)
SEEDS, BATCHES = st.integers(-(2**63), 2**64), st.integers(1, 20)


def test_random_orders_are_the_same_as_ever():
    assert random_orders(8, 1, 1, 0).tolist() == [[GOLDEN_ROW]]
    assert epoch_fingerprints(random_orders(1000, 3, 2, 5)[1]) == GOLDEN_FINGERPRINTS


def test_batch_orders_are_the_same_as_ever():
    assert batch_orders(8, 1, 2, 0, 3)[1, 0].tolist() == BATCH_GOLDEN_ROW
    assert epoch_fingerprints(batch_orders(1000, 3, 2, 5, 16)[1]) == BATCH_FINGERPRINTS


def test_rotate_orders_are_the_same_as_ever():
    assert rotate_orders(8, 1, 3, 0)[:, 0].tolist() == ROTATE_GOLDEN_ROWS
    assert epoch_fingerprints(rotate_orders(1000, 3, 2, 5)[1]) == ROTATE_FINGERPRINTS


def _assert_uncorrelated(rows: torch.Tensor) -> None:
    # Spearman's rho of independent permutations has standard deviation 1 / sqrt(n - 1); 5 of them over some 100 pairs
    # fail by chance once in 10^4.
    samples = rows.shape[1]
    centred = rows.double() - (samples - 1) / 2
    rho = centred @ centred.T / (samples * (samples**2 - 1) / 12)
    assert (rho - torch.eye(len(rows))).abs().max() < 5 / math.sqrt(samples - 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@laws
@given(samples=SAMPLES, epochs=EPOCHS, count=COUNTS, seed=SEEDS, batch=BATCHES)
def test_every_epoch_of_every_order_is_a_permutation(
    strategy: str, samples: int, epochs: int, count: int, seed: int, batch: int
):
    orders = STRATEGIES[strategy](samples, epochs, count, seed, batch)
    assert orders.shape == (count, epochs, samples)
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(dim=-1).values, torch.arange(samples).expand(count, epochs, samples))


@pytest.mark.parametrize("strategy", [random_orders, batch_orders])
@laws
@given(samples=SAMPLES, epochs=EPOCHS, count=COUNTS, seed=SEEDS, batch=BATCHES)
def test_independent_orders_depend_neither_on_count_nor_on_epochs(
    strategy, samples: int, epochs: int, count: int, seed: int, batch: int
):
    more = strategy(samples, epochs + 1, count + 2, seed, batch)
    assert torch.equal(strategy(samples, epochs, count, seed, batch), more[:count, :epochs])


def test_random_orders_are_uncorrelated_with_each_other_and_with_the_identity():
    _assert_uncorrelated(torch.cat([random_orders(2000, 3, 5, 0).flatten(0, 1), torch.arange(2000)[None]]))


def test_random_orders_place_single_samples_whatever_the_batch():
    assert torch.equal(random_orders(50, 2, 3, 9, 8), random_orders(50, 2, 3, 9))


@laws
@given(samples=SAMPLES, epochs=EPOCHS, count=COUNTS, seed=SEEDS, batch=BATCHES)
def test_batch_orders_move_whole_batches_and_keep_a_short_one_last(
    samples: int, epochs: int, count: int, seed: int, batch: int
):
    epochs_of_batches = [
        list(epoch.split(batch)) for epoch in batch_orders(samples, epochs, count, seed, batch).flatten(0, 1)
    ]
    batches = [{tuple(part.tolist()) for part in parts} for parts in epochs_of_batches]
    assert all(found == batches[0] for found in batches)
    if samples % batch:
        assert all(torch.equal(parts[-1], epochs_of_batches[0][-1]) for parts in epochs_of_batches)


def test_batch_orders_place_the_batches_independently():
    batch, batches = 3, 2000
    orders = batch_orders(batch * batches + 2, 3, 5, 0, batch)
    first = orders[:, :, : batch * batches : batch].flatten(0, 1)  # a batch is known by its first sample
    numbers = torch.empty(orders.shape[2], dtype=torch.int64)
    numbers[first[0]] = torch.arange(batches)
    _assert_uncorrelated(numbers[first])


def test_batch_orders_draw_the_partition_by_the_seed():
    sorted_batches = [batch_orders(6000, 1, 1, seed, 3)[0, 0].view(-1, 3).sort(dim=1).values for seed in range(2)]
    one, other = ({tuple(batch) for batch in batches.tolist()} for batches in sorted_batches)
    assert len(one & other) <= 1  # two partitions share a batch of three with odds of about 1 to 4500
    _assert_uncorrelated(torch.stack([batch_orders(6000, 1, 1, 0, 3)[0, 0].argsort(), torch.arange(6000)]))


def test_batch_orders_draw_every_order_of_the_batches_equally_often():
    rows = batch_orders(8, 40, 60, 0, 2).flatten(0, 1)
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@laws
@given(samples=SAMPLES, epochs=EPOCHS, count=COUNTS, seed=SEEDS)
def test_rotate_orders_begin_the_same_permutation_at_every_kth(samples: int, epochs: int, count: int, seed: int):
    orders = rotate_orders(samples, epochs, count, seed)
    for order in range(count):
        start = order * samples // count
        assert torch.equal(orders[order], torch.cat([orders[0, :, start:], orders[0, :, :start]], dim=1))


@laws
@given(part=st.integers(1, 12), epochs=EPOCHS, count=COUNTS, seed=SEEDS)
def test_rotate_orders_take_every_sample_to_every_kth_of_every_epoch_once(
    part: int, epochs: int, count: int, seed: int
):
    orders = rotate_orders(part * count, epochs, count, seed)
    for epoch in range(epochs):
        assert (visits(positions(orders[:, epoch])) == 1).all()


@laws
@given(samples=SAMPLES, count=COUNTS, seed=SEEDS)
def test_rotate_orders_of_any_size_come_as_close_as_the_size_allows(samples: int, count: int, seed: int):
    places = positions(rotate_orders(samples, 1, count, seed)[:, 0])
    ordered = places.sort(dim=0).values
    gaps = torch.cat([ordered[1:] - ordered[:-1], ordered[:1] + samples - ordered[-1:]])
    assert set(gaps.flatten().tolist()) <= {samples // count, -(-samples // count)}
    # A part of s positions has K s visits for n samples: the least that can be missed or doubled is their difference.
    for part, met in enumerate(visits(places)):
        size = sum(position * count // samples == part for position in range(samples))
        assert (met - 1).abs().sum() == abs(count * size - samples)


def test_rotate_orders_draw_independent_uniform_epochs():
    _assert_uncorrelated(torch.cat([rotate_orders(2000, 6, 2, 0)[0], torch.arange(2000)[None]]))
    rows = rotate_orders(4, 2400, 3, 0)[2]
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_strategies_draw_unrelated_permutations():
    rows = [strategy(2000, 1, 2, 0, 1)[0, 0] for strategy in STRATEGIES.values()]
    _assert_uncorrelated(torch.stack(rows))


def test_random_orders_draw_every_permutation_equally_often():
    rows = torch.cat([random_orders(4, 10, 10, seed).flatten(0, 1) for seed in range(24)])
    counts = torch.unique(rows, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_neighbouring_seeds_share_no_epoch(strategy: str):
    orders = [order for seed in range(20) for order in STRATEGIES[strategy](30, 4, 4, seed, 2)]
    prints = [fingerprint for order in orders for fingerprint in epoch_fingerprints(order)]
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


@pytest.mark.parametrize(
    ("strategy", "samples", "batch", "message"),
    [
        ("random", 2, 1, "with 2 training samples there are too few different permutations; use more samples"),
        ("batch", 12, 6, "12 training samples are 2 full batches of 6, too few to permute; use smaller batches"),
        ("batch", 5, 6, "5 training samples are 0 full batches of 6"),
        (
            "rotate",
            3,
            1,
            "3 training samples have only 3 rotations, and `orders.count` is 4; use more samples or fewer",
        ),
    ],
)
def test_check_distinct_says_what_helps_a_strategy(strategy: str, samples: int, batch: int, message: str):
    with pytest.raises(UserError, match=r"orders share epochs \(order \d epoch 0 = order \d epoch 0") as caught:
        check_distinct(STRATEGIES[strategy](samples, 1, 4, 0, batch), strategy, batch)
    assert message in str(caught.value)


def test_check_distinct_takes_as_many_rotations_as_samples():
    check_distinct(rotate_orders(4, 1, 4, 0), "rotate")


def test_check_distinct_lets_an_order_repeat_its_own_epoch():
    check_distinct(torch.tensor([[[0, 1, 2], [0, 1, 2]], [[2, 1, 0], [2, 1, 0]]]))


def test_strategies_are_what_the_experiment_schema_offers():
    from ordermerge.config.schema import OrdersSection

    assert (*STRATEGIES, "file") == OrdersSection.model_fields["strategy"].annotation.__args__


def test_importing_the_package_loads_neither_torch_nor_trl():
    code = "import sys, ordermerge.train; print(sorted({'torch', 'trl', 'datasets'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@laws
@given(SAMPLES, EPOCHS, COUNTS, SEEDS, BATCHES, st.integers(0, 10**6), st.sampled_from(["random", "batch", "rotate"]))
def test_branched_orders(samples, epochs, count, seed, batch, draw, strategy):
    """Every epoch stays a permutation; all is common before the branch and as it was after its epoch."""
    batch = min(batch, samples)
    orders = STRATEGIES[strategy](samples, epochs, count, seed, batch)
    steps = -(-samples // batch)
    epoch, step = divmod(draw % (epochs * steps), steps)
    place = step * batch
    branched = branch_orders(orders, epoch, place, strategy)
    assert torch.equal(branched.sort(dim=2).values, torch.arange(samples).expand_as(branched))
    assert torch.equal(branched[0], orders[0])
    assert (branched[:, :epoch] == orders[0, :epoch]).all()
    assert (branched[:, epoch, :place] == orders[0, epoch, :place]).all()
    assert torch.equal(branched[:, epoch + 1 :], orders[:, epoch + 1 :])
    if place == 0:
        assert torch.equal(branched[:, epoch], orders[:, epoch])
    assert torch.equal(branch_orders(branched, epoch, place, "file"), branched)
    left = branched[:, epoch, place:]
    if strategy == "batch":
        whole = (samples - place) // batch * batch
        sets = left[:, :whole].view(count, -1, batch).tolist()
        assert all(sorted(map(tuple, part)) == sorted(map(tuple, sets[0])) for part in sets)
        assert (left[:, whole:] == left[0, whole:]).all()
    if strategy == "rotate":
        places = [left[0].tolist().index(part[0]) for part in left.tolist()]
        assert places == [order * left.shape[1] // count for order in range(count)]


def test_the_samples_left_over_are_permuted_uniformly():
    """24 permutations of 4 left over, from 2400 seeds: chi-squared with 23 degrees of freedom, p above 0.001."""
    seen = Counter()
    for seed in range(2400):
        orders = branch_orders(random_orders(9, 1, 2, seed), 0, 5, "random")
        left = orders[0, 0, 5:].tolist()
        seen[tuple(left.index(sample) for sample in orders[1, 0, 5:].tolist())] += 1
    assert len(seen) == 24
    assert stats.chisquare(list(seen.values())).pvalue > 0.001


@pytest.mark.parametrize(
    ("at", "steps", "step"), [(None, 10, 0), (0, 10, 0), (7, 10, 7), (0.29, 100, 29), (0.75, 15, 11), (0.05, 10, 0)]
)
def test_the_branch_is_a_whole_step(at, steps, step):
    assert branch_step(at, steps) == step


def test_a_branch_leaves_steps_over():
    with pytest.raises(
        UserError, match=r"`orders\.branch_at` is step 10, and a training takes 10; nothing would be left"
    ):
        branch_step(10, 10)


def test_orders_of_the_user_that_differ_before_the_branch_are_refused():
    with pytest.raises(UserError, match=r"differ before the branch \(epoch 1, position 4 of 8\)"):
        branch_orders(random_orders(8, 2, 2, 0), 1, 4, "file")


def test_orders_may_begin_alike_where_that_is_meant():
    orders = branch_orders(random_orders(20, 3, 3, 0), 1, 5, "random")
    check_distinct(orders, may_begin_alike=True)
    with pytest.raises(UserError, match="order 0 epoch 0 = order 1 epoch 0"):
        check_distinct(orders)
    orders[2] = orders[1]
    with pytest.raises(UserError, match="order 1 epoch 1 = order 2 epoch 1; order 1 epoch 2 = order 2 epoch 2"):
        check_distinct(orders, may_begin_alike=True)
    orders = random_orders(20, 3, 2, 0)
    orders[1, 1] = orders[0, 1]
    with pytest.raises(UserError, match="order 0 epoch 1 = order 1 epoch 1"):
        check_distinct(orders, may_begin_alike=True)
