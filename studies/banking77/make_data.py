"""Make the records of the BANKING77 study from the published CSV files.

    python studies/banking77/make_data.py FOLDER_WITH_CSV_FILES

Source: PolyAI-LDN/task-specific-datasets, folder banking_data, commit 57ec275 (CC BY 4.0; Casanueva et al., 2020):
train.csv (10,003 questions of a bank's customers) and test.csv (3,080), each with one of 77 intents. The samples are
of 20 intents (both drawn once, with a fixed seed): a model of 135 M parameters learns these from
500 questions. Validation samples come from train.csv, and no text is in two files.
"""

import argparse
import csv
import json
import random
from pathlib import Path

SEED = 77
INTENTS = 20
TRAIN, VALIDATION, TEST = 500, 100, 500


def read(path: Path) -> list[dict[str, str]]:
    """Return a file's questions and their intents, the intent in words."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = [(row["text"].strip(), row["category"].replace("_", " ")) for row in csv.DictReader(file)]
    return [{"text": " ".join(text.split()), "intent": intent.lower().rstrip("?")} for text, intent in rows]


def main() -> None:
    """Write train.jsonl, valid.jsonl and test.jsonl beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="holds train.csv and test.csv")
    source = parser.parse_args().source
    draw = random.Random(SEED)
    train, test = (read(source / f"{split}.csv") for split in ("train", "test"))
    intents = set(draw.sample(sorted({row["intent"] for row in train}), INTENTS))
    train, test = ([row for row in rows if row["intent"] in intents] for rows in (train, test))
    train = draw.sample(train, TRAIN + VALIDATION)
    records = {"train": train[:TRAIN], "valid": train[TRAIN:], "test": draw.sample(test, TEST)}
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (Path(__file__).parent / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
