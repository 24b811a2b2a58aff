"""`ordermerge init`: an experiment, a recipe, records and a task to start from, which run as they are."""

import json
import random
import re
import string
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ordermerge.errors import UserError

RECORDS = {"train": 384, "validation": 48, "test": 48}
SUB_MODELS = 3

_HEAD = """\
# An experiment of ordermerge. A line that is a comment shows a key that is not set, with an example or its default.
#
#   ordermerge run experiment.yml --dry-run   checks everything and prints the plan
#   ordermerge run experiment.yml             trains, merges, scores, and writes a report
#
# Paths start at this file. All keys: docs/reference.md of ordermerge; for an editor: `ordermerge check --schema`.

"""
# Said where no model is named: what the numbers of such a run do not mean.
_RANDOM = """\
# `base` is a tiny random model, there to try the commands offline. It learns the task from nothing: the sub-models end
# far from it and from each other, and their merges score below them. Name a model that knows something: `--model`.

"""
_RECIPE = """\
# A mergekit recipe{of}. From this folder:
#
#   ordermerge check recipe.yml
#   ordermerge merge recipe.yml merged   (or mergekit-yaml, without the checks)
merge_method: parameter_selection_resample  # each value from one sub-model, drawn; again where it is the base model's
base_model: {base}
models:
{models}
# parameters: {{weight: 1, resample: full, seed: 0}}   # the defaults
dtype: float32
"""
_TASK = """\
# Exact match of the whole answer on every record of ../test.jsonl, by greedy decoding.
task: {name}
custom_dataset: !function ordermerge.eval.task_data.load
dataset_kwargs: {{data_files: ../test.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<eos>", "\\n"], do_sample: false, max_gen_toks: 16}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1.0}}
"""


def start_project(folder: Path, kind: str, models: Sequence[str]) -> list[Path]:
    """Write the files of a new project; all of them or none.

    Args:
        folder: Where to write; it is made if need be.
        kind: "prompt", "chat" or "lora" (an experiment), or "merge" (a recipe for checkpoints).
        models: The base model, a folder or hub id, and for "merge" the checkpoints after it; if none is given, tiny
            random ones are written.

    Returns:
        What was written.

    Raises:
        UserError: If one of the files is there already, or the models do not go with the kind.
    """
    _check_models(kind, models)
    named = [str(Path(model).resolve()) if Path(model).is_dir() else model for model in models]
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".init-") as made:
        work = Path(made)
        _write(work, _name(folder), kind, named)
        entries = sorted(work.iterdir())
        if there := [folder / entry.name for entry in entries if (folder / entry.name).exists()]:
            raise UserError(f"{', '.join(map(str, there))}: exists already; name a new folder: `ordermerge init DIR`")
        for entry in entries:
            entry.rename(folder / entry.name)
    return [folder / entry.name for entry in entries]


def _check_models(kind: str, models: Sequence[str]) -> None:
    if kind == "merge" and len(models) == 1:
        raise UserError("--model: give the base model first, then each fine-tuned one, with a --model of its own")
    if kind != "merge" and len(models) > 1:
        raise UserError(f"--model: an experiment has one base model; got {len(models)} (`--kind merge` takes several)")


def _name(folder: Path) -> str:
    name = folder.resolve().name
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) else "start"


def _write(work: Path, name: str, kind: str, models: Sequence[str]) -> None:
    from ordermerge.commands.tiny_model import write_tiny_model
    from ordermerge.config.commented import commented_experiment

    for split, records in _records().items():
        if split == "test" or kind != "merge":
            chat = kind == "chat" and split != "test"
            lines = [json.dumps(_as_chat(record) if chat else record) + "\n" for record in records]
            (work / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "tasks").mkdir()
    (work / "tasks" / "starter.yaml").write_text(_TASK.format(name="starter"), encoding="utf-8")
    if not models:
        write_tiny_model(work / "base")
    if kind == "merge":
        subs = list(models[1:]) or [f"./model_{k}" for k in range(SUB_MODELS)]
        for k in range(0 if models else SUB_MODELS):
            write_tiny_model(work / f"model_{k}", seed=k + 1, moved=0.5)
    else:
        subs = [f"./runs/{name}/orders/{k}" for k in range(SUB_MODELS)]
        text = commented_experiment(_values(name, kind, models[0] if models else None))
        (work / "experiment.yml").write_text(_HEAD + _RANDOM * (not models) + text, encoding="utf-8")
    base = models[0] if models else "./base"
    if kind == "lora":
        subs = [f"{base}+{sub}" for sub in subs]
    of = "" if kind == "merge" else " of the experiment's sub-models, once they are trained"
    recipe = _RECIPE.format(of=of, base=base, models="\n".join(f"  - model: {sub}" for sub in subs))
    (work / "recipe.yml").write_text(recipe, encoding="utf-8")


def _values(name: str, kind: str, model: str | None) -> dict[str, Any]:
    """Return what the experiment sets: little for a model of the user's, all for the tiny one to be quick."""
    data = {"messages": "messages"} if kind == "chat" else {"prompt": "{question}", "completion": "{answer}"}
    own = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-5}
    tiny = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "max_length": 128}
    sft = own if model else {**tiny, "bf16": False, "activation_checkpointing": False}
    lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"} if kind == "lora" else {}
    evaluation: dict[str, Any] = {"tasks": ["starter"], "include_path": "tasks", "batch_size": 16}
    if kind == "chat":
        evaluation["apply_chat_template"] = True
    merges = {
        "weighted_average": {"merge_method": "linear", "parameters": {"weight": 1}},
        "parameter_selection_resample": {"merge_method": "parameter_selection_resample"},
    }
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": model or "base", "dtype": "float32"},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", **data},
        "orders": {"count": SUB_MODELS, "strategy": "random", "seed": 0},
        "sft": {**sft, "lr_scheduler_type": "constant", "eval_strategy": "epoch"},
        "lora": lora,
        "evaluation": evaluation,
    }
    flat = {f"{section}.{key}": value for section, held in sections.items() for key, value in held.items()}
    return {"name": name, "controls": {"annealed": True}, "merges": merges, **flat}


def _records() -> dict[str, list[dict[str, str]]]:
    """Return records of each split, none in two of them: three letters, and the same in capitals."""
    rng, letters = random.Random(0), string.ascii_lowercase[:12]
    words = ["".join(word) for word in _triples(letters)]
    rng.shuffle(words)
    found = {}
    for split, count in RECORDS.items():
        found[split] = [{"question": f"{word}=", "answer": word.upper()} for word in words[:count]]
        words = words[count:]
    return found


def _triples(letters: str) -> list[tuple[str, str, str]]:
    return [(a, b, c) for a in letters for b in letters for c in letters]


def _as_chat(record: dict[str, str]) -> dict[str, Any]:
    turns = zip(("user", "assistant"), record.values(), strict=True)
    return {"messages": [{"role": role, "content": text} for role, text in turns]}
