"""`ordermerge run` on a tiny model: the whole chain, what is done again and what is refused."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import ModelCard

from ordermerge.cli import main
from ordermerge.commands.coefficients import loss_weights
from ordermerge.eval.comparison.record import load_comparison
from ordermerge.eval.scoring.saved import load_rows

pytestmark = pytest.mark.integration


@pytest.fixture
def experiment(make_family: Callable[..., list[Path]], write_sums: Callable[[int, int], None], tmp_path: Path) -> Path:
    base, *_ = make_family(count=0)
    write_sums(5, 5)
    path = tmp_path / "experiment.yml"
    content = {
        "name": "tiny",
        "model": {"path": str(base), "dtype": "bfloat16"},
        "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "bf16": False},
        "merges": {
            "average": {"merge_method": "linear", "parameters": {"weight": 1}},
            "resampled": {"merge_method": "parameter_selection_resample"},
            "dare": {"merge_method": "dare_ties", "parameters": {"weight": 0.5, "density": 0.5}},
        },
        "evaluation": {"tasks": ["sums"], "include_path": "tasks", "batch_size": 16, "device": "cpu"},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(experiment: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["run", str(experiment), "--runs-dir", str(experiment.parent / "runs"), *options])


def change(experiment: Path, section: str, **values: Any) -> None:
    content = yaml.safe_load(experiment.read_text())
    content[section] |= values
    experiment.write_text(yaml.safe_dump(content, sort_keys=False))


def times(directory: Path) -> dict[str, int]:
    markers = [*directory.rglob("order.json"), *directory.rglob("ordermerge*.json")]
    return {path.relative_to(directory).as_posix(): path.stat().st_mtime_ns for path in markers}


def test_the_whole_chain_and_what_is_done_again(experiment: Path) -> None:
    directory = experiment.parent / "runs" / "tiny"
    plan = run(experiment, "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "merge average, resampled, dare" in plan.output
    assert not directory.exists()

    first = run(experiment)
    assert first.exit_code == 0, first.output
    report = (directory / "report.md").read_text()
    for name in ("base", "order_0", "order_1", "average", "resampled", "dare"):
        assert f"| {name} |" in report
        assert name in first.output
    assert re.search(r"\| average \| \d+ \| 2 \|", report)
    assert report.index("## Price and score") < report.index("## What merging changed")
    for page in (
        report,
        (directory / "report.html").read_text(),
        *map(Path.read_text, directory.glob("*/*/README.md")),
    ):
        assert str(experiment.parent) not in page  # nor where it lies on somebody's disk
    compared = load_comparison(directory / "eval" / "comparison.json").comparisons
    assert {(c.model, c.reference) for c in compared} == {
        *((name, kind) for name in ("average", "resampled", "dare") for kind in ("single_mean", "single_best")),
        *((name, "weighted_average") for name in ("resampled", "dare")),
    }
    for text in (report, first.output):
        assert "Against the mean of the single models" in text
        assert "The best single model was chosen by its score on these same documents" in text
    page = (directory / "report.html").read_text()
    assert page.count("<figure") == page.count("<svg") == report.count("![") == 2  # too few steps for a learning curve
    assert "http" not in "".join(line for line in page.splitlines() if "src=" in line or "<link" in line)
    card = ModelCard.load(directory / "merges" / "resampled" / "README.md")
    scores = {row.model: row for row in load_rows(directory / "eval")}
    (result,) = card.data.eval_results
    assert (result.metric_value, result.metric_type) == (scores["resampled"].value, "exact_match")
    assert (result.dataset_type, result.dataset_split, result.metric_args["documents"]) == ("sums", "test", 25)
    assert card.data.model_name == "resampled"
    assert card.text.count("### Results") == card.text.count("### Draw") == 1
    assert yaml.safe_load((directory / "experiment.yml").read_text())["made_with"]["versions"]["mergekit"]
    recipes = {name: (directory / "recipes" / f"{name}.yml").read_text() for name in ("average", "resampled", "dare")}
    assert recipes["dare"].startswith(
        f"# mergekit-yaml {directory}/recipes/dare.yml {directory}/merges/dare --random-seed 0\n"
    )
    assert "base_model" not in recipes["average"]  # `linear` would average it in
    assert yaml.safe_load(recipes["resampled"])["models"] == [{"model": f"{directory}/orders/{k}"} for k in range(2)]

    # nothing is done twice
    before = times(directory)
    assert len(before) == 2 + 3 + 6
    again = run(experiment)
    assert again.exit_code == 0, again.output
    assert times(directory) == before
    assert (directory / "report.md").read_text() == report
    assert ModelCard.load(directory / "merges" / "resampled" / "README.md").content == card.content
    (directory / "report.html").unlink()
    assert CliRunner().invoke(main, ["report", str(directory)]).exit_code == 0
    assert (directory / "report.html").read_text() == page
    written = CliRunner().invoke(main, ["card", str(directory)])
    assert written.output.split() == [
        *(f"{directory}/merges/{name}/README.md" for name in ("average", "resampled", "dare")),
        *(f"{directory}/orders/{k}/README.md" for k in range(2)),
    ]
    assert str(directory.parents[1]) not in (directory / "orders" / "0" / "README.md").read_text()

    # what is missing, and only that, is done
    (directory / "merges" / "average" / "ordermerge.json").unlink()
    assert run(experiment).exit_code == 0
    after = times(directory)
    assert [name for name in after if after[name] != before[name]] == ["merges/average/ordermerge.json"]

    # a task can be added
    tasks = experiment.parent / "tasks"
    (tasks / "more.yaml").write_text((tasks / "sums.yaml").read_text().replace("task: sums", "task: more"))
    change(experiment, "evaluation", tasks=["sums", "more"])
    before = times(directory)
    assert run(experiment).exit_code == 0
    after = times(directory)
    assert {name for name in after if before.get(name) != after[name]} == {
        f"eval/{name}/ordermerge_more.json" for name in ("base", "order_0", "order_1", "average", "resampled", "dare")
    }
    change(experiment, "evaluation", tasks=["sums"])

    # a merge can be added, a change is refused by name; --force redoes the stage, and after it what came out different
    change(experiment, "merges", selected={"merge_method": "parameter_selection"})
    added = run(experiment)
    assert added.exit_code == 0, added.output
    assert "| selected |" in (directory / "report.md").read_text()
    before = times(directory)
    change(experiment, "merges", selected={"merge_method": "parameter_selection", "parameters": {"seed": 1}})
    refused = run(experiment)
    assert refused.exit_code == 1
    assert "merges.selected.parameters.seed: not set, now 1: the merge selected and its scores were" in refused.output
    assert "--force merge" in refused.output
    assert times(directory) == before
    forced = run(experiment, "--force", "merge")
    assert forced.exit_code == 0, forced.output
    after = times(directory)
    assert {name for name in after if after[name] != before[name]} == {
        *(f"merges/{name}/ordermerge.json" for name in ("average", "resampled", "dare", "selected")),
        "eval/selected/ordermerge_sums.json",
    }

    # a bit of a sub-model that turned round without any sign of it is not merged
    weights = directory / "orders" / "1" / "model.safetensors"
    status, content = weights.stat(), weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    (directory / "merges" / "average" / "ordermerge.json").unlink()
    damaged = run(experiment)
    assert damaged.exit_code == 1
    assert f"{weights}: is not what it was when it was made (its SHA-256 is another)" in damaged.output
    assert not (directory / "merges" / "average" / "ordermerge.json").exists()


def test_a_changed_order_is_refused_before_anything_is_done(experiment: Path) -> None:
    content = yaml.safe_load(experiment.read_text())
    experiment.write_text(yaml.safe_dump({**content, "merges": {}, "evaluation": None}))
    assert run(experiment).exit_code == 0
    directory = experiment.parent / "runs" / "tiny"
    assert "Nothing was evaluated" in (directory / "report.md").read_text()
    before = times(directory)
    change(experiment, "orders", seed=1)
    done = run(experiment)
    assert done.exit_code == 1
    assert "orders.seed: 0, now 1: 2 orders were made with the old value. `--force train` makes that" in done.output
    assert times(directory) == before
    (experiment.parent / "data.jsonl").write_text('{"question": "1+1=", "answer": "2"}\n' * 25)
    change(experiment, "orders", seed=0)
    assert "data.train: its content has changed: 2 orders" in run(experiment).output


def test_all_problems_are_reported_before_anything_is_done(experiment: Path) -> None:
    change(experiment, "sft", packing=True, lerning_rate=1)
    change(experiment, "merges", base={"merge_method": "linear"}, typo={"merge_method": "tise"})
    change(experiment, "evaluation", tasks=["sum"])
    done = run(experiment)
    assert done.exit_code == 1
    for message in (
        "`sft.packing` cannot be set",
        "(did you mean 'learning_rate'?)",
        "merges.base: this name is taken",
        "merges.base: linear needs `weight`",
        "merges.typo: unknown `merge_method` 'tise' (did you mean 'ties'?)",
        "evaluation: task 'sum' is unknown (did you mean 'sums'?)",
    ):
        assert message in done.output, done.output
    assert not (experiment.parent / "runs").exists()


def test_dry_run_reads_the_data(experiment: Path) -> None:
    change(experiment, "data", prompt="{frage}")
    done = run(experiment, "--dry-run")
    assert done.exit_code == 1
    assert "frage" in done.output
    assert "known" in done.output or "question" in done.output


def test_a_failure_is_noted_with_its_traceback_and_shown_when_asked_for(experiment: Path) -> None:
    content = yaml.safe_load(experiment.read_text())
    experiment.write_text(yaml.safe_dump({**content, "merges": {}, "evaluation": None}))
    change(experiment, "sft", learning_rate=1e30)
    failed = run(experiment)
    assert failed.exit_code == 1
    assert "Traceback" not in failed.output
    log = experiment.parent / "runs" / "tiny" / "last_failure.log"
    assert "Traceback" in log.read_text()
    command = ["--debug", "run", str(experiment), "--runs-dir", str(experiment.parent / "runs")]
    assert "Traceback" in CliRunner(env={"ORDERMERGE_DEBUG": None}).invoke(main, command).output
    change(experiment, "sft", learning_rate=1.0e-3)
    assert run(experiment).exit_code == 0
    assert not log.exists()


def test_weights_from_validation_losses_stand_in_the_recipe_and_the_card(experiment: Path) -> None:
    content = yaml.safe_load(experiment.read_text())
    cocktail = {"merge_method": "linear", "weights": {"validation_loss": 0.01}}
    experiment.write_text(yaml.safe_dump({**content, "merges": {"cocktail": cocktail}, "evaluation": None}))
    refused = run(experiment, "--dry-run")
    assert refused.exit_code == 1
    assert "merges.cocktail.weights: needs a validation loss of each order; give `data.validation`" in refused.output
    change(experiment, "data", validation=0.2)
    change(experiment, "sft", eval_strategy="epoch")
    done = run(experiment)
    assert done.exit_code == 0, done.output
    directory = experiment.parent / "runs" / "tiny"
    losses = [
        json.loads((directory / "orders" / str(k) / "order" / "order.json").read_text())["eval_losses"][-1]["loss"]
        for k in range(2)
    ]
    recipe = yaml.safe_load((directory / "recipes" / "cocktail.yml").read_text())
    weights = [entry["parameters"]["weight"] for entry in recipe["models"]]
    assert weights[0] != weights[1]
    assert weights == pytest.approx(loss_weights(losses, 0.01), abs=1e-6)
    assert f"weight: {weights[1]}" in (directory / "merges" / "cocktail" / "README.md").read_text()
    change(experiment, "merges", cocktail={**cocktail, "weights": {"validation_los": 1}})
    assert "must be `{validation_loss: T}`, with a temperature T" in run(experiment, "--dry-run").output


def test_one_order_is_the_plain_baseline_and_set_makes_it(experiment: Path) -> None:
    sets = ["--set", "orders.count=1", "--set", "name=plain", "--set", "sft.learning_rate=1e-4"]
    done = run(experiment, *sets, "--set", "merges={average: {merge_method: linear, parameters: {weight: 1}}}")
    assert done.exit_code == 0, done.output
    directory = experiment.parent / "runs" / "plain"
    assert [path.name for path in (directory / "orders").iterdir()] == ["0"]
    resolved = yaml.safe_load((directory / "experiment.yml").read_text())
    assert (resolved["orders"]["count"], resolved["sft"]["learning_rate"]) == (1, 1e-4)
    assert resolved["made_with"]["set"][:3] == sets[1::2]
    report = (directory / "report.md").read_text()
    assert "`order_0`: the sub-model of 1 order of the same data" in report
    assert "--set sft.learning_rate=1e-4" in report
    compared = load_comparison(directory / "eval" / "comparison.json").comparisons
    assert {(c.model, c.reference, c.difference) for c in compared} == {("average", "single_mean", 0.0)}
    for command, message in (
        (["noise"], "order noise takes at least 2 repeated runs; got 1"),
        (["curve"], "a curve takes a merge of at least 2 orders; it has 1"),
    ):
        refused = CliRunner().invoke(main, [*command, str(directory)])
        assert refused.exit_code == 1
        assert message in refused.output
    assert "nothing to do" in run(experiment, *sets, "--set", "merges=null", "--set", "evaluation=null").output
