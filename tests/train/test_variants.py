"""Controls and varied fields: the same bits as orders with their fields, resumed like these, refused where wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from ordermerge.cli import main
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.sft import check_training, order_steps, train_orders
from ordermerge.train.trainer import OrderTrainer

Write = Callable[..., Experiment]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "order" / "order.json").read_text())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def permutations(folder: Path) -> torch.Tensor:
    return load_file(folder / "order" / "permutations.safetensors")["permutations"]


def test_a_control_with_an_orders_fields_has_its_bits_and_longer_goes_on(
    write_experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    controls = {"same": {"learning_rate": 1.0e-2, "count": 2}, "longer": {}, "annealed": {}}
    experiment = write_experiment(controls=controls, checkpoints={"every": 4})
    # `longer` goes first, so that its trainer prepares the data; interrupted, it goes on in the second call.
    step, run = OrderTrainer.training_step, tmp_path / "run"

    def interrupt(self: OrderTrainer, *args: Any) -> torch.Tensor:
        if self.state.global_step == 17:
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrderTrainer, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_orders(experiment, run, only="longer")
    folders = train_orders(experiment, run)
    assert [folder.name for folder in folders] == ["0", "1", "annealed", "longer", "same", "same_1"]
    said = capsys.readouterr().err
    assert "longer: goes on after step 14\n" in said
    assert "longer: training on 40 samples, 4 epochs (the permutations of order 0)\n" in said
    assert "training 2 sub-models and 4 controls, with 3 checkpoints of each sub-model, " in said
    zero, one, annealed, longer, same, again = folders
    assert (weights(same), weights(again)) == (weights(zero), weights(one))
    assert len({weights(folder) for folder in (zero, one, longer, annealed)}) == 4
    assert torch.equal(permutations(again), permutations(one))
    assert torch.equal(permutations(annealed), permutations(zero))
    assert torch.equal(permutations(longer)[:2], permutations(zero))
    assert permutations(longer).shape == (4, 40)
    assert torch.equal(permutations(longer).sort(dim=1).values, torch.arange(40).expand(4, 40))
    assert (record(longer)["steps"], record(longer)["samples_consumed"], record(zero)["steps"]) == (28, 160, 14)
    named = ("order", "control", "permutations_of", "fields")
    assert [record(again)[name] for name in named] == [None, "same", 1, {"learning_rate": 1.0e-2}]
    assert [record(one)[name] for name in named] == [1, None, 1, {}]
    assert record(annealed)["fields"] == {"lr_scheduler_type": "linear"}
    assert not (same / "checkpoints").exists()
    assert (zero / "checkpoints").exists()
    straight = train_orders(experiment, tmp_path / "straight", only="longer")
    assert weights(straight[0]) == weights(longer)


def test_controls_of_a_branched_run_begin_with_the_base_model(write_experiment: Write, tmp_path: Path):
    experiment = write_experiment(orders={"branch_at": 10}, controls={"same": {"count": 2}, "longer": {}})
    controls = [train_orders(experiment, tmp_path, only=name)[0] for name in ("longer", "same_1")]
    assert not (tmp_path / "orders" / "trunk").exists()
    assert record(controls[0])["epochs"] == 3  # 1 + 4/14 of 2 epochs
    assert record(controls[1])["branch"] is None
    (tail,) = train_orders(experiment, tmp_path, only=1)
    assert weights(tail) == weights(controls[1])


def test_varied_values_are_crossed_with_the_orders(write_experiment: Write, tmp_path: Path):
    varied = write_experiment(sft={"learning_rate": None}, vary={"learning_rate": [5.0e-3, 1.0e-2]})
    folders = train_orders(varied, tmp_path / "varied")
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    noted = [
        (record(folder)["order"], record(folder)["permutations_of"], record(folder)["fields"]) for folder in folders
    ]
    assert noted == [(k, k % 2, {"learning_rate": (5.0e-3, 1.0e-2)[k // 2]}) for k in range(4)]
    plain = train_orders(write_experiment(), tmp_path / "plain")
    assert [weights(folder) for folder in plain] == [weights(folder) for folder in folders[2:]]
    assert len({weights(folder) for folder in folders}) == 4


def test_more_values_keep_the_sub_models_there_are(write_experiment: Write, tmp_path: Path):
    def inputs(values: list[float], count: int = 2) -> list[dict[str, Any]]:
        given = {"sft": {"learning_rate": None}, "vary": {"learning_rate": values}, "orders": {"count": count}}
        return [step.inputs for step in order_steps(write_experiment(**given), tmp_path)]

    assert inputs([1, 2, 3])[:4] == inputs([1, 2])
    assert inputs([1, 2], count=3)[3] != inputs([1, 2])[3]  # another order's permutations


def test_the_command_trains_one_control(write_experiment: Write, tmp_path: Path):
    write_experiment(controls={"hot": {"learning_rate": 2.0e-2, "num_train_epochs": 1}})
    train = ["train", str(tmp_path / "experiment.yml"), "--runs-dir", str(tmp_path), "--order"]
    done = CliRunner().invoke(main, [*train, "hot"])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "tiny" / "orders" / "hot")]
    failed = CliRunner().invoke(main, [*train, "hott"])
    assert failed.exit_code == 1
    assert "order hott does not exist: `orders.count` is 2, so orders are 0 to 1; controls are hot" in failed.output
    again = CliRunner().invoke(main, [*train, "hot"])
    assert "hot: already trained, kept" in again.output


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"controls": {"annealed": {}}, "sft": {"lr_scheduler_type": "cosine"}},
            "the orders (cosine) decays to 0 already",
        ),
        (
            {"controls": {"annealed": {"lr_scheduler_type": "constant"}}},
            "its schedule, 'constant', does not decay to 0",
        ),
        ({"controls": {"longer": {"num_train_epochs": 8}}}, "follows from its price, that of all orders together"),
        ({"controls": {"hot": {"max_length": 9}}}, "controls.hot: `max_length` cannot be set: controls are trained on"),
        ({"controls": {"hot": {"learnin_rate": 1}}}, "`controls.hot.learnin_rate`: TRL's SFTConfig has no such"),
        ({"controls": {"hot": {"seed": 1}}}, "`controls.hot.seed` cannot be set"),
        ({"controls": {"hot": {"count": 3}}}, "controls.hot: `count` is 3, and there are 2 sub-models"),
        ({"controls": {"trunk": {}}}, "controls.trunk: the name trunk is taken"),
        ({"controls": {"1": {}}}, "controls.1: the name 1 is taken"),
        ({"controls": {"a": {"count": 2}, "a_1": {}}}, "controls.a_1: the name a_1 is taken"),
        ({"vary": {"learning_rate": [1, 2]}}, "`vary.learning_rate` is in `sft` too; leave it to one of them"),
        ({"vary": {"max_length": [8, 9]}}, "`vary.max_length` cannot be varied: all sub-models train on the same data"),
        ({"vary": {"weight_decay": [0.1, 0.1]}}, "`vary.weight_decay` names a value twice"),
        ({"vary": {"log_level": ["info", "debug"]}}, "`vary.log_level` does not change what is learned"),
        ({"vary": {"weight_decay": [0.1, "much"]}}, "`vary.weight_decay` must be a number; got 'much'"),
        (
            {"vary": {"weight_decay": [0, 0.1]}, "orders": {"branch_at": 3}},
            "`orders.branch_at` does not go with `vary`",
        ),
    ],
)
def test_what_controls_and_varied_fields_cannot_be(sections: dict[str, Any], problem: str, write_experiment: Write):
    found = check_training(write_experiment(**sections))
    assert len(found) == 1, found
    assert problem in found[0]


def test_only_controls_that_define_themselves_are_true(write_experiment: Write):
    with pytest.raises(UserError, match=r"takes `true` for `longer` and `annealed`; give `hot` the `sft` fields"):
        write_experiment(controls={"hot": True})
