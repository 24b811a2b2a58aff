"""`ordermerge curve` on a run of three orders: the merges of some of them, and what they tell of other orders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from mergekit.options import MergeOptions

import ordermerge.commands.temporary_merge
from ordermerge.cli import main
from ordermerge.commands.curve import choose_subsets, without_orders
from ordermerge.commands.merging import merge
from ordermerge.config.load import load_experiment
from ordermerge.eval.comparison.record import load_comparison
from ordermerge.eval.scoring.saved import load_rows
from ordermerge.eval.scoring.score import score_models
from ordermerge.eval.statistics import jackknife_interval

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["1", "2", "3", "4"]
doc_to_target: "{{answer}}"
target_delimiter: ""
metadata: {version: 1.0}
"""


@pytest.fixture(scope="module")
def run_directory(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 orders with an ensemble; `before/` holds its comparison and report without a curve."""
    place = tmp_path_factory.mktemp("curve")
    base, *_ = make_family(count=0)
    sums = [(a, b) for a in range(4) for b in range(4) if 1 <= a + b <= 4]
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in sums] * 2
    (place / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (place / "sums.yaml").write_text(TASK.replace("TEST", str(place / "data.jsonl")))
    content = {
        "name": "tiny",
        "model": {"path": str(base), "dtype": "float32"},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 3},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "bf16": False},
        "merges": {
            "average": {"merge_method": "linear", "parameters": {"weight": 1}},
            "selected": {"merge_method": "parameter_selection"},
        },
        "evaluation": {"tasks": ["sums"], "include_path": ".", "batch_size": 16, "device": "cpu", "ensemble": True},
    }
    (place / "experiment.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = CliRunner().invoke(main, ["run", str(place / "experiment.yml"), "--runs-dir", str(place)])
    assert done.exit_code == 0, done.output
    (place / "before").mkdir()
    for file in ("eval/comparison.json", "report.md"):
        shutil.copy(place / "tiny" / file, place / "before")
    return place / "tiny"


@pytest.fixture(scope="module")
def curved(run_directory: Path) -> tuple[Path, list[str]]:
    """The run with the curve of its average, made in two goes, and the names of the merges that were made."""
    made: list[str] = []

    def watched(recipe: Path, out: Path, options: MergeOptions, **how: Any) -> None:
        merge(recipe, out, options, **how)
        made.append(out.name)
        if len(made) == 2:
            raise KeyboardInterrupt  # after the second merge, before its scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ordermerge.commands.temporary_merge, "merge", watched)
        assert curve(run_directory).exit_code != 0
        assert not (run_directory / "curve" / "average" / "curve.json").exists()
        done = curve(run_directory)
    assert done.exit_code == 0, done.output
    return run_directory, made


def curve(run: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["curve", str(run), *options])


def points(run: Path, merge: str = "average") -> list[dict[str, Any]]:
    (found,) = [
        one
        for one in json.loads((run / "curve" / merge / "curve.json").read_text())["curves"]
        if one["metric"] == "acc"
    ]
    return found["points"]


def accuracy(folder: Path) -> dict[str, float]:
    return {row.model: row.value for row in load_rows(folder) if row.metric == "acc"}


@pytest.mark.integration
def test_a_run_scores_the_ensemble_beside_the_merges(run_directory: Path) -> None:
    report = load_comparison(run_directory.parent / "before" / "comparison.json")
    assert {one.model for one in report.comparisons} == {"average", "selected", "ensemble"}
    assert all(one.orders is None for one in report.comparisons)
    assert {one.model for one in report.calibration} == {f"order_{k}" for k in range(3)} | {
        "average", "selected", "ensemble"}  # fmt: skip
    page = (run_directory.parent / "before" / "report.md").read_text()
    assert "| ensemble | " in page
    assert "- `ensemble`: the mean of the 3 sub-models' token probabilities" in page


@pytest.mark.integration
def test_losses_of_the_ensemble_are_those_of_the_mean_probability(run_directory: Path) -> None:
    import pyarrow.parquet as pq

    done = CliRunner().invoke(main, ["losses", str(run_directory), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    tables = {path.stem: pq.read_table(path) for path in (run_directory / "imbalance" / "losses").iterdir()}
    single = np.stack([tables[f"order_{k}"]["loss"].to_numpy() for k in range(3)])
    one_token = tables["ensemble"]["tokens"].to_numpy() == 1  # of more, the mean is over each token's probability
    expected = -np.log(np.exp(-single).mean(axis=0))
    found = tables["ensemble"]["loss"].to_numpy()
    assert np.all(found <= single.mean(axis=0) + 1e-6)  # Jensen's inequality
    assert found[one_token] == pytest.approx(expected[one_token], abs=1e-5)


@pytest.mark.integration
def test_each_subset_is_merged_scored_and_removed(curved: tuple[Path, list[str]], tmp_path: Path) -> None:
    run_directory, made = curved
    assert made == ["orders_0_1", "orders_0_2", "orders_0_2", "orders_1_2"]  # goes on where it was
    folder = run_directory / "curve" / "average"
    assert {path.name for path in folder.iterdir()} == {"recipes", "eval", "curve.json", "curve.png", "curve.svg",
                                                        "curve.csv"}  # fmt: skip
    # the same as scoring the merged folder
    merge(folder / "recipes" / "orders_0_2.yml", tmp_path / "again", MergeOptions())
    settings = load_experiment(run_directory / "experiment.yml").evaluation
    (row,) = [row for row in score_models({"again": str(tmp_path / "again")}, settings, tmp_path / "own")
              if row.metric == "acc"]  # fmt: skip
    assert row.value == accuracy(folder / "eval")["orders_0_2"]


@pytest.mark.integration
def test_the_curve_the_comparison_and_the_report_hold_the_scores(curved: tuple[Path, list[str]]) -> None:
    run_directory, _ = curved
    single, pairs = accuracy(run_directory / "eval"), accuracy(run_directory / "curve" / "average" / "eval")
    found = points(run_directory)
    alone, two = [single[f"order_{k}"] for k in range(3)], [pairs[f"orders_{name}"] for name in ("1_2", "0_2", "0_1")]
    assert [point["mean"] for point in found] == pytest.approx([np.mean(alone), np.mean(two), single["average"]])
    assert found[2]["interval"] == pytest.approx(jackknife_interval(single["average"], two))
    report = load_comparison(run_directory / "eval" / "comparison.json")
    (one,) = [c for c in report.comparisons if (c.model, c.reference, c.metric) == ("average", "single_mean", "acc")]
    left = [two[k] - np.mean([alone[j] for j in range(3) if j != k]) for k in range(3)]
    assert one.orders == pytest.approx(jackknife_interval(one.difference, left))
    assert all(c.orders is None for c in report.comparisons if c.model != "average")
    page = (run_directory / "report.md").read_text()
    assert "over orders" in page
    assert "## Number of orders" in page
    assert "(curve/average/curve.png)" in page
    again = curve(run_directory, "--json")
    assert json.loads(again.stdout)[0]["points"] == json.loads(json.dumps(found))


@pytest.mark.integration
def test_mistakes_exit_1_with_a_sentence(run_directory: Path, tmp_path: Path) -> None:
    assert (
        "--merge averge: no such merge in this run (did you mean 'average'?)"
        in curve(run_directory, "--merge", "averge").output
    )
    assert "no run directory" in curve(tmp_path).output


def test_recipes_of_subsets_keep_the_whole_weight() -> None:
    models = [{"model": f"/run/orders/{k}"} for k in range(12)] + [{"model": "/run/orders/1/checkpoints/step-5"}]
    recipe = {"merge_method": "dare_ties", "models": models, "parameters": {"weight": 0.1, "density": 0.5}}
    found = without_orders(recipe, [Path("/run/orders/1"), Path("/run/orders/0")])
    assert [entry["model"] for entry in found["models"]] == [f"/run/orders/{k}" for k in range(2, 12)]
    assert found["parameters"] == {"weight": pytest.approx(0.13), "density": 0.5}
    assert recipe["parameters"]["weight"] == 0.1
    own = [{"model": f"/run/orders/{k}", "parameters": {"weight": w}} for k, w in enumerate((0.5, 0.3, 0.2))]
    found = without_orders({"merge_method": "linear", "models": own}, [Path("/run/orders/0")])
    assert [entry["parameters"]["weight"] for entry in found["models"]] == pytest.approx([0.6, 0.4])
    adapters = [
        {"model": "/base+/run/orders/0"},
        {"model": {"model": {"path": "/b+"}, "lora": {"path": "/run/orders/1"}}},
    ]
    found = without_orders({"merge_method": "linear", "models": adapters}, [Path("/run/orders/1")])
    assert found["models"] == adapters[:1]


def test_subsets_are_all_or_a_seeded_sample() -> None:
    assert choose_subsets(4, 2, 20, 0) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    drawn = choose_subsets(40, 17, 20, 0)
    assert len(set(drawn)) == 20
    assert all(len(set(subset)) == 17 and list(subset) == sorted(subset) for subset in drawn)
    assert drawn == choose_subsets(40, 17, 20, 0) != choose_subsets(40, 17, 20, 1)
