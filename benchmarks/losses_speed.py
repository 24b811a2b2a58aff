"""What the losses of samples cost beside a bare forward pass over the same tokens.

    python benchmarks/losses_speed.py
    python benchmarks/losses_speed.py --samples 32 --repetitions 2 --out /tmp/trial     # a quick look

Llama models with random weights, samples of 20 to 400 tokens of which the last half is learnt. The forward pass takes
the same batches, padded and masked alike, and its logits are thrown away; both run in one process, repetitions
interleaved in changing order. Writes OUT/losses_speed.json. What is asserted: the median ratio is at most 1.2.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from synthetic import LlamaShape
from transformers import LlamaConfig, LlamaForCausalLM
from watched import machine

from ordermerge.eval.imbalance.losses import plan_batches, sample_losses

BOUND = 1.2
_SEED = 0
SHAPES = {
    "27 M parameters, 32k tokens": LlamaShape(256, 704, 8, 4, 4, vocab_size=32000),
    "75 M parameters, 128k tokens": LlamaShape(256, 704, 8, 4, 4, vocab_size=128256),
    "134 M parameters, 49k tokens": LlamaShape(576, 1536, 30, 9, 3, vocab_size=49152),
}


def make_model(shape: LlamaShape, dtype: str, device: str) -> LlamaForCausalLM:
    torch.manual_seed(_SEED)
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.hidden_size == 576,  # as SmolLM2-135M does
    )
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).to(device).eval()


def make_rows(samples: int, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    draw = torch.Generator().manual_seed(_SEED)
    lengths = torch.randint(20, 401, (samples,), generator=draw).tolist()
    rows = [torch.randint(vocabulary, (length,), generator=draw).tolist() for length in lengths]
    return rows, [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows]


@torch.inference_mode()
def forward(model: LlamaForCausalLM, rows: list[list[int]], batch_tokens: int) -> None:
    """The bare pass: the same batches through the model, and nothing made of the logits."""
    for batch in plan_batches([len(row) for row in rows], batch_tokens):
        parts = [torch.tensor(rows[i]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).to(model.device)
        masks = [torch.ones_like(part) for part in parts]
        mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True).to(model.device)
        model(input_ids=ids, attention_mask=mask, use_cache=False)


def timed(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def measure(name: str, dtype: str, samples: int, repetitions: int, batch_tokens: int, device: str) -> dict[str, Any]:
    model, (rows, labels) = make_model(SHAPES[name], dtype, device), make_rows(samples, SHAPES[name].vocab_size)
    jobs: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, rows, batch_tokens),
        "losses": lambda: sample_losses(model, rows, labels, batch_tokens=batch_tokens),
    }
    seconds: dict[str, list[float]] = {job: [] for job in jobs}
    for repetition in range(-1, repetitions):  # the first is thrown away
        for job in sorted(jobs, reverse=repetition % 2 == 0):
            taken = timed(jobs[job], device)
            if repetition >= 0:
                seconds[job].append(taken)
    ratios = [losses / bare for losses, bare in zip(seconds["losses"], seconds["forward"], strict=True)]
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype,
        "samples": samples,
        "tokens": sum(map(len, rows)),
        "learnt": sum(label != -100 for row in labels for label in row),
        "seconds": seconds,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "within_bound": statistics.median(ratios) <= BOUND,
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| model | dtype | tokens | forward s | losses s | ratio (lowest to highest) | at most 1.2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        forward_s, losses_s = (statistics.median(result["seconds"][job]) for job in ("forward", "losses"))
        lines.append(
            f"| {result['model']} | {result['dtype']} | {result['tokens']:,} | {forward_s:.2f} | {losses_s:.2f} "
            f"| {result['ratio']:.2f} ({min(result['ratios']):.2f} to {max(result['ratios']):.2f}) "
            f"| {'yes' if result['within_bound'] else '**no**'} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--samples", default=128, show_default=True)
@click.option("--repetitions", default=5, show_default=True)
@click.option("--batch-tokens", default=2048, show_default=True, help="The forward pass holds all of their logits.")
@click.option("--device", default="cpu", show_default=True)
@click.option(
    "--dtype", "dtypes", multiple=True, type=click.Choice(["float32", "bfloat16"]), help="Both, if not given."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(samples: int, repetitions: int, batch_tokens: int, device: str, dtypes: tuple[str, ...], out: Path) -> None:
    about = {"bound": BOUND, "device": device, "batch_tokens": batch_tokens, "machine": machine()}
    runs = []
    for name in SHAPES:
        for dtype in dtypes or ("float32", "bfloat16"):
            click.echo(f"{name}, {dtype}", err=True)
            runs.append(measure(name, dtype, samples, repetitions, batch_tokens, device))
    report = table(runs)
    out.mkdir(parents=True, exist_ok=True)
    results = about | {"runs": runs, "report": report}
    (out / "losses_speed.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    click.echo(report)


if __name__ == "__main__":
    main()
