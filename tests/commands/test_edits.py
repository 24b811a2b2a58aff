"""An experiment edited after its run: what is said, what goes on by itself, what is kept. Through the real command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge.cli import main

pytestmark = pytest.mark.integration

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["1", "2"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.fixture(scope="module")
def finished(make_family: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment of two orders, a control and two merges, and its finished run."""
    place = tmp_path_factory.mktemp("finished")
    shutil.copytree(make_family(count=0)[0], place / "base")
    records = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(4)]
    (place / "tasks").mkdir()
    for name in ("train.jsonl", "tasks/test.jsonl"):
        (place / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    content = {
        "name": "tiny",
        "model": {"path": "base", "dtype": "bfloat16"},
        "data": {"train": "train.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "controls": {"longer": True},
        "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "bf16": False, "learning_rate": 0.001},
        "merges": {
            "average": {"merge_method": "linear", "parameters": {"weight": 1}},
            "first": {"merge_method": "linear", "parameters": {"weight": 1}, "ingredients": {"orders": [0]}},
        },
        "evaluation": {"tasks": ["sums"], "include_path": "tasks", "batch_size": 16, "device": "cpu", "limit": 8},
    }
    (place / "experiment.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    write_task(place)
    done = run(place)
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "copy")
    write_task(tmp_path / "copy")
    return tmp_path / "copy"


def write_task(place: Path) -> None:
    (place / "tasks" / "sums.yaml").write_text(TASK.replace("TEST", str(place / "tasks" / "test.jsonl")))


def run(place: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["run", str(place / "experiment.yml"), "--runs-dir", str(place / "runs"), *options])


def edit(place: Path, section: str, **values: Any) -> None:
    file = place / "experiment.yml"
    content = yaml.safe_load(file.read_text())
    content[section] |= values
    file.write_text(yaml.safe_dump(content, sort_keys=False))


def plan_of(done: Result) -> dict[str, str]:
    """Return what the plan says of each stage."""
    lines = [line.split(maxsplit=1) for line in done.output.splitlines() if line.startswith("  ")]
    return {line[0]: line[1] for line in lines if line[0] in ("train", "merge", "eval")}


@pytest.mark.parametrize(
    ("section", "values", "told", "holds", "remedy"),
    [
        (
            "sft", {"learning_rate": 0.0005},
            "sft.learning_rate: 0.001, now 0.0005: 2 orders, longer, 2 merges and their scores were made with the old",
            "The scores of base still hold.",
            "`--force train` makes that anew (4 trainings); another `name` in the experiment keeps it",
        ),
        (
            "merges", {"average": {"merge_method": "linear", "parameters": {"weight": 2}}},
            "merges.average.parameters.weight: 1, now 2: the merge average and its scores were made with the old value",
            "2 orders, longer, the merge first, their scores and the scores of base still hold.",
            "`--force merge` makes that anew; another `name` in the experiment keeps it",
        ),
        (
            "evaluation", {"num_fewshot": 1},
            "evaluation.num_fewshot: not set, now 1: the scores of 6 models were made with the old value",
            "2 orders, longer and 2 merges still hold.",
            "`--force eval` makes that anew; another `name` in the experiment keeps it",
        ),
        (
            "evaluation", {"limit": 4},
            "evaluation.limit: 8.0, now 4.0: the scores of 6 models were made with the old value",
            "2 orders, longer and 2 merges still hold.",
            "`--force eval`",
        ),
    ],
)  # fmt: skip
def test_a_changed_value_is_told_once_and_one_command_goes_on(
    place: Path, section: str, values: dict[str, Any], told: str, holds: str, remedy: str
) -> None:
    edit(place, section, **values)
    refused = run(place, "--dry-run")
    assert refused.exit_code == 1
    for sentence in (told, holds, remedy):
        assert refused.output.count(sentence) == 1, refused.output
    assert len(refused.output.splitlines()) == 1
    assert run(place, "--dry-run", *remedy.split("`")[1].split()).exit_code == 0


def test_several_changes_are_one_message_and_one_command(place: Path) -> None:
    edit(place, "sft", learning_rate=0.0005)
    edit(place, "model", dtype="float32")
    edit(place, "evaluation", num_fewshot=1)
    refused = run(place, "--dry-run")
    assert refused.output.count("--force") == 1
    for told in ("sft.learning_rate: 0.001, now 0.0005", "model.dtype: bfloat16, now float32", "num_fewshot: not set"):
        assert refused.output.count(told) == 1, refused.output
    done = run(place, "--force", "train")
    assert done.exit_code == 0, done.output
    assert plan_of(run(place, "--dry-run"))["train"] == "nothing to do (3 done)"


def test_an_added_order_goes_on_and_remakes_what_depends_on_it(place: Path) -> None:
    edit(place, "orders", count=3)
    planned = run(place, "--dry-run")
    assert plan_of(planned) == {
        "train": "order_2, longer (2 done, 1 made anew)",
        "merge": "average (1 done, 1 made anew)",
        "eval": "order_2, longer, average (4 done, 2 made anew)",
    }
    assert "longer is trained anew, as it costs what all orders cost: 3 trainings" in planned.output
    kept = (place / "runs/tiny/orders/0/order/order.json").read_bytes()
    done = run(place)
    assert done.exit_code == 0, done.output
    assert (place / "runs/tiny/orders/0/order/order.json").read_bytes() == kept
    assert plan_of(run(place, "--dry-run")) == {
        "train": "nothing to do (4 done)",
        "merge": "nothing to do (2 done)",
        "eval": "nothing to do (7 done)",
    }


def test_an_added_rotation_is_refused_with_its_reason_and_price(place: Path) -> None:
    edit(place, "orders", strategy="rotate")
    assert run(place, "--force", "train").exit_code == 0
    edit(place, "orders", count=3)
    refused = run(place, "--dry-run")
    assert "orders.count: 2, now 3: 2 orders" in refused.output
    assert (
        "`--force train` makes that anew (6 trainings); with `strategy: rotate` every order depends on how many there"
    ) in refused.output


def test_added_documents_tasks_and_merges_go_on_and_nothing_else_is_made(place: Path) -> None:
    with open(place / "tasks" / "test.jsonl", "a") as file:
        file.write(json.dumps({"question": "9+9=", "answer": "18"}) + "\n")
    edit(place, "evaluation", limit=17)
    twin = {"merge_method": "linear", "parameters": {"weight": 3}}
    edit(place, "merges", another={"merge_method": "parameter_selection"}, twin=twin)
    planned = run(place, "--dry-run")
    assert plan_of(planned) == {
        "train": "nothing to do (3 done)",
        "merge": "another, twin (2 done)",
        "eval": "base, order_0, order_1, longer, average, first, another, twin (6 made anew)",
    }
    done = run(place)
    assert done.exit_code == 0, done.output
    assert done.output.count("note: twin is the same model as average, value by value") == 1
    assert "17 documents" in (place / "runs/tiny/report.md").read_text()


def test_plan_and_report_are_there_as_json(finished: Path) -> None:
    planned = json.loads(run(finished, "--dry-run", "--json").stdout)
    assert planned["stages"]["merge"] == {"todo": [], "done": ["average", "first"]}
    assert (planned["name"], planned["trainings"]) == ("tiny", 4)
    told = CliRunner().invoke(main, ["report", str(finished / "runs/tiny"), "--json"])
    assert told.exit_code == 0, told.output
    numbers = json.loads(told.stdout)
    assert [row["model"] for row in numbers["scores"]] == ["base", "order_0", "order_1", "longer", "average", "first"]
    assert numbers["comparison"]["comparisons"]
    assert Path(numbers["report"]).is_file()


def test_a_report_shows_no_scores_of_models_that_were_made_anew_since(place: Path) -> None:
    def report() -> tuple[str, dict[str, Any]]:
        done = CliRunner().invoke(main, ["report", str(place / "runs/tiny"), "--json"])
        assert done.exit_code == 0, done.output
        return (place / "runs/tiny/report.md").read_text(), json.loads(done.stdout)

    def train() -> None:
        shutil.rmtree(place / "runs/tiny/orders/1")
        command = ["train", str(place / "experiment.yml"), "--runs-dir", str(place / "runs"), "--order", "1"]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output

    train()  # the same again
    assert report()[1]["outdated"] == []
    edit(place, "sft", learning_rate=0.01)
    train()
    text, numbers = report()
    assert numbers["outdated"] == ["order_1", "average"]  # `first` is made from order 0 alone
    assert [row["model"] for row in numbers["scores"]] == ["base", "order_0", "longer", "first"]
    assert numbers["comparison"] is None
    assert "Outdated, and not shown: the scores of order_1, average, whose models were made anew since" in text
    assert "What merging changed" not in text


def test_changed_documents_are_refused(place: Path) -> None:
    lines = (place / "tasks" / "test.jsonl").read_text().splitlines(keepends=True)
    (place / "tasks" / "test.jsonl").write_text("".join([*lines[1:], *lines]))
    refused = run(place, "--dry-run")
    assert "evaluation.tasks.sums.test.jsonl: its content has changed: the scores of 6 models" in refused.output
