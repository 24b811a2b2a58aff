"""Write four mixes of problems for the tails of one trunk: python studies/mixes/make_data.py.

600 problems each, like the quickstart's: as they are; of two operations; of four; without products. None of them is in
the quickstart's own files.
"""

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
QUICKSTART = HERE.parents[1] / "recipes" / "quickstart"
SEED = 14
SIZE = 600
# What of a problem's worked answer says that it belongs to a mix; steps end in `;` but for the last.
MIXES: dict[str, Callable[[str], bool]] = {
    "all": lambda _: True,
    "short": lambda answer: answer.count(";") == 1,
    "long": lambda answer: answer.count(";") == 3,
    "no_products": lambda answer: "*" not in answer,
}


def main() -> None:
    """Write one JSON Lines file a mix."""
    spec = importlib.util.spec_from_file_location("quickstart_data", QUICKSTART / "make_data.py")
    assert spec
    assert spec.loader
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    lines = [line for file in QUICKSTART.glob("*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    rng, seen = random.Random(SEED), {json.loads(line)["question"] for line in lines}
    for name, belongs in MIXES.items():
        records: list[dict[str, str]] = []
        while len(records) < SIZE:
            record = quickstart.draw_record(rng, seen)
            if belongs(record["answer"]):
                records.append(record)
        (HERE / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
