"""Where a key belongs that an experiment does not know at the place where it stands."""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ordermerge.config.schema import Experiment
from ordermerge.errors import did_you_mean
from ordermerge.mistakes import shown

# Names that other programs and older versions have for a key, too far from it for its letters to tell.
_OTHER_NAMES = {
    **dict.fromkeys(("model_name_or_path", "pretrained", "base_model", "model_path"), "model.path"),
    **dict.fromkeys(("torch_dtype", "bnb_4bit_compute_dtype"), "model.dtype"),
    **dict.fromkeys(("dataset", "dataset_name", "datasets", "train_file"), "data.train"),
    "dataset_config": "data.config",
    "validation_file": "data.validation",
    **dict.fromkeys(("epochs", "num_epochs"), "sft.num_train_epochs"),
    "lr": "sft.learning_rate",
    "scheduler": "sft.lr_scheduler_type",
    "max_seq_length": "sft.max_length",
    "evaluation_strategy": "sft.eval_strategy",
    **dict.fromkeys(("rank", "lora_r", "lora_rank"), "lora.r"),
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target_modules": "lora.target_modules",
}
_LIBRARIES = ("sft", "lora")
_NEAR = 0.8  # of names: one letter in five at most


def where_it_belongs(section: str, name: str, value: Any) -> str:
    """Return what an unknown key may have been meant to be, as the end of a sentence; "" where nothing is near.

    Args:
        section: The section that it stands in, "" at the top.
        name: The key.
        value: Its value.
    """
    home, meant = next(_homes(section, name), (None, ""))
    if home is None:
        return ""
    if home == section:
        return f" (did you mean {meant!r}?)"
    if not home:
        return f": it belongs at the top level, as `{meant}`"
    written = f" (`{shown({home: {meant: value}})}`)" if isinstance(value, str | int | float) else ""
    return f": it belongs under `{home}`{'' if meant == name else f', as `{meant}`'}{written}"


def unknown_key(place: str, section: str, name: str, value: Any) -> str:
    """Return the sentence about a key that a section of the schema does not know.

    Args:
        place: The key, with those that it is under.
        section: The section, "" at the top.
        name: The key itself.
        value: Its value.
    """
    return f"unknown key `{place}`{where_it_belongs(section, name, value) or did_you_mean(name, _known(section))}"


def section_schema(name: str) -> type[BaseModel] | None:
    """Return the schema of a section; None of what is no section with keys of its own.

    Args:
        name: The section, "" for the whole.
    """
    if not name:
        return Experiment
    annotation = Experiment.model_fields[name].annotation if name in Experiment.model_fields else None
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _known(section: str) -> list[str]:
    schema = section_schema(section)
    return [name for name in schema.model_fields if name != "directory"] if schema else []


def _homes(section: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the sections that a key may belong to, and its name there: the likeliest first, the libraries' last."""
    if name in _OTHER_NAMES:
        home, _, meant = _OTHER_NAMES[name].partition(".")
        yield home, meant
    ours = {home: _known(home) for home in ("", *Experiment.model_fields) if home not in _LIBRARIES}
    yield from ((home, name) for home, known in ours.items() if name in known)
    yield from _near(section, name, ours.get(section, []))
    libraries = {home: _settable(home) for home in _LIBRARIES}
    yield from ((home, name) for home, known in libraries.items() if name in known)
    for home in (section, *libraries, *ours):
        yield from _near(home, name, {**ours, **libraries}.get(home, []))


def _near(section: str, name: str, known: list[str]) -> Iterator[tuple[str, str]]:
    yield from ((section, near) for near in difflib.get_close_matches(name[:100], known, n=1, cutoff=_NEAR))


def _settable(section: str) -> list[str]:
    from ordermerge.config.reference import library_sections  # not at the top: TRL takes seconds

    return [name for name, *_ in library_sections()[section].described()]
