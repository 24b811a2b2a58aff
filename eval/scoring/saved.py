"""lm-eval's own result and sample files of a model: written as it writes them, and read back, whoever wrote them.

OUT/NAME/results_DATE.json          lm-eval's results
OUT/NAME/samples_TASK_DATE.jsonl    lm-eval's samples, one file a task
OUT/NAME/ordermerge_TASK.json       our marker of each task or group asked for, written last: which of these files
                                    hold its scores, and how they were made
"""

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired
from urllib.parse import quote

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from ordermerge.eval.scoring.table import Row, result_rows
from ordermerge.files import fingerprint
from ordermerge.yaml_json import read_json

if TYPE_CHECKING:
    from lm_eval.loggers import EvaluationTracker

MARKERS = "ordermerge_*.json"
_RESULTS = re.compile(
    r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json$"
)  # lm-eval's "results_DATE.json", or its user's NAME_DATE.json
_MOST_LETTERS = 120


class RunConfig(TypedDict, total=False):
    """What is read again of the settings in a results file."""

    limit: float | None


@with_config(ConfigDict(extra="allow"))
class TaskConfig(TypedDict, total=False):
    """What is read again of a task's configuration in a results file."""

    output_type: str | None
    dataset_path: str | None
    dataset_name: str | None
    test_split: str | None
    validation_split: str | None
    num_fewshot: int | None


# lm-eval's results file, as far as it is read again. (A class could not have a key `n-shot`.)
ResultsFile = TypedDict(
    "ResultsFile",
    {
        "results": dict[str, dict[str, Any]],
        "config": NotRequired[RunConfig],
        "higher_is_better": NotRequired[dict[str, dict[str, bool | None] | None]],
        "group_subtasks": NotRequired[dict[str, list[str]]],
        "configs": NotRequired[dict[str, TaskConfig]],
        "versions": NotRequired[dict[str, Any]],
        "n-shot": NotRequired[dict[str, Any]],
    },
)
with_config(ConfigDict(extra="allow"))(ResultsFile)


@with_config(ConfigDict(extra="allow"))
class MarkerFile(TypedDict):
    """What is read again of our marker."""

    results: str
    samples: dict[str, str]
    tasks: list[str]


@dataclass(frozen=True)
class SavedScores:
    """What is saved of one model.

    Attributes:
        rows: Its scores.
        results: File of the results of each task and group.
        samples: File of the samples of each task.
        subtasks: The tasks that each group comes down to.
        conditions: For each task what scores depend on beside the documents and the model, by its name in messages.
        choices: The tasks of multiple choice.
    """

    rows: list[Row]
    results: dict[str, Path]
    samples: dict[str, Path]
    subtasks: dict[str, list[str]]
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    choices: set[str] = field(default_factory=set)

    @property
    def place(self) -> frozenset[Path]:
        """The files of its results, which tell whether two are the same."""
        return frozenset(path.resolve() for path in self.results.values())

    def add(self, content: ResultsFile, file: Path, tasks: Iterable[str], samples: Mapping[str, Path]) -> None:
        """Add the scores of tasks that are not there yet.

        Args:
            content: One of lm-eval's results.
            file: The file it stands in; its folder's name is the model's name in the rows.
            tasks: The tasks and groups to take from it.
            samples: File of the samples of each task.
        """
        new = [task for task in tasks if task not in self.results]
        groups = content.get("group_subtasks", {})
        scores = {task: content["results"][task] for task in new if task in content["results"]}
        self.rows.extend(result_rows({**content, "results": scores}, file.parent.name))
        self.results.update(dict.fromkeys(new, file))
        self.samples.update({task: samples[task] for task in new if task in samples})
        self.subtasks.update({task: _leaves(task, groups) for task in new if task in groups})
        self.conditions.update({task: _conditions(content, task) for task in new})
        configs = content.get("configs", {})
        self.choices.update(task for task in new if configs.get(task, {}).get("output_type") == "multiple_choice")


def marker_name(task: str) -> str:
    """Return the file name of the marker of a task, group, tag or pattern.

    Args:
        task: As it was asked for.
    """
    return MARKERS.replace("*", _file_part(task))


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
    parts = {task: _file_part(task) for task in samples}  # lm-eval would take a slash for a folder
    with _told_by(tracker) as told:
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, part in parts.items():
            tracker.save_results_samples(task_name=part, samples=samples[task])
    date = getattr(tracker, "date_id", "")
    written = f"results_{date}.json"
    sample_files = {task: f"samples_{part}_{date}.jsonl" for task, part in parts.items()}
    try:
        json.loads((folder / written).read_text(encoding="utf-8"))
        for task, name in sample_files.items():
            with open(folder / name, encoding="utf-8") as file:
                if sum(1 for _ in file) != len(samples[task]):
                    raise ValueError(f"{name} is cut short")
    except (OSError, ValueError) as error:
        reason = told[0] if told else error
        raise OSError(f"lm-eval could not write its files to {folder} ({reason})") from None
    return {"results": written, "samples": sample_files}


@contextmanager
def _told_by(tracker: Any) -> Iterator[list[BaseException]]:
    """Yield a list that fills with the errors that a tracker of lm-eval's passes over with a warning."""
    told: list[BaseException] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.extend(e for e in [sys.exception()] if e)  # type: ignore[method-assign]
    logger = logging.getLogger(type(tracker).__module__)
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)


def load_scores(folder: Path, tasks: Iterable[str] | None = None) -> SavedScores:
    """Read what is saved of a model.

    Args:
        folder: The model's folder, which holds the markers.
        tasks: What was asked for, in the order wanted; one not yet done is left out. By default all, by name.

    Raises:
        UserError: If a marker or a results file that it names is missing or damaged.
    """
    done = set(folder.glob(MARKERS))
    asked = sorted(done) if tasks is None else [folder / marker_name(task) for task in tasks]
    saved = SavedScores([], {}, {}, {})
    contents: dict[str, ResultsFile] = {}
    for path in (path for path in asked if path in done):
        marker: MarkerFile = read_json(path, MarkerFile, remedy=_remedy(folder))
        name = marker["results"]
        if name not in contents:
            contents[name] = read_results(folder / name)
        samples = {task: folder / file for task, file in marker["samples"].items()}
        saved.add(contents[name], folder / name, marker["tasks"], samples)
    return saved


def read_results(file: Path) -> "ResultsFile":
    """Read one of lm-eval's results files.

    Args:
        file: The file.

    Raises:
        UserError: If it is missing or damaged.
    """
    found: ResultsFile = read_json(file, ResultsFile, remedy=_remedy(file.parent))
    return found


def _remedy(folder: Path) -> str:
    return f"delete {folder} and score again"


def load_lm_eval(place: Path) -> SavedScores:
    """Read what `lm_eval --log_samples --output_path` left of a model.

    Args:
        place: The folder that holds the files, where each task is read from its newest results; or one results file.

    Raises:
        UserError: If a results file is damaged.
    """
    saved = SavedScores([], {}, {}, {})
    for file in [place] if place.is_file() else lm_eval_results(place):
        content: ResultsFile = read_json(file, ResultsFile, remedy="score again with lm_eval")
        date = _RESULTS.search(file.name)
        names = {task: file.with_name(f"samples_{task}_{date and date[1]}.jsonl") for task in content["results"]}
        saved.add(content, file, content["results"], {task: path for task, path in names.items() if path.is_file()})
    return saved


def lm_eval_results(folder: Path) -> list[Path]:
    """Return lm-eval's results files in a folder, newest first.

    Args:
        folder: The folder.
    """
    dates = {file: found[1] for file in folder.glob("*.json") if (found := _RESULTS.search(file.name))}
    return sorted(dates, key=lambda file: dates[file], reverse=True)


def load_rows(out: Path, names: Iterable[str] | None = None, tasks: Iterable[str] | None = None) -> list[Row]:
    """Read the scores of the models that are done.

    Args:
        out: The folder that was given to `score_models`.
        names: Models in the order wanted; all that are there, by name, if not given. One not yet done is left out.
        tasks: As in `load_scores`.

    Returns:
        The rows of all models, one model after the other.

    Raises:
        UserError: If the files of a model that is done are missing or damaged.
    """
    wanted = sorted({path.parent.name for path in out.glob(f"*/{MARKERS}")}) if names is None else names
    asked = None if tasks is None else list(tasks)
    return [row for name in wanted for row in load_scores(out / name, asked).rows]


def _conditions(content: ResultsFile, task: str) -> dict[str, Any]:
    return {
        "versions of the task": content.get("versions", {}).get(task),
        "numbers of few-shot examples": content.get("n-shot", {}).get(task),
        "system instructions": content.get("system_instruction"),
        "chat templates": content.get("chat_template_sha"),
    }


def _file_part(task: str) -> str:
    """Return a task's name as a part of a file's name: no slash, no control character, not too long."""
    part = quote(task, safe=" ", errors="backslashreplace")
    return part if len(part) <= _MOST_LETTERS else f"{part[:_MOST_LETTERS]}-{fingerprint(part)[:16]}"


def _leaves(task: str, groups: Mapping[str, list[str]]) -> list[str]:
    """Return the tasks that a group comes down to; of a task itself."""
    if task not in groups:
        return [task]
    return list(dict.fromkeys(leaf for child in groups[task] for leaf in _leaves(child, groups)))
