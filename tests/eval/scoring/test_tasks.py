import subprocess
import sys
from pathlib import Path

import pytest

from ordermerge.config.schema import EvaluationSection
from ordermerge.errors import UserError
from ordermerge.eval.scoring.harness import LoadedTask, distinct_items, load_tasks
from ordermerge.eval.scoring.task_files import local_identity
from ordermerge.eval.scoring.tasks import find_tasks


def ask(folder: Path, *tasks: str) -> EvaluationSection:
    return EvaluationSection(tasks=list(tasks), include_path=str(folder))


def test_find_tasks_local_tasks_leave_lm_evals_collection_unread(tasks):
    manager, names = find_tasks(ask(tasks, "both", "surprise"))
    assert names == {"both": ["both"], "surprise": ["surprise"]}
    own = ["ordermerge_completion", "ordermerge_final_answer", "ordermerge_text"]
    assert manager.all_tasks == ["both", "choice", "echo", *own, "surprise"]


def test_find_tasks_unknown_names_nearest_place_and_unreadable_files(own_tasks):
    (own_tasks / "broken.yaml").write_text("task: [x\n")
    (own_tasks / "other.yml").write_text("task: other\n")
    (own_tasks / "parent.yaml").write_text("group: parent\ntask: [echo, arc_easi]\n")
    with pytest.raises(UserError) as error:
        find_tasks(ask(own_tasks, "chioce", "parent"))
    first, second, *files = sorted(error.value.problems, key=lambda text: not text.startswith("task"))
    assert {first.split(";")[0], second.split(";")[0]} == {
        "task 'chioce' is unknown (did you mean 'choice'?)",
        "task 'arc_easi' is unknown (did you mean 'arc_easy'?)",
    }
    assert (
        f"looked in {own_tasks} (both, choice, echo, parent, surprise), ordermerge's own (ordermerge_completion, "
        in first
    )
    assert "ordermerge_text) and lm-eval's " in first
    assert files[0].startswith(f"{own_tasks / 'broken.yaml'} cannot be read as a task: while parsing a flow sequence")
    assert files[1] == f"{own_tasks / 'other.yml'} is not read: lm-eval looks for *.yaml; rename it"


def test_find_tasks_glob_and_own_collection(tasks):
    _, names = find_tasks(ask(tasks, "e[c]ho", "arc_ea?y", "echo"))
    assert names == {"e[c]ho": ["echo"], "arc_ea?y": ["arc_easy"], "echo": ["echo"]}


def load(settings: EvaluationSection, **options: bool) -> dict[str, LoadedTask]:
    manager, names = find_tasks(settings)
    return load_tasks(manager, names, **{"unsafe_code": False, **options})


def test_load_tasks_groups_hold_their_tasks(tasks):
    loaded = load(ask(tasks, "both", "surprise"))
    assert {name: (list(task.items), task.names) for name, task in loaded.items()} == {
        "both": (["both"], ["echo", "choice", "both"]),
        "surprise": (["surprise"], ["surprise"]),
    }


def test_load_tasks_unsafe_code_needs_consent(own_tasks):
    path = own_tasks / "choice.yaml"
    path.write_text(path.read_text() + "unsafe_code: true\n")
    settings = ask(own_tasks, "choice", "echo")
    assert list(load(settings, unsafe_code=True)) == ["choice", "echo"]
    with pytest.raises(UserError, match=r"^task choice runs code that the model wrote; consent with `confirm_run_uns"):
        load(settings)


def test_load_tasks_same_task_under_two_names_is_one_and_in_two_groups_is_refused(tasks):
    assert len(distinct_items(load(ask(tasks, "echo", "e[c]ho")).values())) == 1
    with pytest.raises(UserError, match=r"Duplicate task 'echo': found in both 'both' and 'echo'; ask for one of the"):
        load(ask(tasks, "both", "echo"))


def test_local_identity_follows_configuration_code_and_data(own_tasks):
    before = local_identity(ask(own_tasks, "both"))["both"]
    assert sorted(before) == ["both", "choice", "echo"]
    (own_tasks / "utils.py").write_text("x = 1\n")
    path = own_tasks / "echo.yaml"
    path.write_text(path.read_text().replace("max_gen_toks: 3", "max_gen_toks: 4"))
    after = local_identity(ask(own_tasks, "both"))["both"]
    assert after["echo"]["configuration"] != before["echo"]["configuration"]
    assert after["choice"]["configuration"] == before["choice"]["configuration"]
    assert set(after["choice"]) - set(before["choice"]) == {"utils.py"}


def test_local_identity_of_each_task_asked_for_and_of_patterns(tasks):
    found = local_identity(ask(tasks, "choice", "[es]*", "arc_easy"))
    assert {name: list(local) for name, local in found.items()} == {
        "choice": ["choice"],
        "[es]*": ["echo", "surprise"],
        "arc_easy": [],
    }


def test_import_of_the_package_is_cheap():
    code = "import sys, ordermerge.eval; print([m for m in ('torch', 'lm_eval', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
