"""Two and eight `ordermerge train` or `merge` at once in one place, begun at random moments, some of them killed.

    python tests/stress.py --rounds 200 [--seed 0]

Each is a process of its own, forked from this one, which has the libraries loaded. After a round each process has
ended with status 0, by our signal, or with one sentence on why it left; what stands in the place is whole, and the
same command, given once more, ends in the bits of a place where nothing was ever disturbed, with nothing left over.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from fuzz import arguments
from tiny import write_model, write_sums

METHODS = {"linear": {"weight": 1}, "parameter_selection": {"seed": 3}}
WEIGHTS = "model.safetensors"


class Stress:
    """Rounds in one folder.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._write_experiment()
        self.orders = [folder / "undisturbed" / "stress" / "orders" / str(order) for order in range(2)]
        self.recipes = {}
        for method, parameters in METHODS.items():
            self.recipes[method] = folder / f"{method}.yml"
            models = [{"model": str(order)} for order in self.orders]
            recipe = {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32"}
            self.recipes[method].write_text(yaml.safe_dump(recipe))
        self.require_done(self.run([["train", str(folder / "e.yml"), "--runs-dir", str(folder / "undisturbed")]]))
        self.require_done(
            self.run([["merge", str(self.recipes[method]), str(folder / method), "--quiet"] for method in METHODS])
        )

    def _write_experiment(self) -> None:
        base = self.folder / "base"
        write_model(base)
        write_sums(self.folder, 5, 4)
        content = {
            "name": "stress",
            "model": {"path": str(base), "dtype": "float32"},
            "data": {"train": "data.jsonl", "prompt": "{question}", "completion": "{answer}"},
            "orders": {"count": 2},
            "sft": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "bf16": False},
            "checkpoints": {"resume_every": 2},
        }
        (self.folder / "e.yml").write_text(yaml.safe_dump(content, sort_keys=False))

    def run(
        self, commands: Sequence[Sequence[str]], delays: Sequence[float] = (), kills: Sequence[float | None] = ()
    ) -> list[tuple[int, str]]:
        """Run commands at once; return how each ended and what it said.

        Args:
            commands: Arguments of `ordermerge`.
            delays: Seconds before each begins.
            kills: Seconds after which each is killed; None for those that are not.
        """
        logs = [self.folder / f"{number}.log" for number in range(len(commands))]
        starts = [*delays, *[0.0] * len(commands)]
        began = time.monotonic()
        pids = [_fork(command, log, delay) for command, log, delay in zip(commands, logs, starts, strict=False)]
        left, ended = dict(enumerate(pids)), dict[int, int]()
        while left:
            for number, pid in list(left.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[number] = os.waitstatus_to_exitcode(status)
                    del left[number]
                elif number < len(kills) and (at := kills[number]) is not None and time.monotonic() - began > at:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        return [(ended[number], log.read_text(errors="replace")) for number, log in enumerate(logs)]

    def round(self, number: int, seed: int) -> list[str]:
        """Play a round; return what was wrong in it.

        Args:
            number: The round.
            seed: With the number, names the draw.
        """
        draw = random.Random(f"{seed} {number}")
        count = draw.choice([2, 2, 8])
        delays = [draw.random() for _ in range(count)]
        kills = [draw.uniform(0, 4) if draw.random() < 0.3 else None for _ in range(count)]
        if draw.random() < 0.5:
            place, command = self.folder / f"run{number}", ["train", str(self.folder / "e.yml"), "--order", "0"]
            commands = [[*command, "--runs-dir", str(place)] for _ in range(count)]
            out = place / "stress" / "orders" / "0"
        else:
            place = self.folder / f"out{number}"
            out = place / "merged"
            chosen = [draw.choice(list(self.recipes.values())) for _ in range(count)]
            commands = [["merge", str(recipe), str(out), "--quiet"] for recipe in chosen]
        problems = [found for one in self.run(commands, delays, kills) if (found := _wrong_end(*one))]
        problems += self._wrong_weights(out) if (out / "config.json").exists() else []
        (again,) = self.run(commands[-1:])
        problems += [] if again[0] == 0 else [f"once more: {again}"]
        problems += self._wrong_weights(out)
        problems += [f"left over: {path}" for path in place.rglob(".*")]
        shutil.rmtree(place)
        return [f"round {number}, {count} x {commands[0][0]}: {problem}" for problem in problems]

    def _wrong_weights(self, out: Path) -> list[str]:
        """Return how what was made differs from what its own record says it is."""
        marker = out / "ordermerge.json"
        expected = self.orders[0]
        if marker.exists():
            expected = self.folder / json.loads(marker.read_text())["recipe"]["merge_method"]
        if (out / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes():
            return []
        return [f"{out} does not hold the weights of {expected}"]

    @staticmethod
    def require_done(ends: Sequence[tuple[int, str]]) -> None:
        """Refuse to begin where the undisturbed commands fail."""
        for status, said in ends:
            assert status == 0, said


def _wrong_end(status: int, said: str) -> str | None:
    """Return how a process ended otherwise than it may."""
    sentences = said.count("Error: ")
    if status in (0, -signal.SIGKILL) or (status == 1 and sentences == 1 and "Traceback" not in said):
        return None
    return f"status {status}, said {said[-1500:]!r}"


def _fork(command: Sequence[str], log: Path, delay: float) -> int:
    """Start a command in a process of its own, whose output goes to a file."""
    from ordermerge.cli import main

    if pid := os.fork():
        return pid
    status = 70
    try:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        time.sleep(delay)
        main(list(command), prog_name="ordermerge")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def load_libraries() -> None:
    """Import what the commands import, so that forked processes need not."""
    import lm_eval.evaluator  # noqa: F401
    import trl  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    import ordermerge.commands.merging
    import ordermerge.commands.run  # noqa: F401


def main() -> None:
    """Play the rounds asked for, and print what was wrong."""
    given = arguments(__doc__, rounds=200)
    torch.set_num_threads(1)
    load_libraries()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        stress = Stress(Path(name))
        for number in range(given.rounds):
            for problem in stress.round(number, given.seed):
                wrong += 1
                print(problem, flush=True)
            print(f"{number + 1} rounds with seed {given.seed}: {wrong} problems", file=sys.stderr, flush=True)
    print(f"{given.rounds} rounds with seed {given.seed}: {wrong} problems")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
