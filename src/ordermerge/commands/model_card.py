"""Model cards of merges and sub-models, as the hub takes them: how a model was made, and its scores."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ordermerge.commands.current import Current
from ordermerge.config.schema import Experiment
from ordermerge.config.trainings import control_runs, described, sub_models
from ordermerge.errors import UserError, counted
from ordermerge.eval.scoring.saved import SavedScores, load_scores, read_results
from ordermerge.eval.scoring.table import NO_FILTER, Row, markdown_table
from ordermerge.files import CARD, write_text
from ordermerge.models import hub_name
from ordermerge.run_directory import (
    CHECKPOINTS,
    control_folder,
    evaluation_folder,
    merge_folder,
    open_run,
    order_folder,
    order_name,
    order_record,
)

if TYPE_CHECKING:  # `ordermerge card` does without mergekit
    from mergekit.config import MergeConfiguration

_MERGE_TAGS = ("mergekit", "merge", "ordermerge")
_TRAINED_TAGS = ("ordermerge", "sft", "trl")
_OURS = "<!-- how it was trained: rewritten by `ordermerge card` -->"
_PEFT_EMPTY = "# Model Card for Model ID"  # PEFT's card of an adapter, which nobody has filled in
_PLACE = re.compile(r"(?<![^\s'\"=+(])/(?:[^\s'\"/]+/)+[^\s'\"/,)]+")  # an absolute path, not within a URL
_RESULTS = "<!-- results: rewritten by `ordermerge card` -->"
_BY_NAME = (
    "### By tensor name\n\nMerged by `ordermerge merge --by-name`: each tensor with those of the same name in "
    "the other models. `mergekit-yaml` would merge only what its table of the architecture names."
)
_LOADERS = ("json", "csv", "parquet", "text")  # `dataset_path`s that name a file format, not a dataset


def complete_card(merged: Path, config: "MergeConfiguration", *, by_name: bool = False) -> None:
    """Add to mergekit's model card how the values were drawn, if one of our methods drew them, and what stock lacks.

    A local model is named by the end of its path: where it lies on somebody's disk is nobody's business.

    Args:
        merged: The merged model.
        config: What it was merged by.
        by_name: Whether it was merged by tensor name.
    """
    from mergekit.merge_methods import registered_methods

    from ordermerge.merge_methods.parameter_selection import NAMES, PAPER

    file = merged / CARD
    if not file.exists():
        return
    text = _without_places(file.read_text(encoding="utf-8"), config)
    card: Any = ModelCard(_shortened_paths(text))
    named = (hub_name(part.path) for model in config.referenced_models() for part in (model.model, model.lora) if part)
    card.data.base_model = sorted(set(filter(None, named))) or None
    if by_name:
        card.text = f"{card.text.rstrip()}\n\n{_BY_NAME}\n"
    card.save(file)
    method = next(method for method in registered_methods() if method.spec.name == config.merge_method)
    if method.spec.name not in NAMES:
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
    card.text = f"{card.text.rstrip()}\n\n" + "\n".join(lines) + "\n"
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), "ordermerge"]))
    card.save(file)


def write_cards(run_directory: Path) -> list[Path]:
    """Put the scores of a run's merged models into their model cards, and write those of the models it trained.

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
    trained = {order_name(k): (order_folder(run_directory, k), one) for k, one in enumerate(sub_models(experiment))}
    trained |= {run.folder: (control_folder(run_directory, run.folder), run) for run in control_runs(experiment)}
    for name, (folder, training) in trained.items():
        saved = load_scores(evaluation_folder(run_directory) / name, tasks)
        if add_trained_card(folder, name, described(training), saved, experiment):
            cards.append(folder / CARD)
    return cards


def add_results(merged: Path, saved: SavedScores, experiment: Experiment) -> None:
    """Put a merged model's scores into its card: a table, and the `model-index` that the hub shows.

    Scores of a part of a task (`limit`) are shown in the table, with their mark, and left out of the `model-index`,
    which has no place for it. Training data and base model are in the metadata where they are on the hub, as the hub
    takes no other names.

    Args:
        merged: The merged model, which has a card.
        saved: Its scores.
        experiment: The experiment it belongs to.

    Raises:
        UserError: If the card is damaged.
    """
    file = merged / CARD
    try:
        card = ModelCard.load(file)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:  # as the metadata are
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: no model card ({reason}); mend it, or delete it to have the scores in none") from None
    text = _shortened_paths(card.text.split(_RESULTS)[0].rstrip())
    card.text = f"{text}\n\n{_results(saved)}"
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *_MERGE_TAGS]))
    _add_data(card.data, merged.name, saved, experiment)
    write_text(file, str(card))


def add_trained_card(folder: Path, name: str, how: str, saved: SavedScores, experiment: Experiment) -> bool:
    """Write the card of a sub-model or control; one that somebody else wrote is kept.

    Args:
        folder: The model.
        name: Its name in tables.
        how: What is its own: its order, and fields of `sft`.
        saved: Its scores, which may be none.
        experiment: The experiment it belongs to.

    Returns:
        Whether it was written.
    """
    file, record = folder / CARD, order_record(folder)
    there = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "" if file.exists() else _OURS
    if record is None or not (_OURS in there or _PEFT_EMPTY in there):
        return False
    orders, adapter = experiment.orders, experiment.saves_adapters
    base, data = hub_name(experiment.model.path) or _name(experiment.model.path), _name(experiment.data.train)
    lines = [
        f"# {experiment.name}: {name}",
        f"{_OURS}\n{'An adapter of' if adapter else 'Trained from'} `{base}` on `{data}` with [TRL](https://github.com/"
        f"huggingface/trl)'s SFTTrainer, by ordermerge: one of {counted(experiment.count, 'model')} that differ in the "
        "order of the same samples, to be merged.",
        f"- its own: {how}\n- orders: strategy `{orders.strategy}`, seed {orders.seed}\n"
        f"- {counted(record['steps'], 'optimizer step')}, {counted(record['samples_consumed'], 'sample')}\n"
        "- the order, and all that it was made with: `order/`",
        f"```yaml\n{yaml.safe_dump({'sft': experiment.sft, 'lora': experiment.lora}, sort_keys=False)}```",
        _results(saved),
    ]
    data_of = ModelCardData(library_name="peft" if adapter else "transformers", tags=list(_TRAINED_TAGS))
    _add_data(data_of, f"{experiment.name}-{name}", saved, experiment)
    text = _shortened_paths("\n\n".join(filter(None, lines)))
    write_text(file, str(ModelCard(f"---\n{data_of.to_yaml()}\n---\n{text}\n")))
    return True


def _results(saved: SavedScores) -> str:
    return f"{_RESULTS}\n### Results\n\n{markdown_table(saved.rows)}" if saved.rows else ""


def _add_data(data: ModelCardData, name: str, saved: SavedScores, experiment: Experiment) -> None:
    """Put into a card's metadata what the hub reads: scores, base model, data; nothing that it refuses."""
    whole = [row for row in saved.rows if row.limit is None]
    data.model_name = name
    data.eval_results = [_eval_result(row, saved.results[row.task]) for row in whole] or None
    data.base_model = hub_name(experiment.model.path)
    if not Path(experiment.data.train).is_absolute():
        data.datasets = [experiment.data.train]


def _name(path: str) -> str:
    """Return a hub id as it is, and of a local path the last part."""
    return Path(path).name if Path(path).is_absolute() else path


def _shortened_paths(card: str) -> str:
    """Return a card with absolute paths shortened to their last two parts."""
    return _PLACE.sub(lambda found: "/".join(Path(found[0]).parts[-2:]), card)


def _without_places(card: str, config: "MergeConfiguration") -> str:
    """Return a card with the absolute paths of local models shortened to their last two parts, or from `orders` on."""
    parts = [part for model in config.referenced_models() for part in (model.model, model.lora) if part]
    places = {part.path for part in parts if Path(part.path).is_absolute()}
    for place in sorted(places, key=len, reverse=True):
        folder = Path(place)
        kept = 4 if folder.parent.name == CHECKPOINTS else 2  # orders/K/checkpoints/step-N
        card = card.replace(place, "/".join(folder.parts[-kept:]).lstrip("/"))
    return card


def _setting(config: "MergeConfiguration", name: str, default: Any) -> str:
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
