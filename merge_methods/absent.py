"""Whether the models that a recipe names are there, as far as that can be told without asking the hub."""

from collections.abc import Iterator
from pathlib import Path

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from mergekit.tokenizer.config import ModelTokenEmbedding


def absent_problems(config: MergeConfiguration) -> list[str]:
    """Return a problem for each model that must be local (by the look of its path) where no checkpoint is.

    Args:
        config: A recipe that mergekit's schema accepts.
    """
    problems = [problem for model in sorted(config.referenced_models(), key=str) for problem in _incomplete(model)]
    problems += [f"tokenizer of {p}" for model in _tokenizers(config) if (p := _no_folder(model.model))]
    return list(dict.fromkeys(problems))


def _incomplete(model: ModelReference) -> Iterator[str]:
    for part, file in ((model.model, "config.json"), (model.lora, "adapter_config.json")):
        if part is None:
            continue
        folder = Path(part.path).expanduser()
        if folder.is_dir() and not (folder / file).exists():
            adapter = part is model.model and (folder / "adapter_config.json").exists()
            hint = f", only an adapter; write BASE_MODEL+{part.path}" if adapter else ""
            yield f"model {part.path}: the folder holds no {file}{hint}"
        elif problem := _no_folder(part):
            yield problem


def _no_folder(part: ModelPath) -> str | None:
    folder = Path(part.path).expanduser()
    local = folder.exists() or part.path.startswith(("/", ".", "~")) or part.path.count("/") > 1
    return f"model {part.path}: no such folder (looked in {Path.cwd()})" if local and not folder.is_dir() else None


def _tokenizers(config: MergeConfiguration) -> Iterator[ModelReference]:
    """Yield the models that only the tokenizer settings name."""
    settings = config.tokenizer
    sources: list[object] = [config.tokenizer_source, settings.source if settings else None]
    for token in ((settings.tokens if settings else None) or {}).values():
        sources.append(token.source.model if isinstance(token.source, ModelTokenEmbedding) else token.source)
    yield from (s for s in sources if isinstance(s, ModelReference) and s not in config.referenced_models())
