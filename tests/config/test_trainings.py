"""Which trainings an experiment has, and what they cost."""

from typing import Any

import pytest
import torch
from transformers import SchedulerType, get_scheduler
from trl import SFTConfig

from ordermerge.config.schema import Experiment
from ordermerge.config.trainings import (
    EPOCHS,
    SCHEDULE,
    Training,
    branched_price,
    control_runs,
    decays_to_zero,
    epochs_of,
    lacks_annealing,
    sub_models,
)


def experiment(**sections: Any) -> Experiment:
    content = {
        "name": "tiny",
        "model": {"path": "org/base"},
        "data": {"train": "org/data", "prompt": "{q}", "completion": "{a}"},
        "orders": {"count": 3},
        "sft": {"num_train_epochs": 2, "lr_scheduler_type": "constant"},
    }
    return Experiment.model_validate({**content, **sections})


def test_trls_defaults_are_known() -> None:
    assert (SFTConfig.num_train_epochs, SFTConfig.lr_scheduler_type) == (EPOCHS, SCHEDULE)


def test_sub_models_are_the_orders_crossed_with_the_values() -> None:
    assert sub_models(experiment()) == [Training(str(k), k) for k in range(3)]
    varied = experiment(vary={"learning_rate": [1e-3, 5e-4], "weight_decay": [0, 0.1]})
    assert varied.count == 12
    found = sub_models(varied)
    assert [(one.folder, one.order) for one in found] == [(str(k), k % 3) for k in range(12)]
    assert [one.fields for one in found[::3]] == [
        {"learning_rate": 1e-3, "weight_decay": 0},
        {"learning_rate": 1e-3, "weight_decay": 0.1},
        {"learning_rate": 5e-4, "weight_decay": 0},
        {"learning_rate": 5e-4, "weight_decay": 0.1},
    ]


def test_runs_of_controls_have_the_orders_permutations_and_fields() -> None:
    controls = {"annealed": {"count": 2}, "longer": True, "hot": {"learning_rate": 2e-3}, "off": False}
    linear = {"lr_scheduler_type": "linear"}
    assert control_runs(experiment(controls=controls)) == [
        Training("annealed", 0, linear, "annealed"),
        Training("annealed_1", 1, linear, "annealed"),
        Training("longer", 0, {}, "longer"),
        Training("hot", 0, {"learning_rate": 2e-3}, "hot"),
    ]
    told = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}}
    varied = experiment(sft=told, vary={"learning_rate": [1, 2]}, controls={"annealed": {"count": 4}})
    assert control_runs(varied)[3] == Training(
        "annealed_3", 0, {"learning_rate": 2, **linear, "lr_scheduler_kwargs": None}, "annealed"
    )


@pytest.mark.parametrize(
    ("orders", "shared", "epochs"),
    [
        ({"count": 4}, 0, 8),
        ({"count": 4, "branch_at": 0.75}, 0.75, 4),  # 3.5
        ({"count": 4, "branch_at": 0.5}, 0.5, 5),
        ({"count": 11, "branch_at": 0.9}, 0.9, 4),  # 4.0 but for rounding
        ({"count": 2, "branch_at": 3}, 3 / 14, 4),
    ],
)
def test_longer_takes_the_price_of_all_orders_in_whole_epochs(
    orders: dict[str, Any], shared: float, epochs: int
) -> None:
    made = experiment(orders=orders, controls={"longer": True, "other": {"num_train_epochs": 5}, "annealed": True})
    assert [epochs_of(made, run, shared) for run in control_runs(made)] == [epochs, 5, 2]


def test_the_price_of_branched_orders() -> None:
    assert [branched_price(4, shared) for shared in (0, 0.5, 0.75)] == [4, 2.5, 1.75]
    assert branched_price(1, 0.9) == 1


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_the_schedules_that_decay_are_transformers_own(kind: str) -> None:
    told: dict[str, dict[str, Any]] = {
        "warmup_stable_decay": {"num_decay_steps": 50},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    }
    sft = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": told.get(kind)}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_scheduler(kind, optimizer, 0, 1000, scheduler_specific_kwargs=told.get(kind))
    ends = getattr(schedule, "lr_lambdas", [lambda step: 1])[0](1000)
    assert decays_to_zero(sft) == (ends < 1e-3)
    assert not decays_to_zero({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-5}})


@pytest.mark.parametrize(
    ("sections", "lacks"),
    [
        ({}, True),
        ({"sft": {}}, False),  # transformers' default is linear
        ({"controls": {"annealed": True}}, False),
        ({"controls": {"longer": {"lr_scheduler_type": "cosine"}}}, True),
        ({"controls": {"x": {"lr_scheduler_type": "cosine"}}}, False),
        ({"controls": {"x": {"lr_scheduler_type": "cosine", "num_train_epochs": 3}}}, True),
        ({"sft": {}, "vary": {"lr_scheduler_type": ["constant", "cosine"]}}, False),
    ],
)
def test_nothing_of_an_orders_price_is_annealed(sections: dict[str, Any], lacks: bool) -> None:
    assert lacks_annealing(experiment(**sections)) == lacks
