"""How much memory a merge of models far larger than the machine's takes: Llama-2 shapes through `mergekit-yaml`.

    python benchmarks/merge_memory.py                             # Llama-2-7b whole, then 2 layers of Llama-2-70b
    python benchmarks/merge_memory.py --model 7b --layers 2       # a quick look

The inputs are sparse files (zeros that take no disk), the output is real: 13.5 GB for Llama-2-7b, removed at the end.
Writes OUT/merge_memory.json. What is asserted: the peak of anonymous memory, which mapped files do not count towards,
stays within 2 x largest tensor x (K + 1) + 256 MiB beyond what the same command takes for tiny models.
"""

import json
import math
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import yaml
from synthetic import LLAMA_2, TINY, LlamaShape, write_sparse_checkpoint
from watched import Watched, machine, mergekit_command, run_watched

METHOD = "parameter_selection_resample"
# mergekit 0.1.5 says "number of parameters", but its TensorWriter compares the number with bytes: 200 MB.
SHARD_SIZE = "200M"
_ALLOWANCE_MIB = 256
_MIB = 1 << 20
_SPARE_BYTES = 2 * 10**9
_DEFAULT_LAYERS = {"7b": 32, "70b": 2}


def largest_tensor_mib(shape: LlamaShape) -> float:
    return max(2 * math.prod(dimensions) for dimensions in shape.tensors().values()) / _MIB


def merge(work: Path, shape: LlamaShape, count: int) -> Watched:
    """Write sparse models and merge them by a process of its own; everything is removed."""
    folder = work / "models"
    names = [folder / "base", *(folder / f"model_{index}" for index in range(count))]
    for name in names:
        write_sparse_checkpoint(name, shape)
    recipe = {
        "merge_method": METHOD,
        "base_model": str(names[0]),
        "models": [{"model": str(name)} for name in names[1:]],
        "dtype": "bfloat16",
    }
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = mergekit_command(path, folder / "merged", "--out-shard-size", SHARD_SIZE)
    try:
        return run_watched(command, folder / "log.txt")
    finally:
        shutil.rmtree(folder)


def measure(work: Path, name: str, layers: int, count: int) -> dict[str, Any]:
    """Return what merging `count` models and a base of a Llama-2 shape took, beside the bound."""
    shape = replace(LLAMA_2[name], num_hidden_layers=layers)
    size = 2 * shape.parameters()
    free = shutil.disk_usage(work).free
    if free < size + _SPARE_BYTES:
        raise click.ClickException(
            f"Llama-2-{name} with {layers} layers needs {(size + _SPARE_BYTES) / 1e9:.1f} GB in --work-dir for its "
            f"output; {free / 1e9:.1f} GB are free; use --layers"
        )
    click.echo(f"Llama-2-{name}, {layers} layers, K = {count}: {size / 1e9:.1f} GB a model", err=True)
    start, run = merge(work, TINY, count), merge(work, shape, count)
    bound = 2 * largest_tensor_mib(shape) * (count + 1) + _ALLOWANCE_MIB
    beyond = run.peak_anonymous_mib - start.peak_anonymous_mib
    return {
        "model": f"Llama-2-{name}",
        "layers": layers,
        "of_layers": LLAMA_2[name].num_hidden_layers,
        "parameters": shape.parameters(),
        "models": count,
        "input_gib": size * (count + 1) / 2**30,
        "largest_tensor_mib": largest_tensor_mib(shape),
        "bound_mib": bound,
        "peak_anonymous_beyond_start_mib": beyond,
        "within_bound": beyond <= bound,
        "run": asdict(run),
        "start": asdict(start),
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| model | layers | K | inputs GiB | peak anonymous MiB | beyond start-up | bound | met | wall s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines.append(
            f"| {result['model']} | {result['layers']} of {result['of_layers']} | {result['models']} "
            f"| {result['input_gib']:.1f} | {result['run']['peak_anonymous_mib']:.0f} "
            f"| {result['peak_anonymous_beyond_start_mib']:.0f} | {result['bound_mib']:.0f} "
            f"| {'yes' if result['within_bound'] else '**no**'} | {result['run']['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--model", "names", multiple=True, type=click.Choice(list(LLAMA_2)), help="Shape; both if not given.")
@click.option("--layers", type=click.IntRange(min=1), help="Fewer layers; by default 32 of 7b, 2 of 70b.")
@click.option("--models", "count", default=3, help="Number of sub-models.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where the files go; else temporary.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results")
def main(names: tuple[str, ...], layers: int | None, count: int, work_dir: Path | None, out: Path) -> None:
    about = {"method": METHOD, "dtype": "bfloat16", "out_shard_size": SHARD_SIZE, "machine": machine()}
    if work_dir:
        work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ordermerge-benchmark-", dir=work_dir) as work:
        runs = [measure(Path(work), name, layers or _DEFAULT_LAYERS[name], count) for name in names or LLAMA_2]
    out.mkdir(parents=True, exist_ok=True)
    report = table(runs)
    results = about | {"runs": runs, "report": report}
    (out / "merge_memory.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    click.echo(report)


if __name__ == "__main__":
    main()
