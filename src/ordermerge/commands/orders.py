"""`ordermerge orders`: the orders of an experiment before training, and how balanced they are."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ordermerge.config.changes import described
from ordermerge.config.load import load_experiment
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError, counted, percent
from ordermerge.train.balance import balance, correlations, mean_positions, positions
from ordermerge.train.orders import STRATEGIES, epoch_fingerprints
from ordermerge.train.sft import check_training
from ordermerge.train.tokenized import Prepared, preview_orders

BINS = 8
MOST_COLUMNS = 12


def preview(path: Path, *, changes: Sequence[str] = (), processes: int = 1) -> dict[str, Any]:
    """Return the numbers of an experiment's orders, exactly as training will lay them.

    Args:
        path: The experiment file.
        changes: Keys to set otherwise than the file does, `KEY=VALUE` each.
        processes: How many processes will train one order.

    Raises:
        UserError: For problems in the parts of the experiment that the orders depend on.
    """
    experiment = load_experiment(path, changes)
    if problems := check_training(experiment):
        raise UserError(problems, where=described(path, changes))
    return summarise(experiment, preview_orders(experiment, processes=processes))


def summarise(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    """Return the numbers of a preview; those of `balance` compare the strategies, and take two orders.

    Args:
        experiment: The experiment.
        prepared: The samples and the orders over them.
    """
    section, (count, epochs, samples) = experiment.orders, prepared.orders.shape
    places = positions(prepared.orders[:, 0])
    bins = min(BINS, samples)
    compared = {
        name: positions(strategy(samples, 1, count, section.seed, prepared.batch)[:, 0])
        for name, strategy in STRATEGIES.items()
    }
    return {
        "name": experiment.name,
        "strategy": section.strategy,
        "seed": section.seed,
        "count": count,
        "epochs": epochs,
        "unit": section.unit,
        "samples": prepared.samples,
        "places": samples,
        "dropped": prepared.dropped,
        "truncated": prepared.truncated,
        "batch_size": prepared.batch,
        "branch": prepared.branch or None,
        "epoch_fingerprints": [epoch_fingerprints(order) for order in prepared.orders],
        "first_rows": prepared.sample_ids[prepared.orders[:, :, :3]].tolist(),
        "correlations": correlations(places).tolist(),
        "bin_rows": [int(part[0]) for part in prepared.sample_ids.tensor_split(bins)],
        "mean_positions": mean_positions(places, bins).tolist(),
        "balance": {name: asdict(balance(found)) for name, found in {**compared, section.strategy: places}.items()}
        if count > 1
        else {},
    }


def print_summary(summary: dict[str, Any]) -> None:
    """Print what `preview` returned.

    Args:
        summary: The numbers.
    """
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:  # rich takes a pipe to be 80 columns wide
        console.width = 200
    count, samples = summary["count"], summary["samples"]
    packed = f" in {counted(summary['places'], 'pack')}" if summary["unit"] == "pack" else ""
    lines = [
        f"{summary['name']}: {counted(count, 'order')} of {counted(samples, 'sample')}{packed}, "
        f"{counted(summary['epochs'], 'epoch')}, strategy {summary['strategy']}, seed "
        f"{summary['seed']}, {summary['batch_size']} {summary['unit']}s per optimizer step",
        f"As training will use them: the data is prepared ({summary['dropped']} samples dropped, "
        f"{summary['truncated']} cut to max_length), and the fingerprints are those that order.json will hold.",
    ]
    if packed:
        lines.append("Packs are what moves: where rows are named below, these are numbers of packs.")
    if summary["branch"]:
        lines.append(
            f"The first {summary['branch']} optimizer steps are the trunk's, common to all orders; the others are each "
            "order's tail."
        )
    tables = [_fingerprint_table(summary), _heat_map(summary)]
    if 1 < count <= MOST_COLUMNS:
        tables.append(_correlation_table(summary))
    if count > 1:
        tables.append(_balance_table(summary))
    else:
        lines.append("Correlation and balance compare orders, and `orders.count` is 1.")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    for title, table in tables:
        console.print(Text(f"\n{title}"), soft_wrap=True)
        console.print(table)


def _fingerprint_table(summary: dict[str, Any]) -> tuple[str, Table]:
    rows = (
        [f"{order}", f"{epoch}", ", ".join(map(str, first)) + ", ...", fingerprint]
        for order, prints in enumerate(summary["epoch_fingerprints"])
        for epoch, (fingerprint, first) in enumerate(zip(prints, summary["first_rows"][order], strict=True))
    )
    title = "Epochs: the first rows of the data that are visited, and the fingerprint of all"
    return title, _table(["order", "epoch", "first rows", "fingerprint"], rows)


def _heat_map(summary: dict[str, Any]) -> tuple[str, Table]:
    """Return, for each order, when each eighth of the data is visited: a block of the file may well be of one kind."""
    cells = torch.tensor(summary["mean_positions"])
    per_bin = summary["places"] / cells.shape[1]
    chance = math.sqrt((1 - 1 / cells.shape[1]) / (12 * per_bin))
    title = (
        "When is each part of the data visited? Mean first-epoch position, 0 (first) to 1 (last); of a random order "
        f"0.50 ± {chance:.2f}"
    )
    names = [*(f"order {order}" for order in range(len(cells))), "mean"]
    values = torch.cat([cells, cells.mean(dim=0, keepdim=True)])
    rows = (
        [name, *(_shaded(value, value) for value in line)] for name, line in zip(names, values.tolist(), strict=True)
    )
    return title, _table(["from row", *map(str, summary["bin_rows"])], rows)


def _correlation_table(summary: dict[str, Any]) -> tuple[str, Table]:
    sd = 1 / math.sqrt(summary["places"] - 1)
    title = f"Rank correlation (Spearman) of the first-epoch positions; of independent orders 0 ± {sd:.3f}"
    rows = (
        [f"order {order}", *(_shaded(rho, (rho + 1) / 2) for rho in line)]
        for order, line in enumerate(summary["correlations"])
    )
    return title, _table(["", *(f"order {order}" for order in range(summary["count"]))], rows)


def _balance_table(summary: dict[str, Any]) -> tuple[str, Table]:
    part = f"1/{summary['count']}"
    header = ["strategy", "sd of mean", f"every {part} once", f"{part}s missed", "correlation"]
    rows = (
        [
            f"{name} ←" if name == summary["strategy"] else name,
            f"{found['spread']:.3f}",
            percent(found["once_each"], 1),
            percent(found["never_met"], 1),
            f"{found['correlation'][0]:.2f} to {found['correlation'][1]:.2f}",
        ]
        for name, found in summary["balance"].items()
    )
    title = (
        f"Balance of a sample's {summary['count']} first-epoch positions: how much their mean differs between samples, "
        f"how many samples visit every {part} of the epoch once, how many {part}s a sample misses (←: chosen)"
    )
    return title, _table(header, rows)


def _table(header: list[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def _shaded(value: float, share: float) -> Text:
    """Return a number on a background from blue (share 0) over white to red (share 1); in a pipe there is none."""
    pale = round(255 * (1 - abs(2 * share - 1)))
    red, blue = (255, pale) if share > 0.5 else (pale, 255)
    return Text(f"{value:.2f}", style=f"black on rgb({red},{pale},{blue})")
