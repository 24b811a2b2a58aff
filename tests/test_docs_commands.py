"""Every command block of the documentation does what it says, in a scratch copy on few records."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docs_commands as docs
import forked_commands as forked
import pytest
import torch
from check_types import link_package
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
RECORDS = {"train": 40, "valid": 16, "test": 16}

NOT_RUN = {**docs.NEVER, **docs.BY_HAND}
ADDING = "docs/contributing_a_method.md"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose `ordermerge`, `mergekit-yaml` and `python` start at once."""
    folder = tmp_path_factory.mktemp("commands")
    address = str(folder / "socket")
    forked.write_clients(folder / "bin", address)
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, forked.__file__, address]
    with subprocess.Popen(command, env=os.environ | offline, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield {**os.environ, **offline, "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}
        server.kill()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A copy of this checkout in which the quickstart has run, on the first of its records."""
    place = copy(tmp_path_factory.mktemp("docs") / "ordermerge")
    for name, count in RECORDS.items():
        file = place / "recipes" / "quickstart" / f"{name}.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))
    experiment = place / "recipes" / "quickstart" / "experiment.yml"
    small = (
        experiment.read_text().replace("every: 15", "every: 2").replace("train_batch_size: 16", "train_batch_size: 8")
    )
    experiment.write_text(small)
    subprocess.run(["ordermerge", "run", str(experiment)], cwd=place, env=environment, check=True)
    return place


def test_what_is_not_run_is_on_a_page() -> None:
    commands = [command for page in docs.pages() for block in docs.runnable(page) for command in block.commands()]
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in commands)] == []


@pytest.mark.integration
@pytest.mark.parametrize("page", [page for page in docs.pages() if page != ADDING])
def test_commands_of_a_page_do_what_it_says(
    page: str, checkout: Path, environment: dict[str, str], subtests: pytest.Subtests
) -> None:
    docs.prepare(page, checkout, environment)
    commit(checkout)
    follow(page, checkout, environment, subtests)
    written = {block.file for block in docs.runnable(page)}
    assert untracked(checkout) <= written, "the commands' files are not in .gitignore"


@pytest.mark.integration
def test_method_is_added_as_the_page_says(tmp_path: Path, subtests: pytest.Subtests) -> None:
    place, package = copy(tmp_path / "ordermerge"), tmp_path / "package"
    commit(place)
    package.mkdir()
    link_package(package, place)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    follow(ADDING, place, {**os.environ, "PATH": path, "PYTHONPATH": str(package)}, subtests)
    assert untracked(place) - {block.file for block in docs.runnable(ADDING)} == set()
    models = [load_file(place / "try" / f"model_{k}" / "model.safetensors") for k in range(3)]
    merged = load_file(place / "merged" / "model.safetensors")
    assert merged.keys() == models[0].keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, torch.stack([model[name] for model in models]).median(dim=0).values), name


def follow(page: str, place: Path, environment: dict[str, str], subtests: pytest.Subtests) -> None:
    for block in docs.runnable(page):
        with subtests.test(str(block)):
            docs.run(block, place, environment, NOT_RUN, docs.SHORTER)
        for command, reason in block.left_out(NOT_RUN):
            with subtests.test(command):
                pytest.skip(f"{block}: {reason}: {command[:60]}")


def copy(place: Path) -> Path:
    """Copy what is no ignored file of this checkout, which need not be a clone, into a new one."""
    subprocess.run(["git", "init", "--quiet", place], check=True)
    listing = [
        "git",
        f"--git-dir={place}/.git",
        f"--work-tree={ROOT}",
        "ls-files",
        "-z",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.rstrip("\0").split("\0"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    return place


def commit(place: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "add", "--all"], cwd=place, check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "a"], cwd=place, check=True)


def untracked(place: Path) -> set[str]:
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    return set(subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout.split())
