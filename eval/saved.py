"""lm-eval's own result and sample files of a model: written as it writes them, and read back.

OUT/NAME/results_DATE.json          lm-eval's results
OUT/NAME/samples_TASK_DATE.jsonl    lm-eval's samples, one file a task
OUT/NAME/ordermerge.json            our marker, written last: which of these files count, and how they were made
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ordermerge.errors import UserError
from ordermerge.eval.table import Row, result_rows

if TYPE_CHECKING:
    from lm_eval.loggers import EvaluationTracker

MARKER = "ordermerge.json"


def new_tracker(folder: Path) -> "EvaluationTracker":
    """Return lm-eval's tracker, set to write into a folder itself.

    Given a folder, it would add one named after the model's whole path, too long a name for some file systems; given
    a JSON file it writes beside it.

    Args:
        folder: Where the files go.
    """
    from lm_eval.loggers import EvaluationTracker

    return EvaluationTracker(output_path=str(folder / "results.json"))


def save_results(tracker: "EvaluationTracker", results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the results and samples of one model, with lm-eval's own writer.

    Args:
        tracker: The tracker that `simple_evaluate` was given.
        results: What `simple_evaluate` returned; its samples are taken out.
        folder: The tracker's folder.

    Returns:
        The names of the files: "results", and "samples" by task.

    Raises:
        OSError: If a file is missing or not whole afterwards: the writer passes over its errors.
    """
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in samples:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    date = getattr(tracker, "date_id", "")
    written, sample_files = f"results_{date}.json", {task: f"samples_{task}_{date}.jsonl" for task in samples}
    try:
        json.loads((folder / written).read_text(encoding="utf-8"))
        for task, name in sample_files.items():
            with open(folder / name, encoding="utf-8") as file:
                if sum(1 for _ in file) != len(samples[task]):
                    raise ValueError(f"{name} is cut short")
    except (OSError, ValueError) as error:
        raise OSError(f"lm-eval could not write its files to {folder} ({error}); is the disk full?") from None
    return {"results": written, "samples": sample_files}


def load_results(folder: Path) -> dict[str, Any]:
    """Read lm-eval's results file of a scored model.

    Args:
        folder: The model's folder, which holds the marker.

    Raises:
        UserError: If the marker or the file it names is missing or damaged.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return json.loads((folder / marker["results"]).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its scores cannot be read ({error!r}); delete the folder and score again") from None


def load_rows(out: Path, names: Iterable[str] | None = None) -> list[Row]:
    """Read the scores of the models that are done.

    Args:
        out: The folder that was given to `score_models`.
        names: Models in the order wanted; all that are there, by name, if not given. One not yet done is left out.

    Returns:
        The rows of all models, one model after the other.

    Raises:
        UserError: If the files of a model that is done are missing or damaged.
    """
    done = sorted(marker.parent.name for marker in out.glob(f"*/{MARKER}"))
    wanted = done if names is None else [name for name in names if name in done]
    return [row for name in wanted for row in result_rows(load_results(out / name), name)]
