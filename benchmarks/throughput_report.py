"""The table, the targets and the picture of `merge_throughput.json`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

FLOOR_LIMITS = {"selection": 1.6, "resample_1": 2.5, "full": 2.5}
LINEAR_LIMITS = {"selection": 0.05, "resample_1": 0.08, "full": 0.08}
EARLIER_LIMIT = 1 / 3
COMMAND_LIMITS = {"selection": 0.65, "resample_1": 0.75, "full": 0.75}
WEIGHTS_LIMIT = 1.2
SIZE_LIMIT = 1.2
DTYPE_LIMIT = 1.1
FIT_LIMIT = 0.15
_OURS, _THEIRS, _START = "#D55E00", "#0072B2", "#BBBBBB"  # told apart without colour vision
_METHODS = ("linear", "task_arithmetic", "dare_ties", "ties")


@dataclass(frozen=True)
class Ratio:
    """The middle and the extremes of the ratios of paired repetitions."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Compare the repetitions of one number; a slow method has fewer of them."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=False)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def write_report(results: dict[str, Any], out: Path) -> str:
    """Write the table and the picture of whatever parts there are, and return the table."""
    sections = {"kernel": _kernel_table, "command": _command_table, "merge": _merge_table, "scaling": _scaling_table}
    lines = ["# Merge throughput", "", *_target_table(results)]
    for name, section in sections.items():
        if name in results:
            lines += ["", *section(results[name]), "", _conditions(results[name])]
    report = "\n".join(lines) + "\n"
    (out / "merge_throughput.md").write_text(report, encoding="utf-8")
    _draw(results, out)
    return report


def net_seconds(part: dict[str, Any], name: str) -> list[float]:
    """Return each repetition's wall time less what the same command takes on a tiny model."""
    start = median(run["seconds"] for run in part["runs"][f"{name}, start"])
    return [run["seconds"] - start for run in part["runs"][f"{name}, whole"]]


def _floor(part: dict[str, Any], name: str) -> str:
    """Return the floor that reads as many inputs as a method."""
    return "floor_with_base" if part["inputs_read"][name] > part["models"] else "floor"


def per_parameter(part: dict[str, Any], case: str, setting: str) -> list[float]:
    """Return nanoseconds per parameter of each repetition of a scaling setting."""
    parameters = part["settings"][setting]["parameters"]
    return [seconds / parameters * 1e9 for seconds in part["seconds"][f"{case}, {setting}"]]


def scaling_cases(part: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.split(",")[0] for name in part["seconds"]))


def _target_table(results: dict[str, Any]) -> list[str]:
    lines = ["| target | measured | met |", "|---|---|---|"]
    for text, measured, limit in _targets(results):
        value = measured.middle if isinstance(measured, Ratio) else measured
        shown = str(measured) if isinstance(measured, Ratio) else f"{measured:.2f}"
        lines.append(f"| {text} <= {limit:.2f} | {shown} | {'yes' if value <= limit else '**no**'} |")
    return lines


def _targets(results: dict[str, Any]) -> Iterator[tuple[str, Ratio | float, float]]:
    if kernel := results.get("kernel"):
        seconds = kernel["seconds"]
        for name in (name for name in FLOOR_LIMITS if name in seconds):
            yield f"kernel: {name} / floor", paired(seconds[name], seconds[_floor(kernel, name)]), FLOOR_LIMITS[name]
            yield f"kernel: {name} / linear", paired(seconds[name], seconds["linear"]), LINEAR_LIMITS[name]
            if (earlier := f"{name}_earlier") in seconds:
                yield f"kernel: {name} / {earlier}", paired(seconds[name], seconds[earlier]), EARLIER_LIMIT
        for name in seconds:
            if name.endswith("_weights") and (equal := name.split("_")[0]) in seconds:
                yield f"kernel: {name} / {equal}", paired(seconds[name], seconds[equal]), WEIGHTS_LIMIT
    if command := results.get("command"):
        for name, limit in COMMAND_LIMITS.items():
            if f"{name}, whole" in command["runs"]:
                ratio = paired(net_seconds(command, name), net_seconds(command, "linear"))
                yield f"command, net of start-up: {name} / linear", ratio, limit
    if merge := results.get("merge"):
        for name, limit in COMMAND_LIMITS.items():
            if name in merge["seconds"]:
                ratio = paired(merge["seconds"][name], merge["seconds"]["linear"])
                yield f"merge, in one process: {name} / linear", ratio, limit
    if scaling := results.get("scaling"):
        for case in scaling_cases(scaling):
            if case not in _METHODS:
                yield from _scaling_targets(scaling, case)


def _scaling_targets(part: dict[str, Any], case: str) -> Iterator[tuple[str, Ratio | float, float]]:
    settings = part["settings"]
    costs = {name: median(per_parameter(part, case, name)) for name in settings}
    for kind in ("size", "matrix"):
        sizes = [cost for name, cost in costs.items() if name.startswith(f"{kind} ")]
        yield f"scaling: {case}, ns per parameter, dearest {kind} / cheapest", max(sizes) / min(sizes), SIZE_LIMIT
    models, cost = np.array([(settings[name]["models"], costs[name]) for name in costs if name.startswith("models ")]).T
    line = np.polyval(np.polyfit(models, cost, 1, w=1 / cost), models)
    worst = float(np.abs(line / cost - 1).max())
    yield f"scaling: {case}, K = 2 to 16, largest deviation from a + b K", worst, FIT_LIMIT
    for dtype in ("float16", "float32"):
        times = [
            [seconds / settings[name]["bytes_per_value"] for seconds in per_parameter(part, case, name)]
            for name in (f"dtype {dtype}", "dtype bfloat16")
        ]
        yield f"scaling: {case}, time per byte, {dtype} / bfloat16", paired(*times), DTYPE_LIMIT


def _kernel_table(part: dict[str, Any]) -> list[str]:
    lines = [
        "## Kernel: the method alone, on tensors in memory",
        "",
        "| method | ns per parameter | inputs read | GB/s read | / linear | / floor | repetitions |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seconds in part["seconds"].items():
        cost = median(seconds) / part["parameters"] * 1e9
        inputs = part["inputs_read"][name]
        ratios = [paired(seconds, part["seconds"][other]) for other in ("linear", _floor(part, name))]
        lines.append(
            f"| {name} | {cost:.2f} | {inputs} | {inputs * part['bytes_per_value'] / cost:.1f} "
            f"| {ratios[0]} | {ratios[1]} | {len(seconds)} |"
        )
    return lines


def _command_table(part: dict[str, Any]) -> list[str]:
    lines = [
        "## Command: the whole `mergekit-yaml` process, files in memory",
        "",
        "| method | wall s | start-up s | net s | net / linear | net / floor | processor s | peak anonymous MiB "
        "| peak total MiB | repetitions |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(name.split(",")[0] for name in part["runs"]):
        runs, start = part["runs"][f"{name}, whole"], part["runs"][f"{name}, start"]
        wall, begin, processor, anonymous, total = (
            median(run[field] for run in found)
            for found, field in (
                (runs, "seconds"),
                (start, "seconds"),
                (runs, "processor_seconds"),
                (runs, "peak_anonymous_mib"),
                (runs, "peak_total_mib"),
            )
        )
        net = net_seconds(part, name)
        ratios = [paired(net, net_seconds(part, other)) for other in ("linear", _floor(part, name))]
        lines.append(
            f"| {name} | {wall:.2f} | {begin:.2f} | {median(net):.2f} | {ratios[0]} | {ratios[1]} "
            f"| {processor:.1f} | {anonymous:.0f} | {total:.0f} | {len(runs)} |"
        )
    return lines


def _merge_table(part: dict[str, Any]) -> list[str]:
    lines = [
        "## Merge: from files to files in one process that has started up, files in memory",
        "",
        "| method | seconds | / linear | / floor | repetitions |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in part["seconds"].items():
        ratios = [paired(seconds, part["seconds"][other]) for other in ("linear", _floor(part, name))]
        lines.append(f"| {name} | {median(seconds):.2f} | {ratios[0]} | {ratios[1]} | {len(seconds)} |")
    return lines


def _scaling_table(part: dict[str, Any]) -> list[str]:
    cases = scaling_cases(part)
    lines = [
        "## Scaling: kernels in memory, median ns per parameter (per byte of a value)",
        "",
        f"| setting | parameters | models | {' | '.join(cases)} |",
        f"|---|---|---|{'---|' * len(cases)}",
    ]
    for name, setting in part["settings"].items():
        costs = [median(per_parameter(part, case, name)) for case in cases]
        shown = " | ".join(f"{cost:.2f} ({cost / setting['bytes_per_value']:.2f})" for cost in costs)
        lines.append(f"| {name} | {setting['parameters'] / 1e6:.1f} M | {setting['models']} | {shown} |")
    return lines


def _conditions(part: dict[str, Any]) -> str:
    machine = part["machine"]
    size = f"{part['parameters'] / 1e6:.1f} M parameters x {part['models']}" if "parameters" in part else "Sizes above"
    files = f", files on {part['file_system']}" if "file_system" in part else ""
    commit, _, dirty = (machine["git_commit"] or "unknown").partition("-")
    return (
        f"{size}, {part['dtype']}{files}. {machine['platform']}, {machine['cpus']} CPUs ({machine['cpu_capability']}), "
        f"{machine['threads']} threads, load {machine['load_average_at_start']:.1f} at the start; mergekit "
        f"{machine['versions']['mergekit']}, torch {machine['versions']['torch']}, commit {commit[:12]}"
        f"{' with changes' if dirty else ''}. Ratios: median of paired repetitions (lowest to highest). A floor "
        "reads every input once (the base too, where the method does) and writes the output once."
    )


def _draw(results: dict[str, Any], out: Path) -> None:
    panels = {"kernel": _draw_kernel, "command": _draw_command, "scaling": _draw_scaling}
    drawn = [name for name in panels if name in results]
    if not drawn:
        return
    plt.rcParams.update({"font.size": 11, "svg.hashsalt": "ordermerge"})
    figure, axes = plt.subplots(1, len(drawn), figsize=(5.5 * len(drawn), 4.5), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], drawn, strict=True):
        panels[name](axis, results[name])
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "merge_throughput.png", dpi=150)
    figure.savefig(out / "merge_throughput.svg", metadata={"Date": None})
    plt.close(figure)


def _colour(name: str) -> str:
    return _THEIRS if name in _METHODS else _START if name.startswith("floor") else _OURS


def _draw_kernel(axis: Any, part: dict[str, Any]) -> None:
    names = list(part["seconds"])
    costs = [median(part["seconds"][name]) / part["parameters"] * 1e9 for name in names]
    bars = axis.barh(names, costs, color=[_colour(name) for name in names])
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set(xscale="log", xlabel="ns per parameter (logarithmic)", title="Method alone")
    axis.invert_yaxis()
    axis.margins(x=0.15)


def _draw_command(axis: Any, part: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name.split(",")[0] for name in part["runs"]))
    start = [median(run["seconds"] for run in part["runs"][f"{name}, start"]) for name in names]
    net = [median(net_seconds(part, name)) for name in names]
    axis.barh(names, start, color="white", edgecolor="black", hatch="//", label="start-up")
    bars = axis.barh(names, net, left=start, color=[_colour(name) for name in names])
    axis.bar_label(bars, labels=[f"{value:.1f}" for value in net], padding=3)
    axis.set(xlabel="seconds (labels: net of start-up)", title="Whole mergekit-yaml command")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.legend(frameon=False)


def _draw_scaling(axis: Any, part: dict[str, Any]) -> None:
    settings = [name for name in part["settings"] if name.startswith("models ")]
    models = [part["settings"][name]["models"] for name in settings]
    for case, marker, colour in zip(scaling_cases(part), "^os", (_THEIRS, _OURS, "black"), strict=False):
        axis.plot(
            models,
            [median(per_parameter(part, case, name)) for name in settings],
            marker=marker,
            color=colour,
            label=case,
        )
    axis.set(xlabel="sub-models K", ylabel="ns per parameter", title="Cost by number of sub-models", xticks=models)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
