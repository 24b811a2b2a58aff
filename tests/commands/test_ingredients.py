"""Merges along the training, through `ordermerge run`: which checkpoints go in, with which weights, and refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from ordermerge.cli import main
from ordermerge.commands.coefficients import loss_weights, minus_sqrt_decay
from ordermerge.commands.curve import subset_merges
from ordermerge.commands.plan import make_plan
from ordermerge.config.load import load_experiment
from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError

pytestmark = pytest.mark.integration

SFT = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "bf16": False}
LOSSES = {"eval_strategy": "steps", "eval_steps": 2}


def linear(weights: Any = None, **ingredients: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "ingredients": ingredients, **({"weights": weights} if weights else {})}


@pytest.fixture(scope="module")
def base(make_family: Callable[..., list[Path]]) -> Path:
    return make_family(count=0, dtype=torch.float32)[0]


def invoke(place: Path, base: Path, merges: dict[str, Any], *options: str, **sections: Any) -> Result:
    """Run an experiment of 2 orders, 20 samples and 6 steps, which keeps the models after steps 2, 4 and 6."""
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(5) for b in range(4)]
    (place / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(base)},
        "data": {"train": "data.jsonl", "validation": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": SFT,
        "checkpoints": {"every": 2},
        "merges": merges,
    }
    for name, values in sections.items():
        content[name] = values if values is None else {**content.get(name, {}), **values}
    (place / "experiment.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    return CliRunner().invoke(main, ["run", str(place / "experiment.yml"), "--runs-dir", str(place), *options])


def written(place: Path, merge: str) -> dict[str, float | None]:
    """Return by model of a written recipe, relative to the folder of the orders, its weight."""
    recipe = yaml.safe_load((place / "tiny" / "recipes" / f"{merge}.yml").read_text())
    return {
        entry["model"].rpartition("/orders/")[2]: entry.get("parameters", {}).get("weight")
        for entry in recipe["models"]
    }


def test_merges_along_the_training(base: Path, tmp_path: Path) -> None:
    merges = {
        "average": {"merge_method": "linear", "parameters": {"weight": 1}},
        "tail": linear("minus-sqrt", orders=[0], checkpoints=3),
        "crossed": linear({"ema": 0.2}, checkpoints=2),
        "ends": linear(orders=[1, 0]),
        "steps": linear("wma", orders=[1], checkpoints=[6, 2]),
        "losses": linear({"validation_loss": 0.1}, checkpoints=2),
        "selected": {"merge_method": "parameter_selection", "ingredients": {"orders": [0], "checkpoints": 3}},
        "stock": {"merge_method": "model_stock", "ingredients": {"orders": [0], "checkpoints": 3}},
        "own": {**linear(orders=[0], checkpoints=2), "parameters": {"weight": 3}},
    }
    done = invoke(tmp_path, base, merges, sft={**SFT, **LOSSES})
    assert done.exit_code == 0, done.output
    run = tmp_path / "tiny"
    expected = {
        "average": {"0": None, "1": None},
        "tail": dict(zip(["0/checkpoints/step-2", "0/checkpoints/step-4", "0"], minus_sqrt_decay(3), strict=True)),
        "crossed": {"0/checkpoints/step-4": 0.4, "0": 0.1, "1/checkpoints/step-4": 0.4, "1": 0.1},
        "ends": {"1": 0.5, "0": 0.5},
        "steps": {"1/checkpoints/step-2": 1 / 3, "1": 2 / 3},
        "selected": dict.fromkeys(["0/checkpoints/step-2", "0/checkpoints/step-4", "0"], 1 / 3),
        "stock": dict.fromkeys(["0/checkpoints/step-2", "0/checkpoints/step-4", "0"]),
        "own": dict.fromkeys(["0/checkpoints/step-4", "0"]),
    }
    for name, weights in expected.items():
        found = written(tmp_path, name)
        assert list(found) == list(weights), name
        assert found == pytest.approx(weights, abs=1e-9), name

    taken = {
        f"{order}" if at["step"] == 6 else f"{order}/checkpoints/step-{at['step']}": at["loss"]
        for order in range(2)
        for at in json.loads((run / f"orders/{order}/order/order.json").read_text())["eval_losses"]
    }
    names = ["0/checkpoints/step-4", "0", "1/checkpoints/step-4", "1"]
    by_loss = loss_weights([taken[name] for name in names], 0.1)
    assert written(tmp_path, "losses") == pytest.approx(dict(zip(names, by_loss, strict=True)), abs=1e-9)
    assert len(set(by_loss)) == 4

    kept = [load_file(run / "orders" / name / "model.safetensors") for name in expected["tail"]]
    mean = load_file(run / "merges" / "tail" / "model.safetensors")
    for key, value in mean.items():
        exact = sum(weight * model[key].double() for weight, model in zip(minus_sqrt_decay(3), kept, strict=True))
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)
    drawn = load_file(run / "merges" / "selected" / "model.safetensors")
    for key, value in drawn.items():
        assert torch.stack([value == model[key] for model in kept]).any(dim=0).all()

    card = (run / "merges" / "tail" / "README.md").read_text()
    assert "- model: orders/0/checkpoints/step-2\n  parameters:\n    weight: 0.577350269\n" in card
    report = (run / "report.md").read_text().replace("\\", "")
    assert "- `tail`: order_0: step 2 (0.57735), step 4 (0.239146), end (0.183503) merged with linear\n" in report

    # a merge of order 0 is not made again when another order is
    made = {name: (run / "merges" / name / "ordermerge.json").stat().st_mtime_ns for name in merges}
    shutil.rmtree(run / "orders" / "1")
    assert invoke(tmp_path, base, merges, sft={**SFT, **LOSSES}).exit_code == 0
    assert {name: (run / "merges" / name / "ordermerge.json").stat().st_mtime_ns for name in merges} == made

    # a curve adds orders
    experiment = load_experiment(tmp_path / "experiment.yml")
    scored = experiment.model_copy(update={"evaluation": EvaluationSection(tasks=["ordermerge_text"])})
    assert subset_merges(make_plan(scored, run), "ends").orders == [0, 1]
    with pytest.raises(UserError, match=r"this merge adds checkpoints along the training; choose .* \(average, ends\)"):
        subset_merges(make_plan(scored, run), "tail")

    shutil.rmtree(run / "orders" / "0" / "checkpoints" / "step-2")
    gone = invoke(tmp_path, base, merges, sft={**SFT, **LOSSES})
    assert gone.exit_code == 1
    assert "orders/0/checkpoints/step-2/model.safetensors: is missing; restore it, or make it anew" in gone.output


def test_the_trunks_models_go_in_once_with_the_weights_of_all_orders(base: Path, tmp_path: Path) -> None:
    merges = {"tails": linear({"ema": 0.2}, checkpoints=3), "one": linear("linear", orders=[1], checkpoints=[2, 6])}
    done = invoke(tmp_path, base, merges, orders={"count": 2, "branch_at": 0.5}, lora={"r": 2})
    assert done.exit_code == 0, done.output
    adapters = {"trunk/checkpoints/step-2": 0.64, "0/checkpoints/step-4": 0.08, "0": 0.1}
    found = written(tmp_path, "tails")
    assert list(found) == [*adapters, "1/checkpoints/step-4", "1"]
    assert found == pytest.approx({**adapters, "1/checkpoints/step-4": 0.08, "1": 0.1}, abs=1e-9)
    assert written(tmp_path, "one") == {"trunk/checkpoints/step-2": 0.5, "1": 0.5}
    assert (tmp_path / "tiny" / "merges" / "tails" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("merge", "sections", "expected"),
    [
        (linear(checkpoints=4), {}, "asks for the last 4, and an order keeps the models after steps 2, 4, 6, of which"),
        (linear(checkpoints=[2, 5]), {}, "asks for step 5, and an order keeps the models after steps 2, 4, 6, of whi"),
        (
            linear(checkpoints=2),
            {"checkpoints": {"every": None}},
            "set `checkpoints: {every: ...}`, a number of",
        ),
        (linear(orders=[0, 2]), {}, "ingredients.orders: must be `all`, or a list of different orders from 0 to 1; go"),
        (linear(orders=[0, 0]), {}, "ingredients.orders: must be `all`, or a list of different orders from 0 to 1; go"),
        (linear(checkpoints="last"), {}, "ingredients.checkpoints: must be `end`, a number (the last so many, the en"),
        (linear(checkpoint=2), {}, "unknown key `merges.m.ingredients.checkpoint` (did you mean 'checkpoints'?)"),
        ({"merge_method": "linear", "ingredients": 3}, {}, "ingredients: must be `{orders: ..., checkpoints: ...}`;"),
        (linear("wma"), {}, "weights: 'wma' weighs the checkpoints of an order, and this merge has one of each; set"),
        (linear({"ema": 1}, checkpoints=2), {}, "weights: must be `{validation_loss: T}`, with a temperature T such"),
        (linear("cosine", checkpoints=2), {}, "or `uniform`, `wma`, `linear`, `minus-sqrt`; got 'cosine'"),
        (
            linear({"validation_loss": 1}, checkpoints=2),
            {"sft": {**SFT, "eval_strategy": "epoch"}},
            "needs the validation losses after steps 4, 6, and there will be none after 4; set `sft.eval_strategy: s",
        ),
    ],
)
def test_refused_before_training(
    merge: dict[str, Any], sections: dict[str, Any], expected: str, base: Path, tmp_path: Path
) -> None:
    refused = invoke(tmp_path, base, {"m": merge}, "--dry-run", **sections)
    assert refused.exit_code == 1
    assert expected in " ".join(refused.output.split())
    assert refused.output.count("merges.m") == 1
