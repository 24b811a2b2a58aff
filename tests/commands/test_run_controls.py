"""`ordermerge run` and the commands after it, of an experiment with controls."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge.cli import main
from ordermerge.eval.comparison.record import load_comparison

pytestmark = pytest.mark.integration


def ordermerge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_controls_are_compared_and_taken_for_no_orders(
    make_family: Callable[..., list[Path]], write_sums: Callable[[int, int], None], tmp_path: Path
) -> None:
    base, *_ = make_family(count=0)
    write_sums(4, 5)
    content = {
        "name": "tiny",
        "model": {"path": str(base)},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "bf16": False,
            "lr_scheduler_type": "constant",
        },
        "merges": {
            "average": {"merge_method": "linear", "parameters": {"weight": 1}},
            "first": {"merge_method": "linear", "ingredients": {"orders": [0]}},
        },
        "evaluation": {"tasks": ["sums"], "include_path": "tasks", "batch_size": 16, "device": "cpu", "limit": 8},
    }
    file, folder = tmp_path / "experiment.yml", tmp_path / "runs" / "tiny"
    options = (file, "--runs-dir", folder.parent)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    note = "The learning rate (constant) does not decay to 0"
    plain = ordermerge("run", *options, "--dry-run")
    assert plain.exit_code == 0, plain.output
    assert note in plain.output

    controls = {"annealed": {"count": 2}, "longer": True}
    file.write_text(yaml.safe_dump({**content, "controls": controls}, sort_keys=False))
    done = ordermerge("run", *options)
    assert done.exit_code == 0, done.output
    assert note not in done.output
    compared = load_comparison(folder / "eval" / "comparison.json")
    assert {(one.model, *one.reference_models) for one in compared.comparisons if one.reference == "control"} == {
        ("average", "annealed", "annealed_1"),
        ("average", "longer"),
        ("first", "annealed", "annealed_1"),  # costs 1, and `longer` 2
    }
    (single,) = (one for one in compared.comparisons if one.reference_models == ["longer"])
    assert not single.told_apart
    assert ["annealed", "annealed_1"] in [spread.models for spread in compared.spreads]
    report = (folder / "report.md").read_text()
    for name in ("annealed", "annealed_1", "longer"):
        assert f"| {name} |" in report
    assert note not in report
    assert "longer: one run" in report

    assert ordermerge("check", folder).exit_code == 0
    losses = ordermerge("losses", folder)
    assert losses.exit_code == 0, losses.output
    assert (folder / "imbalance" / "losses" / "longer.parquet").is_file()
    for command in ("imbalance", "report"):
        later = ordermerge(command, folder)
        assert later.exit_code == 0, later.output
    assert json.loads((folder / "imbalance" / "imbalance.json").read_text())["orders"] == [0, 1]
    noise = ordermerge("noise", folder, "--json")
    assert noise.exit_code == 0, noise.output
    (families,) = {json.dumps(one["families"]) for one in json.loads(noise.stdout)["noise"]}
    assert json.loads(families) == {str(folder): [f"{folder}/order_0", f"{folder}/order_1"]}
    again = ordermerge("run", *options)
    assert "train nothing to do" in again.output
