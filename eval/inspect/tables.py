"""Tables that `ordermerge inspect` prints: layers and models, warnings, conclusions."""

import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any

from ordermerge.eval.inspect.summary import ROUNDS

_MATRIX_MODELS = 6  # so many cosines stand beside each other in 80 columns


def print_report(found: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print tables of the layers and of the models, the histogram, warnings and conclusions.

    Args:
        found: What `inspect.json` holds.
        file: Where to print; standard output if not given.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file or sys.stdout, highlight=False, soft_wrap=False)
    for header, lines in (_layer_table(found), _model_table(found), _update_table(found)):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, title in enumerate(header):
            table.add_column(Text(title), overflow="fold", justify="right" if index else "left")
        for cells in lines:
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
    for line in [_histogram_line(found["overall"]), *(f"warning: {text}" for text in found["warnings"])]:
        console.print(Text(line))
    console.print()
    for line in found["conclusions"]:
        console.print(Text(line))


def short_names(layers: Iterable[str]) -> dict[str, str]:
    """Return the last parts of layers' names ("layers.3", "norm"), as long as they differ.

    Args:
        layers: Their whole names.
    """
    parts = {layer: layer.split(".") for layer in layers}
    short = {layer: ".".join(own[-2:] if own[-1].isdigit() else own[-1:]) for layer, own in parts.items()}
    known = list(short.values())
    return {layer: name if known.count(name) == 1 else layer for layer, name in short.items()}


def percent(share: float | None) -> str:
    """Return a share in per cent, with one digit; what is not quite 0 or 100 does not look like it.

    Args:
        share: 0 to 1; None gives "-".
    """
    if share is None:
        return "-"
    if 0 < share < 0.0005:
        return "<0.1"
    return ">99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}"


def _layer_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["", "values", "still base %\nn=0", "\nn=1", "\nn=3", "\nfull", "same\nway %", "cosine", "norm /\nbase %"]
    short = short_names(found["layers"])
    rows = {"all": found["overall"], **{short[layer]: summary for layer, summary in found["layers"].items()}}
    return header, [
        [
            name,
            _amount(row["values"]),
            *(percent(row["still_base"][rounds]) for rounds in ROUNDS),
            percent(row["agreement"]["same_direction"]),
            decimal(row["cosine"] and row["cosine"]["mean"]),
            _mean_percent(row["relative_norm"].values()),
        ]
        for name, row in rows.items()
    ]


def _model_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    overall, names = found["overall"], list(found["models"])
    header = ["model", "unchanged %", "norm / base %"]
    matrix = (overall["cosine"] or {}).get("matrix") if len(names) <= _MATRIX_MODELS else None
    if matrix:
        header += [f"cosine\nto {number}" if number == 1 else f"\n{number}" for number in range(1, len(names) + 1)]
    lines = []
    for index, name in enumerate(names):
        cells = [percent(overall["unchanged_by_model"][name]), percent(overall["relative_norm"][name])]
        lines.append([f"{index + 1} {name}", *cells, *(decimal(value) for value in (matrix[index] if matrix else ()))])
    return header, lines


def _update_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the L1 norms of the task vectors, and for a few models the angles between them."""
    overall, names = found["overall"], list(found["models"])
    matrix = (overall["angle"] or {}).get("matrix") if len(names) <= _MATRIX_MODELS else None
    header = ["update", "L1 norm"]
    if matrix:
        header += [f"degrees\nto {number}" if number == 1 else f"\n{number}" for number in range(1, len(names) + 1)]
    lines = []
    for index, name in enumerate(names):
        angles = ["-" if value is None else f"{value:.1f}" for value in (matrix[index] if matrix else ())]
        lines.append([f"{index + 1} {name}", _size(overall["l1"][name]), *angles])
    for name in ("sum", "mean") if len(names) > 1 else ():
        lines.append([f"their {name}", _size(overall[f"l1_of_{name}"]), *([""] * (len(header) - 2))])
    return header, lines


def _size(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _histogram_line(overall: Mapping[str, Any]) -> str:
    shares = [percent(number / overall["values"]) for number in overall["changed_by"]]
    each = ", ".join(f"by {changers}: {share} %" for changers, share in enumerate(shares))
    return f"Values changed {each} of the sub-models."


def decimal(value: float | None) -> str:
    """Return a number with two decimals, "-" for None; never "-0.00".

    Args:
        value: Any number.
    """
    return "-" if value is None else f"{round(value, 2) + 0:.2f}"  # + 0 makes -0.0 0.0


def _mean_percent(shares: Iterable[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return percent(sum(known) / len(known)) if known else "-"


def _amount(values: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if values >= size:
            return f"{values / size:.3g} {letter}"
    return str(values)
