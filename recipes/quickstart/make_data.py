"""Write worded arithmetic problems: python recipes/quickstart/make_data.py [--out DIR]."""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SEED = 2024
# `test_large`, of which nothing is in the repository, tells scores .01 apart.
SIZES = {"train": 1200, "valid": 200, "test": 500, "test_large": 4000}
# Every number that can appear is one token of the base model's tokenizer, hence the ceiling.
CEILING = 60

# fmt: off
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana",
         "Ivan", "June", "Kai", "Lena", "Max", "Nora", "Omar", "Pia"]
OBJECTS = ["apples", "books", "cards", "coins", "cups", "eggs",
           "flowers", "marbles", "pencils", "shells", "stamps", "toys"]
# fmt: on
PLACES = ["box", "room", "shop", "garden", "school", "basket"]

OPENERS = (
    "{name} has {n} {objects}.",
    "{name} starts the day with {n} {objects}.",
    "There are {n} {objects} in the {place} of {name}.",
    "In the {place} {name} counts {n} {objects}.",
)
# Of each sign, the base model meets the first half solved in its training; fine-tuning teaches the others.
EVENTS = {
    "+": (
        "{name} buys {n} more.",
        "Then {name} finds {n} {objects} in the {place}.",
        "Later {n} {objects} are added.",
        "{name} wins {n}.",
        "{friend} brings {n} {objects}.",
        "After that {n} more arrive.",
    ),
    "-": (
        "{name} loses {n}.",
        "Then {name} leaves {n} {objects} in the {place}.",
        "Later {n} {objects} are sold.",
        "{name} drops {n}.",
        "{friend} borrows {n} {objects}.",
        "After that {n} go missing.",
    ),
    "*": ("Then the number of {objects} grows {n} times.", "By luck {name} now has {n} times as many."),
}
QUESTIONS = ("How many {objects} does {name} have now?", "How many {objects} are there in the end?")


@dataclass(frozen=True)
class Chain:
    """A start value and the operations applied to it from left to right."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def expression(self) -> str:
        """The operations in one line, such as ``7+5-3``."""
        return f"{self.start}" + "".join(f"{sign}{number}" for sign, number in self.steps)

    @property
    def answer(self) -> str:
        """The worked steps and the final value, such as ``7+5=12;12-3=9#### 9``."""
        value, worked = self.start, []
        for sign, number in self.steps:
            result = apply(value, sign, number)
            worked.append(f"{value}{sign}{number}={result}")
            value = result
        return ";".join(worked) + f"#### {value}"


def apply(value: int, sign: str, number: int) -> int:
    """Carry out one operation."""
    return {"+": value + number, "-": value - number, "*": value * number}[sign]


def draw_chain(rng: random.Random) -> Chain:
    """Draw two to four operations whose values stay between 0 and ``CEILING``."""
    start = value = rng.randint(2, 20)
    steps: list[tuple[str, int]] = []
    length = rng.randint(2, 4)
    while len(steps) < length:
        sign = rng.choices("+-*", (4, 4, 1))[0]
        number = rng.randint(2, 3) if sign == "*" else rng.randint(2, 9)
        if 0 <= apply(value, sign, number) <= CEILING:
            steps.append((sign, number))
            value = apply(value, sign, number)
    return Chain(start, tuple(steps))


def tell(chain: Chain, rng: random.Random, events: Mapping[str, Sequence[str]] = EVENTS) -> tuple[str, str]:
    """Word a chain as a story and its question."""
    words = dict(zip(("name", "friend"), rng.sample(NAMES, 2), strict=True))
    words |= {"objects": rng.choice(OBJECTS), "place": rng.choice(PLACES)}
    sentences = [rng.choice(OPENERS).format(n=chain.start, **words)]
    sentences += [rng.choice(events[sign]).format(n=number, **words) for sign, number in chain.steps]
    return " ".join(sentences), rng.choice(QUESTIONS).format(**words)


def draw_record(rng: random.Random, seen: set[str]) -> dict[str, str]:
    """Draw a problem whose question is not in ``seen``, and note it there."""
    while True:
        chain = draw_chain(rng)
        question = " ".join(tell(chain, rng))
        if question not in seen:
            seen.add(question)
            return {"question": question, "answer": chain.answer}


def main() -> None:
    """Write the four files; no question appears twice in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out: Path = parser.parse_args().out
    rng, seen = random.Random(SEED), set[str]()
    for split, size in SIZES.items():
        lines = [json.dumps(draw_record(rng, seen)) for _ in range(size)]
        (out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
