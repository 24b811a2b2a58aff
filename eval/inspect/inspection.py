"""`ordermerge inspect`: whether merging and resampling will matter for models that one has, from their files alone."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch

from ordermerge.eval.inspect.changes import Totals
from ordermerge.eval.inspect.conclusions import conclusions, model_stock_warnings
from ordermerge.eval.inspect.family import Family, open_family
from ordermerge.eval.inspect.stream import inspect_family
from ordermerge.eval.inspect.summary import ROUNDS, Summary, by_layer, summarise
from ordermerge.files import write_json
from ordermerge.provenance import record

_EXACT_SHARE = 0.5  # with more numbers than this that bfloat16 does not hold, values were never rounded to it


def inspect_models(base: str, models: Sequence[str], *, dtype: str | None = None) -> dict[str, Any]:
    """Return what a base model and its sub-models hold: the content of `inspect.json`.

    Args:
        base: Folder, or hub id in the local cache.
        models: The same, of one or more sub-models.
        dtype: What to compare in; if not given, what the sub-models are stored in.

    Returns:
        base, models, dtypes, warnings, conclusions; and the summaries `overall`, by `layers` and by `tensors`.

    Raises:
        UserError: If a model cannot be read, or has nothing in common with the base.
    """
    from rich.console import Console
    from rich.progress import track

    family = open_family(base, models, getattr(torch, dtype) if dtype else None)
    console = Console(stderr=True)
    shown = track(
        inspect_family(family),
        "reading",
        total=len(family.groups),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tensors = {group.name: totals for group, totals in shown}
    names, overall = list(family.names), reduce(add, tensors.values())
    summary = summarise(overall, names)
    by_tensor = {name: summarise(totals, names) for name, totals in tensors.items()}
    return {
        "base": base,
        "models": dict(family.names),
        "dtypes": sorted({str(group.dtype).removeprefix("torch.") for group in family.groups}),
        "warnings": [*family.warnings, *_precision_warnings(family, overall), *model_stock_warnings(by_tensor)],
        "conclusions": conclusions(summary),
        "overall": summary,
        "layers": {layer: summarise(totals, names) for layer, totals in by_layer(tensors).items()},
        "tensors": by_tensor,
        "made_with": record(Path.cwd()),
    }


def write_inspection(found: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the tables as CSV, the heat map, and last `inspect.json`.

    Args:
        found: What `inspect_models` returned.
        out: The folder to write to.

    Returns:
        The files.
    """
    from ordermerge.eval.figures import write_csv
    from ordermerge.eval.inspect.figure import draw_heat_map

    files = draw_heat_map(found, out / "heat_map")
    for kind in ("layers", "tensors"):
        lines = [(name, *_flat(summary).values()) for name, summary in found[kind].items()]
        files.append(out / f"{kind}.csv")
        write_csv(files[-1], [kind.removesuffix("s"), *_flat(found["overall"])], lines)
    files.append(out / "inspect.json")
    write_json(files[-1], found)
    return files


def _flat(summary: Summary) -> dict[str, Any]:
    cosine, angle = summary["cosine"] or {}, summary["angle"] or {}
    return {
        "values": summary["values"],
        **{f"changed_by_{changers}": number for changers, number in enumerate(summary["changed_by"])},
        **{f"still_base_{rounds}": summary["still_base"][rounds] for rounds in ROUNDS},
        **{key: summary["agreement"][key] for key in ("same_direction", "same_direction_by_chance", "with_majority")},
        **{f"cosine_{key}": cosine.get(key) for key in ("mean", "lowest", "highest")},
        **{f"angle_{key}": angle.get(key) for key in ("mean", "lowest", "highest")},
        **{key: summary[key] for key in ("l1_of_sum", "l1_of_mean")},
        **{f"l1_{name}": size for name, size in summary["l1"].items()},
        **{f"relative_norm_{name}": norm for name, norm in summary["relative_norm"].items()},
    }


def _precision_warnings(family: Family, overall: Totals) -> list[str]:
    """Warn of models compared in float32 that were rounded to bfloat16 on one side only."""
    if not overall.probed:
        return []
    fine = list(zip([*family.names, family.base], overall.fine, strict=True))
    coarse = [name for name, number in fine if number == 0]
    exact = [name for name, number in fine if number > _EXACT_SHARE * overall.probed]
    if not (coarse and exact):
        return []
    return [
        f"the values of {', '.join(coarse)} are bfloat16 numbers and those of {', '.join(exact)} are not: compared in "
        f"float32 nothing looks unchanged; `--dtype bfloat16` compares as a recipe with `dtype: bfloat16` does"
    ]
