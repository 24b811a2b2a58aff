"""`ordermerge losses` and `ordermerge imbalance` on a tiny trained run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from ordermerge.cli import main
from ordermerge.commands import measure as measure_module
from ordermerge.commands.losses import load_splits
from ordermerge.config.load import load_experiment
from ordermerge.eval.imbalance.effect import contrast, log_loss
from ordermerge.progress import Counted
from ordermerge.train.base_model import load_tokenizer
from ordermerge.train.samples import load_samples
from ordermerge.train.sft_config import make_config
from ordermerge.train.trainer import OrderTrainer

pytestmark = pytest.mark.integration
MODELS = ["base", "order_0", "order_1", "order_2", "average", "selected"]


@pytest.fixture(scope="module")
def trained(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of three orders of 25 samples, of which 5 are held out, and two merges."""
    root = tmp_path_factory.mktemp("imbalance")
    records = [{"question": f"{a}+{b}=" + "x" * a, "answer": f"{a + b}" * (1 + b)} for a in range(5) for b in range(5)]
    (root / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    content = {
        "name": "tiny",
        "model": {"path": str(make_family(count=0, dtype=torch.float32)[0])},
        "data": {"train": "data.jsonl", "validation": 0.2, "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 3},
        "sft": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2},
        "merges": {
            "average": {"merge_method": "linear", "parameters": {"weight": 1}},
            "selected": {"merge_method": "parameter_selection"},
        },
    }
    (root / "experiment.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = CliRunner().invoke(main, ["run", str(root / "experiment.yml"), "--runs-dir", str(root / "runs")])
    assert done.exit_code == 0, done.output
    run = root / "runs" / "tiny"
    taken = call("losses", run)
    assert taken.exit_code == 0, taken.output
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def call(command: str, run: Path, *options: str) -> Result:
    return CliRunner().invoke(main, [command, str(run), *options])


def table(run: Path, model: str) -> dict[str, list[Any]]:
    return pq.read_table(run / "imbalance" / "losses" / f"{model}.parquet").to_pydict()


def in_training(run: Path, model: str) -> dict[int, float]:
    found = table(run, model)
    rows = zip(found["sample_id"], found["split"], found["loss"], strict=True)
    return {sample: loss for sample, split, loss in rows if split == "train"}


def times(run: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (run / "imbalance" / "losses").glob("*.parquet")}


@pytest.mark.parametrize("model", ["base", "order_1", "selected"])
def test_losses_are_trls_own(trained: Path, tmp_path: Path, model: str) -> None:
    experiment = load_experiment(trained / "experiment.yml")
    folders = {
        "base": experiment.model.path,
        "order_1": trained / "orders" / "1",
        "selected": trained / "merges" / model,
    }
    samples = load_samples(experiment)
    trainer = OrderTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(folders[model]),
        make_config(experiment, tmp_path, disable_tqdm=True),
        train_dataset=samples.train,
        eval_dataset=samples.validation,
        processing_class=load_tokenizer(experiment),
    )
    trainer.model.eval()

    def loss(rows: list[dict[str, Any]]) -> float:
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, trainer.data_collator(rows)))

    found = table(trained, model)
    assert found["model"] == [model] * 25
    assert found["split"] == ["train"] * 20 + ["validation"] * 5
    rows = [*trainer.train_dataset, *trainer.eval_dataset]
    assert found["sample_id"] == [row["sample_id"] for row in rows]
    assert sorted(found["sample_id"]) == list(range(25))
    assert found["tokens"] == [sum(label != -100 for label in row["labels"]) for row in rows]
    assert found["loss"] == pytest.approx([loss([row]) for row in rows], abs=1e-5)
    together = np.average(found["loss"][3:11], weights=found["tokens"][3:11])
    assert together == pytest.approx(loss(rows[3:11]), abs=1e-5)


def test_positions_and_losses_are_those_of_the_orders(trained: Path) -> None:
    done = call("imbalance", trained)
    assert done.exit_code == 0, done.output
    numbers = json.loads((trained / "imbalance" / "imbalance.json").read_text())
    train = {model: in_training(trained, model) for model in MODELS}
    ids = sorted(train["base"])
    for epoch, name in enumerate(("first", "last")):
        positions, losses = [], []
        for order in range(3):
            saved = load_file(trained / "orders" / str(order) / "order" / "permutations.safetensors")
            visited = saved["sample_ids"][saved["permutations"][epoch]].tolist()
            positions.append([visited.index(i) / 19 for i in ids])
            losses.append([train[f"order_{order}"][i] for i in ids])
        x, y = contrast(np.array(positions)), contrast(log_loss(np.array(losses)))
        assert numbers["epochs"][name]["log"]["slope"] == pytest.approx((x * y).sum() / (x * x).sum())
    assert numbers["samples"] == numbers["units"] == 20
    assert numbers["orders"] == [0, 1, 2]
    assert set(numbers["epochs"]["last"]["traces"]) == {"average", "selected"}
    assert set(numbers["mean_losses"]) == set(MODELS)
    assert set(numbers["mean_losses"]["average"]) == {"train", "validation"}
    assert numbers["in_words"][0] == "3 orders of 20 samples; each sample is compared with itself in the other orders."
    assert done.stdout == "\n".join(numbers["in_words"]) + "\n"
    assert "nan" not in done.stdout


def test_each_figure_has_its_data_beside_it_and_is_the_same_again(run: Path) -> None:
    names = [f"figure_{number}_{epoch}" for number in (1, 3) for epoch in ("first", "last")]
    before = {}
    for _ in range(2):
        assert call("imbalance", run, "--bins", "5").exit_code == 0
        files = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")}
        assert {path.name for path in (run / "imbalance").iterdir()} == {*files, "imbalance.json", "losses"}
        now = {name: (run / "imbalance" / name).read_bytes() for name in files}
        assert not before or now == before
        before = now
    with open(run / "imbalance" / "figure_3_last.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["series"] for row in rows if row["panel"] == "loss"} == {
        "anchor",
        "other orders",
        "average",
        "selected",
    }
    assert len(rows) == 5 * (4 + 3)
    numbers = json.loads((run / "imbalance" / "imbalance.json").read_text())
    drawn = [float(row["value"]) for row in rows if (row["panel"], row["series"]) == ("loss", "average")]
    assert drawn == pytest.approx(numbers["epochs"]["last"]["anchored"]["average"]["mean"])


def test_losses_go_on_where_they_were_killed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {model: table(run, model) for model in MODELS}
    shutil.rmtree(run / "imbalance")
    take, calls = measure_module.sample_losses, []

    def dies(*args: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:  # base: train, validation; order_0: train
            raise KeyboardInterrupt
        return take(*args, **named)

    monkeypatch.setattr(measure_module, "sample_losses", dies)
    assert call("losses", run).exit_code != 0
    assert [path.name for path in (run / "imbalance" / "losses").iterdir()] == ["base.parquet"]
    before = times(run)
    monkeypatch.setattr(measure_module, "sample_losses", take)
    again = call("losses", run)
    assert again.exit_code == 0, again.output
    assert "base: its losses are there, kept" in again.stderr
    assert times(run)["base"] == before["base"]
    assert {model: table(run, model) for model in MODELS} == whole


def test_losses_of_a_model_that_was_made_anew_are_refused_and_then_taken_again(run: Path) -> None:
    before = times(run)
    assert call("imbalance", run).exit_code == 0
    assert call("report", run).exit_code == 0
    assert "3 orders of 20 samples" in (run / "report.md").read_text()
    weights = run / "orders" / "1" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] *= 2
    save_file(tensors, weights, {"format": "pt"})
    marker = run / "orders" / "1" / "order" / "order.json"
    marker.write_text(marker.read_text() + "\n")
    refused = call("imbalance", run)
    assert refused.exit_code == 1
    assert f"order_1: made anew since the losses were taken; run `ordermerge losses {run}` again" in refused.output
    assert call("report", run).exit_code == 0
    report = (run / "report.md").read_text()
    assert "Outdated: order_1 made anew since; `ordermerge losses` and `ordermerge imbalance` analyse" in report
    assert "3 orders of 20 samples" not in report
    assert call("losses", run).exit_code == 0
    after = times(run)
    assert [name for name in MODELS if after[name] != before[name]] == ["order_1"]
    assert call("imbalance", run).exit_code == 0


def test_one_model_alone_and_orders_without_positions(run: Path) -> None:
    shutil.rmtree(run / "imbalance")
    (run / "orders" / "2" / "order" / "permutations.safetensors").unlink()
    (run / "orders" / "0" / "order" / "permutations.safetensors").write_bytes(b"no tensors")
    shutil.rmtree(run / "merges" / "average")
    done = call("losses", run, "--model", "order_2", "--model", "average", "--device", "cpu", "--batch-tokens", "1")
    assert done.exit_code == 0, done.output
    assert "average: not there yet, left out" in done.stderr
    assert done.stdout == f"{run}/imbalance/losses/order_2.parquet\n"
    missing = call("imbalance", run)
    assert missing.exit_code == 1
    for words in (
        "imbalance compares orders; 0 of the two it needs have losses and positions",
        "orders/2/order/permutations.safetensors is missing, so nothing says when this sub-model met which sample",
        "orders/0/order/permutations.safetensors: cannot be read as an order",
        f"order_1 has no losses; `ordermerge losses {run}` takes them",
    ):
        assert words in missing.output, missing.output


def test_an_order_that_cannot_take_part_is_named_and_the_others_are_analysed(run: Path) -> None:
    (run / "orders" / "2" / "order" / "permutations.safetensors").unlink()
    done = call("imbalance", run)
    assert done.exit_code == 0, done.output
    assert "left out: " in done.stderr
    assert "2 orders of 20 samples" in done.stdout


def test_positions_that_are_not_those_of_the_training_are_left_out(run: Path) -> None:
    file = run / "orders" / "2" / "order" / "permutations.safetensors"
    tensors = load_file(file)
    tensors["permutations"] = tensors["permutations"].roll(1, dims=1)
    save_file(tensors, file)
    done = call("imbalance", run)
    assert done.exit_code == 0, done.output
    changed = "is not what it was when it was made (its SHA-256 is another); restore it: these are not the positions"
    assert f"left out: {file}: {changed}" in done.stderr
    assert "2 orders of 20 samples" in done.stdout


def test_the_report_says_which_code_trained_and_which_came_last(run: Path) -> None:
    assert call("report", run).exit_code == 0
    said = (run / "report.md").read_text()
    assert said.count("; mergekit ") + said.count(", mergekit ") == 1
    for order in ("0", "2"):
        file = run / "orders" / order / "order" / "order.json"
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "git_commit": "abc", "versions": {"torch": "1.0"}}))
    assert call("report", run).exit_code == 0
    lines = (run / "report.md").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("- order_0, order_2: commit abc; ")]
    assert line.endswith("; torch 1.0")
    assert any(line.startswith("- order_1, the last command: commit ") and "mergekit" in line for line in lines)


def test_orders_that_are_all_the_same_are_refused(run: Path) -> None:
    for order in ("1", "2"):
        shutil.copytree(run / "orders" / "0" / "order", run / "orders" / order / "order", dirs_exist_ok=True)
    assert call("losses", run).exit_code == 0
    done = call("imbalance", run)
    assert done.exit_code == 1
    assert f"{run}, first epoch: positions are the same in all orders" in done.output


def test_messages(run: Path, tmp_path: Path) -> None:
    for command in ("losses", "imbalance"):
        done = call(command, tmp_path)
        assert done.exit_code == 1
        assert f"{tmp_path}: no run directory: it has no experiment.yml" in done.output
    unknown = call("losses", run, "--model", "order_7")
    assert unknown.exit_code == 1
    assert (
        "model order_7 is unknown in this run; its models are base, order_0, order_1, order_2, average, selected"
        in (unknown.output)
    )
    shutil.rmtree(run / "imbalance")
    device = call("losses", run, "--model", "order_0", "--device", "gpu7")
    assert device.exit_code == 1
    assert '--device: must be a device of torch, such as "cuda:0" or "cpu"; got \'gpu7\'' in device.output
    empty = call("imbalance", run)
    assert empty.exit_code == 1
    assert f"{run} has no losses yet; run `ordermerge losses {run}` first" in empty.output


def test_data_that_changed_is_refused(run: Path, tmp_path: Path) -> None:
    resolved = yaml.safe_load((run / "experiment.yml").read_text())
    lines = Path(resolved["data"]["train"]).read_text().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    resolved["data"]["train"] = str(tmp_path / "data.jsonl")
    (run / "experiment.yml").write_text(yaml.safe_dump(resolved))
    done = call("losses", run)
    assert done.exit_code == 1
    assert "this is not the data that order_0 was trained on: its fingerprint was" in done.output


def test_an_adapter_is_read_with_its_base_model(run: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = run / "orders" / "0"
    model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    shutil.copytree(folder, run / "whole")
    model.peft_config["default"].base_model_name_or_path = str(run / "whole")
    for path in folder.glob("*.*"):
        path.unlink()
    model.save_pretrained(folder)
    assert call("losses", run, "--model", "order_0").exit_code == 0
    adapted = table(run, "order_0")["loss"]
    for path in folder.glob("*.*"):
        path.unlink()
    model.merge_and_unload().save_pretrained(folder)
    assert call("losses", run, "--model", "order_0").exit_code == 0
    assert adapted == pytest.approx(table(run, "order_0")["loss"], abs=1e-4)


def with_checkpoints(run: Path, *steps: int, orders: int = 3) -> None:
    """Put the base model, moved a little towards the sub-model, where training keeps its checkpoints."""
    base = load_file(Path(load_experiment(run / "experiment.yml").model.path) / "model.safetensors")
    for order in range(orders):
        folder = run / "orders" / str(order)
        trained = load_file(folder / "model.safetensors")
        for step in steps:
            out = folder / "checkpoints" / f"step-{step}"
            out.mkdir(parents=True)
            for path in folder.glob("*.json"):
                shutil.copy(path, out)
            tensors = {name: torch.lerp(base[name], value, step / 10) for name, value in trained.items()}
            save_file(tensors, out / "model.safetensors", {"format": "pt"})


def test_losses_along_the_steps(run: Path) -> None:
    with_checkpoints(run, 2, 5)
    with_checkpoints(run, 7, orders=2)  # not of all orders: left out
    done = call("losses", run, "--steps")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [f"{run}/imbalance/steps/{step}.json" for step in (2, 5, 10)]
    assert not list(run.glob(".step-*"))
    files = {step: run / "imbalance" / "steps" / f"{step}.json" for step in (2, 5, 10)}
    found = {step: json.loads(file.read_text())["losses"] for step, file in files.items()}
    assert all(list(losses) == MODELS[1:] for losses in found.values())
    validation = table(run, "order_1")["split"].index("validation")
    for model in MODELS[1:]:  # the last step is the run's own models; selection draws the same again
        assert found[10][model] == pytest.approx(np.mean(table(run, model)["loss"][validation:]))
    # linear merges of points on lines: the average after step 5 is half-way between the base and the run's average
    experiment, half = (
        load_experiment(run / "experiment.yml"),
        shutil.copytree(run / "merges" / "average", run / "half"),
    )
    base = load_file(Path(experiment.model.path) / "model.safetensors")
    middle = {n: torch.lerp(base[n], v, 0.5) for n, v in load_file(half / "model.safetensors").items()}
    save_file(middle, half / "model.safetensors", {"format": "pt"})
    machine, splits = measure_module.Machine(), load_splits(run, experiment)[1:]
    progress = Counted("sample")
    (losses,), _ = measure_module.measure(experiment, "half", str(half), splits, machine, progress=progress)
    assert found[5]["average"] == pytest.approx(float(losses.mean()), abs=1e-5)

    (run / "imbalance" / "steps" / "5.json").write_text("{")
    again = call("losses", run, "--steps")
    assert again.stderr.count("kept") == 2
    assert json.loads((run / "imbalance" / "steps" / "5.json").read_text())["losses"] == found[5]
    assert call("imbalance", run).exit_code == 0
    with open(run / "imbalance" / "figure_4.csv") as file:
        rows = {(row["model"], int(row["step"])): float(row["loss"]) for row in csv.DictReader(file)}
    assert rows == {(model, step): loss for step, losses in found.items() for model, loss in losses.items()}


def test_steps_need_checkpoints_and_validation_data(run: Path) -> None:
    none = call("losses", run, "--steps")
    assert none.exit_code == 1
    assert "there is no step that all orders have a checkpoint of (orders/K/checkpoints/step-N)" in none.output
    assert call("losses", run, "--steps", "--model", "base").exit_code == 2
