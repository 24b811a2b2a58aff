"""The commands that the documentation shows, run as they are printed, in a fresh clone and a fresh virtual environment.

    python scripts/docs_commands.py FOLDER [PAGE ...]

makes the clone in FOLDER. The tests run the same blocks on few records (tests/test_docs_commands.py), less those below.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Commands that no machine can run for us, by how they begin, and why.
NEVER = {
    "pip install ordermerge": "the package is installed",
    "git clone": "the clone is where the commands run",
    "make test": "runs this",
    "pytest -n 2": "runs this",
    "ordermerge pareto finetuned": "gsm8k and mbpp are on the hub",
    "hf upload": "needs an account on the hub",
    "lm_eval": "gsm8k is on the hub",
    "orders=$(sbatch": "needs Slurm",
    "sbatch": "needs Slurm",
    "accelerate launch": "needs GPUs; tests start two processes with torchrun",
    "ordermerge check recipes/olmo": "downloads 18 to 117 GB",
    "ordermerge merge recipes/olmo": "downloads 18 to 117 GB",
    "mergekit-yaml recipes/olmo": "downloads 18 to 117 GB",
    "ordermerge eval recipes/olmo": "downloads 18 to 117 GB",
    "ordermerge inspect --base allenai": "downloads 18 to 117 GB",
}
# Commands that are run by hand only.
BY_HAND = {
    "torchrun": "starts four processes",
    "ray": "starts a cluster; tests/train/test_ray_executor.py",
    "ordermerge train recipes/quickstart/experiment.yml --executor ray": "needs that cluster",
    "pre-commit run": "checks all types",
    "pytest tests/test_docs.py": "is among the tests",
    "make quickstart": "installs, and trains for minutes",
    "python -m venv": "installs",
    "pip install -c": "installs",
    "pre-commit install": "installs",
}
# Options that the tests add to have less to do.
SHORTER = {"name=slower": " --dry-run"} | {
    f"ordermerge run {folder}/experiment.yml": " --set sft.num_train_epochs=1 --set orders.count=2 --set controls=null"
    for folder in ("start", "mine")
}
# What a page supposes, made in the clone before its blocks are run.
_FAMILY = """\
rm -rf base order_*
cp -r recipes/quickstart/base .; for k in 0 1 2; do cp -r runs/quickstart/orders/$k order_$k; done
"""
_ADAPTERS = """\
rm -rf base order_* merged
ordermerge init adapters --kind lora
ordermerge train adapters/experiment.yml --set sft.num_train_epochs=1
mv adapters/base .; for k in 0 1 2; do mv runs/adapters/orders/$k order_$k; done
mkdir tasks; sed s/starter/mytask/ adapters/tasks/starter.yaml > tasks/mytask.yaml; mv adapters/test.jsonl .
"""
_TICKETS = """\
mkdir mine
row() { echo "the $2 is ${3:-wrong},$1"; }
{ echo message,team; for how in wrong late lost new old here gone; do
  for what in parcel courier letter; do row delivery $what $how; done
  for what in invoice refund payment; do row billing $what $how; done
done; } > mine/tickets.csv
{ head -1 mine/tickets.csv; tail -10 mine/tickets.csv; } > mine/tickets_test.csv
"""
PREPARE = {
    "README.md": _FAMILY,
    "docs/inspect.md": _FAMILY,
    "docs/start.md": _TICKETS,
    "docs/lora.md": _ADAPTERS,
    "docs/evaluation.md": "mkdir -p eval-results; cp -r runs/quickstart/eval/order_0 eval-results/a; "
    "cp -r runs/quickstart/eval/order_1 eval-results/b",
    "docs/training.md": "ordermerge init started; cp -r started/* .",
}


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: The page's path in the repository.
        line: Where the block begins, from 1.
        language: What the fence names.
        text: The lines between the fences.
        file: The file that it is said to be the content of, in the line before it or its own first line.
    """

    page: str
    line: int
    language: str
    text: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a console's block, each with its further lines."""
        return [re.sub(r"(?m)^\$ ", "", found) for found in re.findall(r"^\$ .*\n(?: +.*\n)*", self.text, re.MULTILINE)]

    def shown(self) -> set[str]:
        """Return the words of the output that a console's block shows."""
        if self.language != "console":
            return set()
        return set(re.sub(r"(?m)^\$ .*\n(?: +.*\n)*", "", self.text).split()) - {"..."}

    def left_out(self, not_run: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return the commands that begin as one of `not_run` does, with its reason."""
        commands = [command.splitlines()[0] for command in self.commands()]
        return [(command, why) for command in commands for start, why in not_run.items() if command.startswith(start)]

    def script(self, not_run: Mapping[str, str], added: Mapping[str, str]) -> str:
        """Return the block as a bash script, less the commands that are left out, and with options that are added."""
        run = [command for command in self.commands() if not command.startswith(tuple(not_run))]
        for start, options in added.items():
            run = [command.replace(start, start + options) for command in run]
        return "\n".join(["set -euo pipefail", *run])


def pages() -> list[str]:
    """Return the pages that show commands, those first that install."""
    found = [
        *ROOT.glob("*.md"),
        *(path for top in ("docs", "recipes", "studies") for path in ROOT.glob(f"{top}/**/*.md")),
    ]
    names = sorted(path.relative_to(ROOT).as_posix() for path in found if "results" not in path.parts)
    first = ["README.md", "CONTRIBUTING.md"]
    return first + [name for name in names if runnable(name) and name not in first]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(
        r"(?:^`(?P<file>[^`\n]+)`\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return [_block(page, text, match) for match in found]


def runnable(page: str) -> list[Block]:
    """Return the blocks of a page that are commands, programs, or the content of a file."""
    return [block for block in blocks(page) if block.language in ("console", "python") or block.file is not None]


def _block(page: str, text: str, match: re.Match[str]) -> Block:
    named = re.match(r"(?:#!.*\n)?# (\S+\.(?:yml|sh))\n", match["text"])
    line = text.count("\n", 0, match.start("language")) + 1
    return Block(page, line, match["language"], match["text"], match["file"] or (named and named[1]))


def run(
    block: Block,
    folder: Path,
    environment: Mapping[str, str],
    not_run: Mapping[str, str],
    added: Mapping[str, str] | None = None,
) -> str:
    """Run a block in a checkout, or write the file that it is the content of.

    Args:
        block: What to run; blocks of a console and of Python are.
        folder: The checkout.
        environment: Of the processes; its PATH has `ordermerge` and `python`.
        not_run: How commands begin that are left out.
        added: Options that are added after a part of a command.

    Returns:
        What was printed.

    Raises:
        AssertionError: If a command fails, or prints other words than the page.
    """
    if block.file is not None:
        _write(folder / block.file, block)
        return ""
    command = (
        ["bash", "-c", block.script(not_run, added or {})]
        if block.language == "console"
        else ["python", "-c", block.text]
    )
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    if not block.left_out({**NEVER, **BY_HAND}):  # what these print depends on the machine
        missing = block.shown() - set(done.stdout.split())
        assert not missing, f"{block}: not printed: {missing}\n{done.stdout}"
    return done.stdout + done.stderr


def _write(path: Path, block: Block) -> None:
    """Write a file, or change it as a `diff` says: lines with - by those with +, or + after the line above."""
    if block.language != "diff":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    hunk = re.compile(r"(?:^ (.*\n(?: *\n)*))?((?:^-.*\n)*)((?:^\+.*\n)+)", re.MULTILINE)
    for above, old, new in hunk.findall(block.text):
        # A line may have a comment that the page leaves out.
        lines = "".join(rf"{re.escape(line[1:])}(?: +#.*)?\n" for line in old.splitlines())
        found = re.search(f"^({re.escape(re.sub('(?m)^ ', '', above))}){lines}", text, re.MULTILINE)
        assert found, f"{block}: not in {path}: {above}{old}"
        added = re.sub(r"(?m)^\+", "", new)
        if old or not text.startswith(added, found.end()):
            text = text[: found.end(1)] + added + text[found.end() :]
    path.write_text(text, encoding="utf-8")


def prepare(page: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Make what a page supposes."""
    if page in PREPARE:
        command = ["bash", "-c", f"set -euo pipefail\n{PREPARE[page]}"]
        subprocess.run(command, cwd=folder, env=environment, check=True)


def main(folder: str, *named: str) -> None:
    """Run all pages, or those named, in a fresh clone with a fresh virtual environment."""
    place = Path(folder).resolve()
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    subprocess.run([sys.executable, "-m", "venv", place / ".venv"], check=True)
    path = os.pathsep.join([str(place / ".venv" / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(place / ".venv")}
    for first in ("pip install -c constraints.txt -e .[dev]", "ordermerge run recipes/quickstart/experiment.yml"):
        subprocess.run(first.split(), cwd=place, env=environment, check=True)
    for page in named or pages():
        prepare(page, place, environment)
        for block in runnable(page):
            print(f"\n{block}\n{block.text}", flush=True)
            print(run(block, place, environment, NEVER), flush=True)
    subprocess.run(["git", "status", "--short"], cwd=place, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
