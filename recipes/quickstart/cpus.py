"""The quickstart as other kinds of CPU compute it: its scores and the time of its trainings, in results/cpus.md.

    python recipes/quickstart/cpus.py [--runs-dir runs]

Needs a CPU with AVX-512 and its bfloat16 instructions, which can do without them: oneDNN, which multiplies matrices, is
limited, or switched off as PyTorch does itself on a CPU with AVX2 only, and so are PyTorch's own loops. What is
finished is kept. One thread.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ordermerge.commands.report import report_numbers
from ordermerge.run_directory import open_run, order_folder, order_record

FOLDER = Path(__file__).parent
MAIN = "from ordermerge.cli import main; main()"
KINDS = {  # the environment, and what is run in it
    "AVX-512, bfloat16": ({}, MAIN),
    "AVX-512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, MAIN),
    "AVX2": (
        {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
        f"import torch; torch.backends.mkldnn.set_flags(False); {MAIN}",
    ),
}


def run(kind: str, runs_dir: Path) -> Path:
    """Run the quickstart as one kind of CPU does, and return its run directory."""
    environment, code = KINDS[kind]
    name = f"cpus_{kind.lower().replace(', ', '_').replace('-', '')}"
    command = ["run", str(FOLDER / "experiment.yml"), "--runs-dir", str(runs_dir), "--set", f"name={name}"]
    variables = os.environ | environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *command], env=variables, check=True)
    return runs_dir / name


def column(run_directory: Path) -> dict[str, str]:
    """Return what the table says of one kind of CPU: each model's score, and the time of one order's training."""
    scores = {row["model"]: f"{row['value']:.3f}" for row in report_numbers(run_directory)["scores"]}
    folders = (order_folder(run_directory, order) for order in range(open_run(run_directory).orders.count))
    seconds = median(record["seconds"] for folder in folders if (record := order_record(folder)))
    return scores | {"one training": f"{seconds:.0f} s"}


def table(columns: Sequence[dict[str, str]]) -> list[str]:
    """Return the lines of the table, one row a model."""
    lines = [f"| | {' | '.join(KINDS)} |", f"|---|{'--:|' * len(KINDS)}"]
    return lines + [f"| {row} | {' | '.join(of[row] for of in columns)} |" for row in columns[0]]


def main() -> None:
    """Read the command line, run what is not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    runs_dir = parser.parse_args().runs_dir
    lines = table([column(run(kind, runs_dir)) for kind in KINDS])
    (FOLDER / "results" / "cpus.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
