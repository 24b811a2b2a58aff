"""Damaged files of a finished run: each command ends well, or in one short sentence that names a file, and never else.

    python tests/fuzz_run.py --cases 5000 [--seed 0]

A tiny run is made once; then, again and again, one of its files is damaged and a command is given, in this process.
What breaks the rule is printed, and the exit status is 1. The tests run some of the cases (tests/test_fuzz.py).
"""

import copy
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from fuzz import CHARACTERS, TOKENS, arguments, mutated
from tiny import write_model, write_sums

from ordermerge.cli import main as ordermerge

READ = {".json", ".yml", ".jsonl", ".parquet", ".safetensors", ".csv", ".md"}


class Run:
    """A finished run, its whole copy, and the commands that read it.

    Args:
        folder: An empty folder.
        thorough: Whether commands that measure models anew are among them.
    """

    def __init__(self, folder: Path, *, thorough: bool = False):
        self.folder, self.run, self.whole = folder, folder / "runs" / "tiny", folder / "whole"
        self._write_experiment()
        experiment, run = str(folder / "e.yml"), str(self.run)
        orders = [str(self.run / "orders" / str(order)) for order in range(2)]
        merge = ["merge", str(self.run / "recipes" / "resampled.yml"), str(folder / "out"), "--quiet"]
        runs = ["--runs-dir", str(self.run.parent)]
        make = [["run", experiment, *runs], ["losses", run], ["losses", run, "--steps"], ["imbalance", run]]
        for command in [*make, ["curve", run], merge]:
            done = CliRunner().invoke(ordermerge, command)
            assert done.exit_code == 0, done.output
        shutil.copytree(self.run, self.whole)
        self.files = [path for path in sorted(self.whole.rglob("*")) if path.suffix in READ]
        self.commands = [
            *(["report", run], ["check", run, "--deep"], ["check", run], ["noise", run], ["card", run]),
            *(["compare", run], ["compare", *(str(self.run / "eval" / name) for name in ("order_0", "average"))]),
            *(["run", experiment, *runs, "--dry-run"], ["imbalance", run], merge, ["check", merge[1]]),
            ["inspect", "--base", str(folder / "base"), *orders],
        ]
        if thorough:
            scored = ["eval", *orders, "--tasks", "sums", "--include-path", str(folder / "tasks")]
            scored += ["--out", str(folder / "scores")]
            self.commands += [*make, ["curve", run], scored, ["check", str(self.run / "experiment.yml")]]

    def _write_experiment(self) -> None:
        write_model(self.folder / "base")
        write_sums(self.folder, 10, 2)
        data = str(self.folder / "data.jsonl")
        content = {
            "name": "tiny",
            "model": {"path": str(self.folder / "base"), "dtype": "float32"},
            "data": {"train": data, "validation": data, "prompt": "{question}", "completion": "{answer}"},
            "orders": {"count": 2},
            "sft": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "bf16": False},
            "checkpoints": {"every": 2},
            "merges": {
                "average": {"merge_method": "linear", "parameters": {"weight": 1}},
                "resampled": {"merge_method": "parameter_selection_resample"},
            },
            "evaluation": {"tasks": ["sums"], "include_path": "tasks", "batch_size": 16, "device": "cpu"},
        }
        (self.folder / "e.yml").write_text(yaml.safe_dump(content, sort_keys=False))

    def case(self, number: int, seed: int) -> str | None:
        """Damage a file, and give a command; return how that broke the rule, None if it did not.

        Args:
            number: The case.
            seed: With the number, names the draw.
        """
        draw = random.Random(f"{seed} {number}")
        file, command = draw.choice(self.files), draw.choice(self.commands)
        path = self.run / file.relative_to(self.whole)
        kind = _damage(path, draw)
        try:
            broken = _breaks(command, path, self.run)
        finally:
            self._restore(path)
        return f"case {number}, {path} {kind}, {' '.join(command)}: {broken}" if broken else None

    def _restore(self, damaged: Path) -> None:
        """Make the run directory what it was; files that are as they were keep their inodes."""
        _remove(damaged)
        for made in ("out", "scores"):
            shutil.rmtree(self.folder / made, ignore_errors=True)
        was = {path.relative_to(self.whole): path for path in self.whole.rglob("*")}
        for path in sorted(self.run.rglob("*"), reverse=True):
            if path.relative_to(self.run) not in was:
                _remove(path)
        for below, then in sorted(was.items()):
            path = self.run / below
            if then.is_dir():
                path.mkdir(exist_ok=True)
            elif not path.exists() or _state(path) != _state(then):
                shutil.copy2(then, path)


def _damage(path: Path, draw: random.Random) -> str:
    """Damage a file; return how."""
    content, status = path.read_bytes(), path.stat()
    place = draw.randrange(len(content) + 1)
    kinds: dict[str, Callable[[], bytes]] = {
        "cut": lambda: content[:place],
        "flipped": lambda: _flipped(content, draw),
        "flipped in its beginning": lambda: _flipped(content[:2000], draw) + content[2000:],
        "with more in it": lambda: content[:place] + draw.choice(TOKENS).encode() * 9 + content[place:],
        "empty": lambda: b"",
        "binary": lambda: draw.randbytes(300),
        "deep": lambda: b'{"a":' * 5000,
        "of zeros": lambda: bytes(len(content)),
        "of another value": lambda: _other_value(content, draw),
        "of other values": lambda: _other_value(_other_value(content, draw), draw),
    }
    kind = draw.choice([*kinds, "of another value", "gone", "a folder", "a link to nothing"])
    _remove(path)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link to nothing":
        path.symlink_to("nothing")
    elif kind != "gone":
        path.write_bytes(kinds[kind]())
        if draw.random() < 0.3:  # as a disk does it
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return kind


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 20]) if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _other_value(content: bytes, draw: random.Random) -> bytes:
    """Return JSON, YAML, JSON lines, or the header of safetensors, with a value in it changed."""
    try:
        if content[8:9] == b"{":
            length = int.from_bytes(content[:8], "little")
            header = json.dumps(mutated(json.loads(content[8 : 8 + length]), draw)).encode("utf-8", "surrogatepass")
            return len(header).to_bytes(8, "little") + header + content[8 + length :]
        if content.startswith(b"{") and b"}\n{" in content:
            lines = content.splitlines()
            number = draw.randrange(len(lines))
            lines[number] = json.dumps(mutated(json.loads(lines[number]), draw)).encode()
            return b"\n".join(lines) + b"\n"
        value: Any = yaml.safe_load(content)
    except (ValueError, yaml.YAMLError):
        return _flipped(content, draw)
    for _ in range(draw.choice([1, 1, 3])):
        value = mutated(copy.deepcopy(value), draw)
    if content.startswith(b"{"):
        return json.dumps(value).encode()
    return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")


def _breaks(command: list[str], path: Path, run: Path) -> str | None:
    """Return how a command broke the rule when a file of a run was damaged."""
    done = CliRunner().invoke(ordermerge, command)
    if done.exception and not isinstance(done.exception, SystemExit):
        return "".join(traceback.format_exception(done.exception, limit=-4))
    if done.exit_code == 0:
        return None
    message = f"\n{done.stderr}".rpartition("\nError: ")[2]
    named = any(str(place) in message for place in [path, *path.parents[:-1]] if place.is_relative_to(run))
    if (
        done.exit_code != 1
        or sum(line.startswith("Error: ") for line in done.stderr.splitlines()) != 1
        or len(message) >= CHARACTERS
        or not named
    ):
        return f"status {done.exit_code}, {len(message)} characters: {done.output[-1500:]}"
    return None


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    """Run the cases asked for, and print those that break the rule."""
    given = arguments(__doc__, cases=5000)
    broken = 0
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name).resolve(), thorough=True)
        for number in range(given.cases):
            if problem := run.case(number, given.seed):
                broken += 1
                print(f"{problem}\n", flush=True)
    print(f"{given.cases} cases with seed {given.seed}: {broken} break the rule")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
