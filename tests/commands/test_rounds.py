"""Rounds: each is trained on from the merge before, in new orders, and goes on after an interruption."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from ordermerge.cli import main


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an experiment of two rounds, run."""
    folder = tmp_path_factory.mktemp("rounds")
    assert invoke("init", str(folder)).exit_code == 0
    changed = yaml.safe_load((folder / "experiment.yml").read_text())
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(lines[:32]) + "\n")
    changed |= {"name": "two", "orders": {"count": 2, "seed": 5}, "rounds": {"count": 2, "merge": "weighted_average"}}
    changed["sft"]["num_train_epochs"] = 1
    changed = {key: value for key, value in changed.items() if key not in ("controls", "evaluation")}
    (folder / "experiment.yml").write_text(yaml.safe_dump(changed))
    done = invoke("run", str(folder / "experiment.yml"), "--runs-dir", str(folder / "runs"))
    assert done.exit_code == 0, done.output
    return folder


def test_second_round_starts_from_the_first_rounds_merge_in_new_orders(started: Path) -> None:
    first, second = started / "runs" / "two", started / "runs" / "two_round_2"
    noted = yaml.safe_load((second / "experiment.yml").read_text())
    assert noted["model"]["path"] == str(first / "merges" / "weighted_average")
    assert noted["orders"]["seed"] == 5 + 1_000_000_007
    assert noted["rounds"] == {"count": 2, "merge": "weighted_average", "number": 2}
    orders = [load_file(run / "orders" / k / "order" / "permutations.safetensors")["permutations"]
              for run in (first, second) for k in "01"]  # fmt: skip
    assert len({tuple(one.flatten().tolist()) for one in orders}) == 4
    weights = [load_file(run / "merges" / "weighted_average" / "model.safetensors") for run in (first, second)]
    assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_prices_add_up_over_rounds(started: Path) -> None:
    page = (started / "runs" / "two_round_2" / "report.md").read_text()
    rows = {cells[1]: cells[2:4] for line in page.splitlines() if (cells := [c.strip() for c in line.split("|")])[2:4]}
    assert rows["base"] == ["64", "2"]
    assert rows["order_0"] == ["96", "3"]
    assert rows["weighted_average"] == ["128", "4"]


def test_first_round_is_that_of_an_experiment_without_rounds(started: Path) -> None:
    plain = invoke("train", str(started / "experiment.yml"), "--set", "rounds=null", "--set", "name=plain",
                   "--runs-dir", str(started / "runs"))  # fmt: skip
    assert plain.exit_code == 0, plain.output
    for k in "01":
        same = [started / "runs" / name / "orders" / k / "model.safetensors" for name in ("two", "plain")]
        assert same[0].read_bytes() == same[1].read_bytes()


def test_rerun_does_nothing(started: Path) -> None:
    record = started / "runs" / "two_round_2" / "orders" / "0" / "order" / "order.json"
    before = record.stat().st_mtime_ns
    again = invoke("run", str(started / "experiment.yml"), "--runs-dir", str(started / "runs"))
    assert again.exit_code == 0, again.output
    assert again.stderr.count("train nothing to do") == 2
    assert record.stat().st_mtime_ns == before
    assert json.loads(record.read_text())["order"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rounds={count: 2, merge: weighted_avrage}", "rounds.merge: must be one of `merges`; got weighted_avrage"),
        ("rounds.count=0", "rounds.count"),
    ],
)
def test_rounds_that_cannot_be_are_refused(started: Path, change: str, words: str) -> None:
    refused = invoke("run", str(started / "experiment.yml"), "--set", change, "--dry-run")
    assert refused.exit_code == 1
    assert words in refused.output
