"""Model cards of merges: the draw of our methods, and the scores as the hub shows them."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registered_methods

from ordermerge.commands.current import Current
from ordermerge.config.schema import Experiment
from ordermerge.eval.scoring.saved import SavedScores, load_scores, read_results
from ordermerge.eval.scoring.table import NO_FILTER, Row, markdown_table
from ordermerge.merge_methods.parameter_selection import NAMES, PAPER
from ordermerge.run_directory import CHECKPOINTS, evaluation_folder, merge_folder, open_run

CARD = "README.md"
_RESULTS = "<!-- results: rewritten by `ordermerge card` -->"
_BY_NAME = (
    "### By tensor name\n\nMerged by `ordermerge merge --by-name`: each tensor with those of the same name in "
    "the other models. `mergekit-yaml` would merge only what its table of the architecture names."
)
_LOADERS = ("json", "csv", "parquet", "text")  # `dataset_path`s that name a file format, not a dataset


def complete_card(merged: Path, config: MergeConfiguration, *, by_name: bool = False) -> None:
    """Add to mergekit's model card how the values were drawn, if one of our methods drew them, and what stock lacks.

    A local model is named by the end of its path: where it lies on somebody's disk is nobody's business.

    Args:
        merged: The merged model.
        config: What it was merged by.
        by_name: Whether it was merged by tensor name.
    """
    file = merged / CARD
    if file.exists():
        file.write_text(_without_places(file.read_text(encoding="utf-8"), config), encoding="utf-8")
    if by_name and file.exists():
        card = ModelCard.load(file)
        card.text = f"{card.text.rstrip()}\n\n{_BY_NAME}\n"
        card.save(file)
    method = next(method for method in registered_methods() if method.spec.name == config.merge_method)
    if method.spec.name not in NAMES or not file.exists():
        return
    settings = {p.name: _setting(config, p.name, p.default) for p in method.spec.shared_parameters}
    lines = [
        "### Draw",
        "",
        f"Every value is, bit for bit, that of one of the sub-models: {method.spec.pretty_name}, from Ju et al., "
        f"[Mitigating Training Imbalance in LLM Fine-Tuning via Selective Parameter Merging]({PAPER}), EMNLP 2024.",
        "",
        *(f"- `{name}`: {value}" for name, value in settings.items()),
    ]
    if config.models:
        entries = [entry for entry in config.models if entry.model != config.base_model]
        weights = [(entry.parameters or {}).get("weight", _setting(config, "weight", 1)) for entry in entries]
        lines += [f"- sub-models: {len(entries)}", f"- `weight`: {', '.join(map(_plain, weights))}"]
    card = ModelCard.load(file)
    card.text = f"{card.text.rstrip()}\n\n" + "\n".join(lines) + "\n"
    card.data.tags = [*(card.data.tags or []), "ordermerge"]
    card.save(file)


def write_cards(run_directory: Path) -> list[Path]:
    """Put the scores of a run's merged models into their model cards.

    Args:
        run_directory: The run directory.

    Returns:
        The cards that were written.

    Raises:
        UserError: If the directory holds no run, or scores are damaged.
    """
    experiment = open_run(run_directory)
    tasks = experiment.evaluation.tasks if experiment.evaluation else []
    cards = []
    outdated = Current(experiment, run_directory).outdated()
    for name in (name for name in experiment.merges if name not in outdated):
        merged, saved = merge_folder(run_directory, name), load_scores(evaluation_folder(run_directory) / name, tasks)
        if saved.rows and (merged / CARD).exists():
            add_results(merged, saved, experiment)
            cards.append(merged / CARD)
    return cards


def add_results(merged: Path, saved: SavedScores, experiment: Experiment) -> None:
    """Put a merged model's scores into its card: a table, and the `model-index` that the hub shows.

    Scores of a part of a task (`limit`) are shown in the table, with their mark, and left out of the `model-index`,
    which has no place for it. Base model and training data are named where they are on the hub.

    Args:
        merged: The merged model, which has a card.
        saved: Its scores.
        experiment: The experiment it belongs to.
    """
    file = merged / CARD
    card = ModelCard.load(file)
    text = card.text.split(_RESULTS)[0].rstrip()
    card.text = f"{text}\n\n{_RESULTS}\n### Results\n\n{markdown_table(saved.rows)}"
    whole = [row for row in saved.rows if row.limit is None]
    card.data.model_name = merged.name
    card.data.eval_results = [_eval_result(row, saved.results[row.task]) for row in whole] or None
    on_hub = not experiment.model.is_local
    card.data.base_model = experiment.model.path if on_hub else card.data.base_model or None
    if not Path(experiment.data.train).is_absolute():
        card.data.datasets = [experiment.data.train]
    card.save(file)


def _without_places(card: str, config: MergeConfiguration) -> str:
    """Return a card with the absolute paths of local models shortened to their last two parts, or from `orders` on."""
    parts = [part for model in config.referenced_models() for part in (model.model, model.lora) if part]
    places = {part.path for part in parts if Path(part.path).is_absolute()}
    for place in sorted(places, key=len, reverse=True):
        folder = Path(place)
        kept = 4 if folder.parent.name == CHECKPOINTS else 2  # orders/K/checkpoints/step-N
        card = card.replace(place, "/".join(folder.parts[-kept:]).lstrip("/"))
    return card


def _setting(config: MergeConfiguration, name: str, default: Any) -> str:
    return _plain((config.parameters or {}).get(name, default))


def _plain(value: Any) -> str:
    """Write a setting as in a recipe: a value, a gradient, or filters."""
    return (
        value if isinstance(value, str) else json.dumps(value, default=lambda part: part.model_dump(exclude_none=True))
    )


def _eval_result(row: Row, file: Path) -> EvalResult:
    task = read_results(file).get("configs", {}).get(row.task, {})
    dataset = task.get("dataset_path")
    on_hub = dataset if isinstance(dataset, str) and dataset not in _LOADERS and not Path(dataset).exists() else None
    noted = {"stderr": row.stderr, "documents": row.n, "num_fewshot": task.get("num_fewshot")}
    return EvalResult(
        task_type="text-generation",
        dataset_type=on_hub or row.task,
        dataset_name=row.task,
        dataset_config=task.get("dataset_name") if on_hub else None,
        dataset_split=task.get("test_split") or task.get("validation_split"),
        metric_type=row.metric,
        metric_name=row.metric if row.filter == NO_FILTER else f"{row.metric} ({row.filter})",
        metric_value=row.value,
        metric_args={name: value for name, value in noted.items() if value is not None},
        source_name="lm-evaluation-harness",
        source_url="https://github.com/EleutherAI/lm-evaluation-harness",
    )
