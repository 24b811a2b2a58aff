"""The order that training really met: put together from the processes, and compared with the plan."""

import itertools
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.callbacks import count_repeats, interleave
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import OrderSampler


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_what_accelerate_deals_out_to_processes_is_put_together_again(
    samples: int, batch: int, processes: int, drop_last: bool
):
    plan = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    batches = BatchSampler(plan.tolist(), batch, drop_last)
    shards: list[Any] = [batches]
    if processes > 1:
        shards = [BatchSamplerShard(batches, processes, rank) for rank in range(processes)]
    met = interleave([array("q", itertools.chain.from_iterable(shard)) for shard in shards], batch)
    repeats = count_repeats(met, plan, "order_0, epoch 0", drop_last=drop_last)
    assert len(met) - repeats == min(len(met), samples)
    if drop_last:
        assert repeats == 0
    elif processes == 1:
        assert torch.equal(met, plan)
    else:
        assert repeats == -samples % (batch * processes)


def test_another_order_than_planned_is_an_error_that_names_the_place():
    message = "order_1, epoch 2: training met the samples in another order than planned: at position 1 sample 4 instead"
    with pytest.raises(UserError, match=message):
        count_repeats(torch.tensor([3, 4, 5]), torch.tensor([3, 5, 4]), "order_1, epoch 2", drop_last=False)
    with pytest.raises(UserError, match="epoch 0: training met only 2 of 3 samples"):
        count_repeats(torch.tensor([3, 5]), torch.tensor([3, 5, 4]), "order_0, epoch 0", drop_last=False)
    assert count_repeats(torch.tensor([3, 5]), torch.tensor([3, 5, 4]), "", drop_last=True) == 0


def test_an_order_that_was_not_consumed_as_planned_is_not_kept(
    tmp_path: Path, write_experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
):
    visit = OrderSampler.__iter__

    def swap_two_in_the_second_epoch(self: OrderSampler) -> Any:
        plan = list(visit(self))
        if self._epoch() == 1:
            plan[5], plan[6] = plan[6], plan[5]
        return iter(plan)

    monkeypatch.setattr(OrderSampler, "__iter__", swap_two_in_the_second_epoch)
    message = re.escape("order_0, epoch 1: training met the samples in another order than planned: at position 5")
    with pytest.raises(UserError, match=message):
        train_orders(write_experiment(), tmp_path / "run", only=0)
    assert not (tmp_path / "run" / "orders" / "0").exists()
