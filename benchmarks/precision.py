"""How many values training leaves unchanged, by the dtype of the weights, by autocast, by learning rate, with LoRA.

    python benchmarks/precision.py                                # 84 s of one CPU core
    python benchmarks/precision.py --samples 16                   # a quick look

Trains order 0 of the quickstart's base model and data for one epoch in each way. Writes OUT/precision.json and prints
the table of docs/training.md. "Unchanged" is what the merge methods mean by it; with LoRA, only the matrices that have
an adapter are counted.
"""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file

from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment
from ordermerge.provenance import record
from ordermerge.train.sft import train_orders
from ordermerge.unchanged import changed, to_lanes

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "save_as": "dense"}
ADAPTED = "_proj."  # is in the names of the linear layers, and of no other tensor
BATCH = 4
LEARNING_RATES = (1e-3, 2e-5)
WAYS = [
    {"weights": "float32", "autocast": "no", "lora": False},
    {"weights": "float32", "autocast": "bfloat16", "lora": False},
    {"weights": "bfloat16", "autocast": "no", "lora": False},
    {"weights": "float32", "autocast": "no", "lora": True},
    {"weights": "bfloat16", "autocast": "no", "lora": True},
]


def make_experiment(way: dict[str, Any], learning_rate: float, train: Path) -> Experiment:
    given = load_experiment(QUICKSTART / "experiment.yml")
    sft = {
        **given.sft,
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": learning_rate,
        "bf16": way["autocast"] == "bfloat16",
    }
    changes = {
        "model": given.model.model_copy(update={"dtype": way["weights"]}),
        "data": given.data.model_copy(update={"train": str(train), "validation": None}),
        "sft": sft,
        "lora": LORA if way["lora"] else None,
    }
    return given.model_copy(update=changes)


def share_unchanged(before: Path, after: Path, dtype: torch.dtype, part: str) -> float:
    """Return the share of values equal to the base model's, both rounded to a dtype, in tensors of such a name."""
    base, trained = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    unchanged = total = 0
    for name, value in trained.items():
        if part not in name:
            continue
        lanes = to_lanes(value.to(dtype))
        # Training starts from the base model in the dtype of the weights.
        reference = to_lanes(base[name].to(value.dtype).to(dtype))
        unchanged += lanes.numel() - int(changed(lanes, reference).sum())
        total += lanes.numel()
    return unchanged / total


def measure(way: dict[str, Any], learning_rate: float, train: Path, work: Path) -> dict[str, Any]:
    experiment = make_experiment(way, learning_rate, train)
    (trained,) = train_orders(experiment, work, only=0)
    told = json.loads((trained / "order" / "order.json").read_text(encoding="utf-8"))
    return {
        **way,
        "learning_rate": learning_rate,
        "unchanged": {
            name: round(
                share_unchanged(QUICKSTART / "base", trained, getattr(torch, name), ADAPTED if way["lora"] else ""), 4
            )
            for name in ("float32", "bfloat16")
        },
        **{name: told[name] for name in ("steps", "train_loss", "threads")},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table: a line for each way of training, the share for each learning rate and dtype of comparison."""
    head = ["weights", "autocast", "LoRA"]
    head += [f"{rate:g}, in {dtype}" for rate in LEARNING_RATES for dtype in ("float32", "bfloat16")]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "--:|" * (len(head) - 3)]
    for way in WAYS:
        shares = {row["learning_rate"]: row["unchanged"] for row in rows if way.items() <= row.items()}
        cells = [way["weights"], way["autocast"], "yes" if way["lora"] else "no"]
        cells += [f"{100 * shares[rate][dtype]:.1f} %" for rate in LEARNING_RATES for dtype in ("float32", "bfloat16")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--samples", default=96, show_default=True, help="How many of the quickstart's samples to train on.")
@click.option("--out", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
def main(samples: int, out: Path) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as work:
        train = Path(work) / "train.jsonl"
        lines = (QUICKSTART / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        train.write_text("".join(lines[:samples]), encoding="utf-8")
        for number, (way, rate) in enumerate(itertools.product(WAYS, LEARNING_RATES)):
            rows.append(measure(way, rate, train, Path(work) / str(number)))
    setting = {"samples": samples, "batch": BATCH, "orders_seed": 0, "order": 0, "lora": LORA}
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"setting": setting, "rows": rows, **record(ROOT)}, indent=2) + "\n"
    (out / "precision.json").write_text(text, encoding="utf-8")
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
