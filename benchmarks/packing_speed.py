"""What packing does to the time of a training: processor time of packs and of samples, on the same data.

    python benchmarks/packing_speed.py                                  # 12 M parameters, lengths of 12 to 120 tokens
    python benchmarks/packing_speed.py --samples 64 --out /tmp/trial    # a quick look

Both are trained by `ordermerge train`, in turn and in one process, as one order of one epoch of the same samples, whose
lengths spread tenfold (log-uniform). A batch has about as many tokens with packs as without, and packs are as long as
the longest sample. Processor time, as other work on the machine does not count in it. Writes OUT/packing_speed.json.
"""

import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import yaml
from synthetic import write_base
from watched import machine

from ordermerge.config.load import load_experiment
from ordermerge.console import quiet
from ordermerge.train.sft import train_orders
from ordermerge.train.trainer import OrderTrainer

_SFT = {"num_train_epochs": 1, "learning_rate": 1e-4, "bf16": False, "use_cpu": True, "max_length": 128}
_KINDS = {
    "samples": ({}, {"per_device_train_batch_size": 8}),
    "packs": ({"unit": "pack"}, {"per_device_train_batch_size": 4, "packing": True}),
}


def write_inputs(work: Path, samples: int, hidden: int, layers: int) -> None:
    """Write a base model, data and, for each kind, an experiment over them."""
    write_base(work / "base", hidden, layers)
    draw = random.Random(0)
    lengths = [round(6 * 10 ** draw.random()) for _ in range(samples)]  # each digit and each space is a token
    records = [{"question": "q", "answer": " ".join(draw.choices("0123456789", k=length))} for length in lengths]
    (work / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for kind, (orders, sft) in _KINDS.items():
        content = {
            "name": kind,
            "model": {"path": str(work / "base")},
            "data": {"train": "train.jsonl", "prompt": "{question}", "completion": "{answer}"},
            "orders": {"count": 1, **orders},
            "sft": {**_SFT, **sft},
        }
        (work / f"{kind}.yml").write_text(yaml.safe_dump(content))


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the processor time of each training that is done within."""
    train = OrderTrainer.train

    def watched(trainer: OrderTrainer, **named: Any) -> Any:
        begin = time.process_time()
        found = train(trainer, **named)
        seconds.append(time.process_time() - begin)
        return found

    with mock.patch.object(OrderTrainer, "train", watched):
        yield


@click.command()
@click.option("--samples", default=256, show_default=True)
@click.option("--hidden", default=384, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--repetitions", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results", show_default=True)
def main(samples: int, hidden: int, layers: int, repetitions: int, out: Path) -> None:
    """Train both kinds in turn, and write what each took."""
    seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as folder, quiet():
        work = Path(folder)
        write_inputs(work, samples, hidden, layers)
        for repetition in range(repetitions):
            for kind in _KINDS:
                experiment = load_experiment(work / f"{kind}.yml")
                with timed(seconds[kind]):
                    train_orders(experiment, work / f"{kind}-{repetition}")
    ratios = [packs / single for packs, single in zip(seconds["packs"], seconds["samples"], strict=True)]
    found = {"seconds": seconds, "ratios": ratios, "median_ratio": statistics.median(ratios), "samples": samples}
    out.mkdir(parents=True, exist_ok=True)
    (out / "packing_speed.json").write_text(
        json.dumps({**found, "hidden": hidden, "layers": layers, **machine()}, indent=2)
    )
    click.echo(
        f"packs take {found['median_ratio']:.2f} times as long as samples ({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
