"""Mutated recipes, experiments and data files: each is accepted, or refused in one short sentence, in little time.

    python tests/fuzz.py --cases 20000 [--seed 0]

Each case goes through the functions behind `ordermerge check`, in this process; what breaks the rule is printed, and
the exit status is 1. The tests run some hundred of them (tests/test_fuzz.py).
"""

import argparse
import copy
import json
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ordermerge.errors import UserError, printable, shortened

SECONDS, MEGABYTES, CHARACTERS = 2, 300, 2000
RECIPE: dict[str, Any] = {
    "merge_method": "parameter_selection",
    "base_model": "org/base",
    "models": [{"model": "org/a", "parameters": {"weight": 1}}, {"model": "org/b", "parameters": {"weight": [0, 1]}}],
    "parameters": {"resample": 1, "seed": 3, "granularity": "element"},
    "dtype": "bfloat16",
    "tokenizer": {"source": "union", "tokens": {"<|a|>": {"source": "org/a"}}},
}
EXPERIMENT: dict[str, Any] = {
    "name": "fuzz",
    "model": {"path": "org/base", "dtype": "float32"},
    "data": {"train": "train.jsonl", "validation": 0.2, "prompt": "{q}", "completion": "{a}"},
    "orders": {"count": 2, "strategy": "random", "seed": 0},
    "sft": {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "bf16": False},
    "lora": {"r": 4, "target_modules": ["q_proj"]},
    "checkpoints": {"every": 5},
    "merges": {"average": {"merge_method": "linear", "parameters": {"weight": 1}}},
    "evaluation": {"tasks": ["ordermerge_text"], "metadata": {"data_files": "t.txt"}, "batch_size": 4, "limit": 5},
}
RECORDS = [{"q": "a", "a": "b"}, {"q": "007", "a": 1.5, "deep": {"x": [None, True]}}]
VALUES: list[Any] = [
    *(None, True, -1, 0, 10**6, 10**30, 0.5, -0.0, float("nan"), float("inf"), "", " ", "x", "1e-5", "inf", "nan"),
    *("x" * 5000, "n" * 250, "~nobody/x", "/", "..", "a\nb", "\x1b[31m", "\ud800", "\0", "[red]", "$x$", "a|b"),
    *([], {}, [[]], [1, "a", None], {"a": {"b": [1]}}, {"value": 1}, {"path": "x"}, {"model": {"path": "y"}}),
    [{"filter": "mlp", "value": [0, 1]}],
]
TOKENS = ["&a ", "*a", "!!int ", "!!binary ", "<<: ", "---\n", "? ", "{", "[", "]", "\t", "\x00", "'", '"', ": ", "- "]
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)


def mutated(value: Any, draw: random.Random) -> Any:
    """Return a value with one part, at any depth, changed, left out, doubled or added."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, draw.choice([f"{key}x", str(key).upper(), "", 1, None, "x" * 300, "\x1b"]): value[key]}
        return {**value, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        index = draw.randrange(len(value))
        return [*value[:index], mutated(value[index], draw), *value[index + draw.randrange(2) :]]
    return draw.choice(VALUES)


def text_of(value: Any, draw: random.Random, write: Callable[[Any], str]) -> bytes:
    """Return a value as the bytes of a file, sometimes with bytes changed, cut off, or put in."""
    try:
        content = write(value).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):  # a key that JSON cannot write
        content = repr(value).encode("utf-8", "surrogatepass")
    kind = draw.random()
    place = draw.randrange(len(content) + 1)
    if kind < 0.08:
        return content[:place]
    if kind < 0.16:
        return content[:place] + draw.randbytes(draw.choice([1, 3, 50])) + content[place:]
    if kind < 0.26:
        return content[:place] + draw.choice(TOKENS).encode() * draw.choice([1, 2, 3000]) + content[place:]
    return content if kind < 0.99 else BOMB.encode() + content


def cases(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path, Callable[[], object]]]:
    """Yield cases: what kind, the file that was written, and what reads it."""
    from ordermerge.commands.plan import check_experiment
    from ordermerge.config.load import load_experiment
    from ordermerge.merge_methods.recipe_check.check import check_recipe
    from ordermerge.records import read_records
    from ordermerge.yaml_json import read_yaml

    (folder / "train.jsonl").write_text("".join(json.dumps({"q": str(i), "a": "x"}) + "\n" for i in range(20)))
    (folder / "t.txt").write_text("text")
    recipe, experiment, data = folder / "r.yml", folder / "e.yml", folder / "d.jsonl"

    def refuse(problems: list[str]) -> None:
        if problems:
            raise UserError(problems)

    readers: dict[str, tuple[Path, Callable[[], object]]] = {
        "recipe": (recipe, lambda: refuse(check_recipe(read_yaml(recipe), models_exist=False))),
        "experiment": (experiment, lambda: refuse(check_experiment(load_experiment(experiment)))),
        "data": (data, lambda: read_records(data)),
    }
    for number in range(count):
        draw = random.Random(f"{seed} {number}")  # each case by itself, so that one can be looked at alone
        kind = draw.choice(list(readers))
        value: Any = {"recipe": RECIPE, "experiment": EXPERIMENT, "data": RECORDS}[kind]
        for _ in range(draw.choice([1, 1, 2, 4])):
            value = mutated(copy.deepcopy(value), draw)
        file, read = readers[kind]
        if kind == "data":
            lines = value if isinstance(value, list) else [value]
            content = b"\n".join(text_of(line, draw, json.dumps) for line in lines)
        else:
            content = text_of(value, draw, lambda v: yaml.safe_dump(v, sort_keys=False))
        if kind == "experiment" and b"tasks:\n  - ordermerge_text\n  m" not in content:
            continue  # for a task that is not ours lm-eval reads thousands of files
        file.write_bytes(content)
        yield f"{kind} {number}", file, read


def breaks(read: Callable[[], object]) -> str | None:
    """Return how reading a file breaks the rule, None if it does not."""
    before, started = _peak(), time.process_time()
    try:
        read()
        message = ""
    except (UserError, OSError) as error:  # as the command line tells it
        message = shortened(printable(str(error)))
    except Exception:
        return traceback.format_exc(limit=-2)
    seconds, megabytes = time.process_time() - started, _peak() - before
    if len(message) >= CHARACTERS or "\x1b" in message:
        return f"message of {len(message)} characters: {message[:200]!r}"
    if seconds > SECONDS or megabytes > MEGABYTES:
        return f"{seconds:.1f} s, {megabytes} MB more"
    return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def arguments(about: str | None, **counts: int) -> argparse.Namespace:
    """Read the command line of a script like this one, and let nothing ask the hub.

    Args:
        about: What its help says.
        counts: How many of what it plays, if not given.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for what, count in {**counts, "seed": 0}.items():
        parser.add_argument(f"--{what}", type=int, default=count)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return parser.parse_args()


def main() -> None:
    """Run the cases asked for, and print those that break the rule."""
    given = arguments(__doc__, cases=20_000)
    broken = 0
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for number, (title, file, read) in enumerate(cases(Path(name), given.cases, given.seed)):
            if number == 0:
                breaks(read)  # imports, which take seconds, are no part of a case
            if problem := breaks(read):
                broken += 1
                print(f"{title}: {problem}\n{file.read_bytes()[:600]!r}\n")
    print(f"{given.cases} cases with seed {given.seed}: {broken} break the rule")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
