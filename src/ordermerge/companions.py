"""The files beside a model's weights, all but weights and records: tokenizers, templates, processors, code."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

CONFIG = "config.json"
# What training, merging and repositories leave in a model's folder, and weights in every form.
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|ggml|onnx|onnx_data|npz|npy|tflite|mlmodel|ot|distcp|parquet)$"
    r"|\.index\.json$|^adapter_(config\.json|model\..*)$"
)
_RECORDS = re.compile(
    r"^(\.|_)|~$|^README|\.(log|ya?ml|pyc|tmp|png|jpe?g|gif|pdf|zip|tar|gz)$|tfevents"
    r"|^(trainer_state|all_results|train_results|eval_results|ordermerge|results|training_args)\.json$"
)
_FOLDERS = re.compile(
    r"^(\.|_)|^(checkpoint|global_step|checkpoints|order|runs|logs|eval|original|onnx|openvino)(-|$|_)"
)
TOKENIZER = re.compile(
    r"token|vocab|merges|spiece|sentencepiece|bpe|tekken|chat_template|\.(model|tiktoken)$", re.IGNORECASE
)
GENERATION = "generation_config.json"


def companions(folder: Path) -> Iterator[Path]:
    """Yield the companions of a model, relative to its folder, without its config.json.

    Args:
        folder: The model's folder.
    """
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not _FOLDERS.search(entry.name):
            held = sorted(path for path in entry.rglob("*") if path.is_file())
            # Weights of other forms are in folders of their own, with files that belong to them.
            if not any(_WEIGHTS.search(path.name) for path in held):
                yield from (path.relative_to(folder) for path in held if not _RECORDS.search(path.name))
        elif entry.is_file() and entry.name != CONFIG and _is_companion(entry.name):
            yield entry.relative_to(folder)


def copy_companions(source: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    """Copy a model's companions beside another model.

    Args:
        source: The folder of the first.
        target: The folder of the other.
        wanted: Whether a companion of this name, with its folder, is to be copied.
    """
    for path in companions(source):
        if wanted(path.as_posix()):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)


def _is_companion(name: str) -> bool:
    return not (_WEIGHTS.search(name) or _RECORDS.search(name))
