"""What a local task consists of: change any of it, and its scores are old."""

import shutil
from pathlib import Path

import pytest

from ordermerge.config.schema import EvaluationSection
from ordermerge.eval.scoring.task_files import local_identity, untold_reads

TASK = "task: t\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_target: gold\n"
READERS = {
    "named": "def load(**_):\n    return open(Path(__file__).parent / 'data.jsonl')\n",
    "above": "def load(**_):\n    return (Path(__file__).parents[1] / 'above.jsonl').read_text()\n",
    "filled_in": "def load(**_):\n    return [read_csv(f'{split}.csv') for split in SPLITS]\n",
    "in_a_folder": "def load(**_):\n    return Path('deep') / names()[0]\n",
    "untold": "def load(**_):\n    return [open(path) for path in listdir(HERE)]\n",
    "helper": "from helpers import words\ndef load(**_):\n    return words.all()\n",
}
READ = {
    "named": "tasks/data.jsonl",
    "above": "above.jsonl",
    "filled_in": "tasks/x.csv",
    "in_a_folder": "tasks/deep/er/x.bin",
    "untold": "tasks/data.jsonl",
    "helper": "tasks/helpers/words.py",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tasks/data.jsonl", "above.jsonl", "tasks/x.csv", "tasks/deep/er/x.bin", "tasks/helpers/words.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    return tmp_path / "tasks"


def ask(folder: Path) -> EvaluationSection:
    return EvaluationSection(tasks=["t"], include_path=str(folder))


def identity(folder: Path) -> dict[str, str]:
    return local_identity(ask(folder))["t"]["t"]


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_the_code_reads_is_part_of_the_task(kind: str, folder: Path) -> None:
    (folder / "t.yaml").write_text(TASK + "custom_dataset: !function utils.load\n")
    (folder / "utils.py").write_text(READERS[kind])
    before = identity(folder)
    assert identity(folder) == before
    read = folder.parent / READ[kind]
    read.write_text("b = 1\n")
    assert {name for name, digest in identity(folder).items() if before[name] != digest} == {read.name}


@pytest.mark.parametrize(
    "data", ["dataset_path: {}", "dataset_path: json\ndataset_kwargs: {{data_dir: {}}}",
             "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {}/*.jsonl}}}}"],
)  # fmt: skip
def test_a_folder_of_data_is_part_of_the_task(
    data: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (folder / "t.yaml").write_text(TASK + data.format("data"))
    before = identity(folder)
    (tmp_path / "data" / "a.jsonl").write_text("{ }")
    assert len(before) == 2  # the configuration, and the folder or file
    assert sum(before[name] != digest for name, digest in identity(folder).items()) == 1


def test_data_beside_a_task_without_code_is_not_its_own(folder: Path) -> None:
    (folder / "t.yaml").write_text(TASK + f"dataset_path: json\ndataset_kwargs: {{data_files: {folder / 'x.csv'}}}")
    before = identity(folder)
    assert set(before) == {"configuration", "x.csv"}
    (folder / "data.jsonl").write_text("changed")
    assert identity(folder) == before


def test_many_files_are_one_digest(folder: Path) -> None:
    (folder / "t.yaml").write_text(TASK + "custom_dataset: !function utils.load\n")
    (folder / "utils.py").write_text("def load(**_):\n    return glob('many/*.txt')\n")
    (folder / "many").mkdir()
    for number in range(50):
        (folder / "many" / f"{number}.txt").write_text(str(number))
    before = identity(folder)
    assert set(before) == {"configuration", "files"}
    (folder / "many" / "7.txt").write_text("changed")
    assert identity(folder)["files"] != before["files"]


def test_what_cannot_be_told_is_said(folder: Path) -> None:
    (folder / "t.yaml").write_text(TASK + "custom_dataset: !function utils.load\n")
    (folder / "utils.py").write_text(READERS["untold"])
    assert untold_reads(ask(folder)) == []  # it reads what lies beside it, as far as can be told
    for name in ("data.jsonl", "x.csv"):
        (folder / name).unlink()
    (problem,) = untold_reads(ask(folder))
    assert problem.startswith("task 't': what utils.py reads is not named in it; scores are kept when that changes")


def test_code_that_is_no_python_is_no_traceback(folder: Path) -> None:
    (folder / "t.yaml").write_text(TASK + "custom_dataset: !function utils.load\n")
    (folder / "utils.py").write_bytes(b"\xff def")
    assert set(identity(folder)) == {"configuration", "utils.py", "data.jsonl", "x.csv"}


def test_the_quickstarts_own_task_follows_its_data(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    quickstart: Path = pytestconfig.rootpath / "recipes" / "quickstart"
    shutil.copytree(quickstart / "tasks", tmp_path / "tasks")
    shutil.copy(quickstart / "test.jsonl", tmp_path)
    settings = EvaluationSection(tasks=["worded_arithmetic"], include_path=str(tmp_path / "tasks"))

    def found() -> dict[str, str]:
        return local_identity(settings)["worded_arithmetic"]["worded_arithmetic"]

    before = found()
    assert set(before) == {"configuration", "utils.py", "test.jsonl"}
    (tmp_path / "test.jsonl").write_text("{}")
    assert found()["test.jsonl"] != before["test.jsonl"]
