"""What ordermerge adds to the time of a training: `ordermerge train` beside a plain TRL SFTTrainer on the same data.

    python benchmarks/training_speed.py                                         # 12 M parameters, 640 samples
    python benchmarks/training_speed.py --samples 64 --repetitions 2 --out /tmp/trial     # a quick look

Both train the same made-up model with the same settings, in one process and in turn; what is compared is the time of
`Trainer.train`. In ordermerge's is what it does between the steps: it notes and checks which samples were met, and
saves after each epoch but the last what an interrupted order would go on from; `plain` saves nothing. All samples have
the same length, as batches of different samples would otherwise be padded differently. Writes OUT/training_speed.json.
"""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import transformers
import yaml
from merge_throughput import in_turn
from synthetic import write_base
from trl import SFTConfig, SFTTrainer
from watched import machine

from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment
from ordermerge.console import quiet
from ordermerge.train.samples import SAMPLE_ID, load_samples
from ordermerge.train.sft import train_orders

_SFT = {"per_device_train_batch_size": 8, "learning_rate": 1e-4, "bf16": False, "use_cpu": True, "logging_steps": 10}
_TARGET = 1.03


def write_experiment(work: Path, samples: int, epochs: int, hidden: int, layers: int) -> Experiment:
    """Write a base model, data and an experiment over them."""
    write_base(work / "base", hidden, layers)
    records = [{"question": f"{1000 + i} " * 12, "answer": f"{5000 + i} " * 12} for i in range(samples)]
    (work / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    content = {
        "name": "speed",
        "model": {"path": str(work / "base")},
        "data": {"train": "train.jsonl", "prompt": "{question}", "completion": "{answer}"},
        "orders": {"count": 2},
        "sft": {**_SFT, "num_train_epochs": epochs},
    }
    (work / "experiment.yml").write_text(yaml.safe_dump(content))
    return load_experiment(work / "experiment.yml")


def train_plainly(experiment: Experiment, work: Path) -> None:
    """Train as TRL's documentation does."""
    model = transformers.AutoModelForCausalLM.from_pretrained(experiment.model.path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(experiment.model.path)
    more = {"activation_checkpointing": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = SFTConfig(output_dir=str(work / "plain"), **experiment.sft, **more)
    data = load_samples(experiment).train.remove_columns(SAMPLE_ID)
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def train_ordered(experiment: Experiment, work: Path) -> None:
    with tempfile.TemporaryDirectory(dir=work) as run:
        train_orders(experiment, Path(run), only=0)


def time_training(train: Callable[[Experiment, Path], None], experiment: Experiment, work: Path) -> tuple[float, float]:
    """Return the seconds that `Trainer.train` takes in a training: of the clock, and of all processors."""
    seconds = []
    whole = transformers.Trainer.train

    def timed(self: transformers.Trainer, *args: Any, **named: Any) -> Any:
        clock, processors = time.perf_counter(), time.process_time()
        result = whole(self, *args, **named)
        seconds.append((time.perf_counter() - clock, time.process_time() - processors))
        return result

    transformers.Trainer.train = timed
    try:
        train(experiment, work)
    finally:
        transformers.Trainer.train = whole
    (only,) = seconds
    return only


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--samples", default=640)
@click.option("--epochs", default=2)
@click.option("--hidden", default=256, help="Width of the model, a multiple of 64.")
@click.option("--layers", default=12)
@click.option("--repetitions", default=7, help="Pairs; one more of each comes first and does not count.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(samples: int, epochs: int, hidden: int, layers: int, repetitions: int, out: Path) -> None:
    about = {"machine": machine()}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-") as name, quiet():
        work = Path(name)
        experiment = write_experiment(work, samples, epochs, hidden, layers)
        parameters = sum(
            p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(work / "base").parameters()
        )
        tasks = {
            "plain": lambda: time_training(train_plainly, experiment, work),
            "ordermerge": lambda: time_training(train_ordered, experiment, work),
        }
        runs = in_turn(tasks, dict.fromkeys(tasks, repetitions + 1))
    pairs = list(zip(runs["ordermerge"][1:], runs["plain"][1:], strict=True))
    ratios, processors = (sorted(ordered[i] / plain[i] for ordered, plain in pairs) for i in range(2))
    about |= {"parameters": parameters, "samples": samples, "epochs": epochs, "sft": _SFT}
    median = statistics.median(ratios)
    result = {
        "seconds": {name: [clock for clock, _ in times] for name, times in runs.items()},
        "processor_seconds": {name: [used for _, used in times] for name, times in runs.items()},
        "ratios": ratios,
        "processor_ratios": processors,
        "median_ratio": median,
        "target": _TARGET,
        "met": median <= _TARGET,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "training_speed.json").write_text(json.dumps(about | result, indent=1) + "\n", encoding="utf-8")
    click.echo(
        f"ordermerge / plain: median {median:.3f} (lowest {ratios[0]:.3f}, highest {ratios[-1]:.3f}); "
        f"of processor time {statistics.median(processors):.3f}"
    )


if __name__ == "__main__":
    main()
