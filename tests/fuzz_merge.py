"""Mutated recipes over tiny models: what `ordermerge check` accepts, `ordermerge merge` merges.

    python tests/fuzz_merge.py --cases 2000 [--seed 0]

What is accepted and does not merge is printed, and the exit status is 1. The tests run some of the cases
(tests/test_fuzz.py).
"""

import copy
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from fuzz import VALUES, arguments
from tiny import write_model

from ordermerge.cli import main as ordermerge

DTYPES = ("float32", "bfloat16", "float16", "float64")
TOP: dict[str, tuple[Any, ...]] = {
    "out_dtype": DTYPES,
    "tokenizer_source": ("base", "union"),
    "tokenizer": ({"source": "union"}, {"source": "base", "pad_to_multiple_of": 8}),
    "chat_template": ("auto", "chatml", "{{ messages }}"),
}
NUMBERS = (0, 0.3, 0.5, 1, 1.0, [0, 1], [0.2, 0.4, 1], 2, -0.5, 1e-9, 10**6, 10**30)
OTHER_VALUES = (True, False, "full", "row", [], [[1]], {}, {"filter": "mlp", "value": 1}, *DTYPES, "int8")
# Names of the hub, which is not asked before; and rules of mergekit's kernels on values of several layers or tensors.
HUB, KERNELS = ("Hugging Face cache", "couldn't connect"), ("density +/- epsilon is in", "weighted sum of the input")
FILTERED = [{"filter": "mlp", "value": 0.5}, {"value": [0, 1]}]


class Models:
    """Three tiny models, and recipes over them.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path):
        from mergekit.merge_methods import registered_methods

        self.methods = registered_methods()
        self.folder, self.recipe = folder, folder / "r.yml"
        self.names = [str(folder / name) for name in ("base", "a", "b")]
        for seed, name in enumerate(self.names):
            write_model(Path(name), seed=seed)

    def _value(self, draw: random.Random) -> Any:
        unlikely = draw.random() < 0.2
        return copy.deepcopy(draw.choice([*VALUES, *OTHER_VALUES, *self.names] if unlikely else [*NUMBERS, FILTERED]))

    def _settings(self, parameters: Iterable[Any], draw: random.Random) -> dict[str, Any]:
        """Return values of a method's parameters that have no default, and of some others."""
        given = [p for p in parameters if p.required or draw.random() < 0.4]
        usual = NUMBERS[:7]
        return {p.name: draw.choice(usual) if p.required or draw.random() < 0.5 else p.default for p in given}

    def _recipe(self, draw: random.Random) -> dict[str, Any]:
        """Return a recipe that mostly merges: a method and some of its parameters, over models or slices."""
        spec, contract = (method := draw.choice(self.methods)).spec, method.spec.contract
        has_base = contract.base.value == "required" or (contract.base.value == "optional" and draw.random() < 0.5)
        most = contract.max_non_base or (contract.max_inputs or 3) - has_base
        least = max(1, contract.min_non_base or 1, contract.min_inputs - has_base)
        names = (self.names[1:] + self.names[1:])[: draw.randint(least, max(least, most))]
        entries = [{"model": name, "parameters": self._settings(spec.input_parameters, draw)} for name in names]
        recipe: dict[str, Any] = {"merge_method": spec.name}
        recipe["parameters"] = self._settings(spec.shared_parameters, draw)
        recipe["dtype"] = draw.choice(DTYPES)
        if has_base:
            recipe["base_model"] = self.names[0]
        if draw.random() < 0.7:
            recipe["models"] = entries
        else:
            layers = [draw.choice([[0, 1], [1, 2], [0, 2]]) for _ in range(draw.choice([1, 2]))]
            entries += [{"model": self.names[0]}] if has_base else []
            recipe["slices"] = [{"sources": [{**entry, "layer_range": of} for entry in entries]} for of in layers]
        return recipe | {key: draw.choice(values) for key, values in TOP.items() if draw.random() < 0.05}

    def _mutated(self, value: Any, draw: random.Random) -> Any:
        """Return a value with one part changed, left out, doubled or moved."""
        if isinstance(value, dict) and value and draw.random() < 0.9:
            key, kind = draw.choice(list(value)), draw.random()
            if kind < 0.1:
                return {k: v for k, v in value.items() if k != key}
            if kind < 0.15:
                return {**value, draw.choice([*TOP, "weight", "density", "normalize"]): self._value(draw)}
            return {**value, key: self._mutated(value[key], draw)}
        if isinstance(value, list) and value and draw.random() < 0.8:
            index = draw.randrange(len(value))
            return [*value[:index], self._mutated(value[index], draw), *value[index + draw.randrange(2) :]]
        return self._value(draw)

    def case(self, number: int, seed: int) -> str | None:
        """Check a recipe, and merge it if it is accepted; return how that broke the rule.

        Args:
            number: The case.
            seed: With the number, names the draw.

        Returns:
            "" for a recipe that was refused, None for one that merged.
        """
        draw = random.Random(f"{seed} {number}")
        recipe = self._recipe(draw)
        for _ in range(draw.choice([0, 0, 1, 1, 2])):
            recipe = self._mutated(recipe, draw)
        text = yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False)
        self.recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
        out = self.folder / "out"
        for command in (["check", str(self.recipe)], ["merge", str(self.recipe), str(out), "--quiet"]):
            done = CliRunner().invoke(ordermerge, command)
            told = any(reason in done.output for reason in (*HUB, *KERNELS))
            if done.exit_code == 1 and (command[0] == "check" or told) and type(done.exception) is SystemExit:
                return ""
            if done.exit_code:
                said = "".join(traceback.format_exception(done.exception, limit=-3))
                return f"case {number}, {command[0]} of\n{text[:1500]}{done.output[-1500:]}{said}"
        shutil.rmtree(out)
        return None


def main() -> None:
    """Run the cases asked for, and print those that break the rule."""
    given = arguments(__doc__, cases=2000)
    broken = merged = 0
    with tempfile.TemporaryDirectory() as name:
        models = Models(Path(name).resolve())
        for number in range(given.cases):
            problem = models.case(number, given.seed)
            merged += problem is None
            if problem:
                broken += 1
                print(f"{problem}\n", flush=True)
    print(f"{given.cases} cases with seed {given.seed}: {merged} merged, {broken} were accepted and did not merge")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
