"""A model by folder or hub id: its name in tables, what identifies it, whether it is there and whole."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from ordermerge.errors import UserError, shortened
from ordermerge.files import fingerprint_file

Model = str | tuple[str, ...]  # a folder or hub id; several are an ensemble
HF_BACKENDS = ("hf", "hf-auto", "huggingface")
FOLDER_BACKENDS = (*HF_BACKENDS, "vllm")
ADAPTER_ARGS = {**dict.fromkeys(HF_BACKENDS, "peft"), "vllm": "lora_local_path"}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")  # with a revision, as mergekit writes it
_REPOSITORY = re.compile(r"(?=.{1,96}$)\w[\w.-]*(/\w[\w.-]*)?")  # without a revision
NOT_LOADED = (".md", ".log", ".yml")
# Of a repository, what other programs load.
_NOT_LOADED = ["*.gguf", "*.onnx*", "*.msgpack", "*.h5", "*.ot", "*.pth", "original/*", "consolidated*", "*.mlmodel"]
RUN_FILE = "experiment.yml"  # in a run directory: the resolved experiment
MERGE_MARKER = "ordermerge.json"  # holds the time that a merge took: the same merge, made again, is the same model


def model_names(models: Sequence[str]) -> dict[str, str]:
    """Name models by the last part of their path or hub id, with as many parts before it as tell them apart.

    Those of a run directory have its name in theirs: two runs' `orders/0`, scored one after the other, are two models.

    Args:
        models: Folders or hub ids.

    Returns:
        Name of each model, and the model as given.

    Raises:
        UserError: If a model is listed twice.
    """
    parts = {model: _parts(model) for model in models}
    twice = sorted({model for model in models if [_parts(m) for m in models].count(parts[model]) > 1})
    if twice:
        raise UserError(f"models: {', '.join(twice)} listed more than once; list each model once")
    names: dict[str, str] = {}
    for model, own in parts.items():
        others = [other for other in parts.values() if other != own]
        least = 3 if _is_of_run(model) else 1
        lengths = (n for n in range(least, len(own)) if all(other[-n:] != own[-n:] for other in others))
        name = "-".join(own[-next(lengths, len(own)) :])
        while name in names:  # "a-b" and "a/b"
            name += "_"
        names[name] = model
    return names


def members_of(model: Model) -> list[str]:
    """Return the models behind one: itself, or those of an ensemble.

    Args:
        model: Folder or hub id; several are an ensemble.
    """
    return [model] if isinstance(model, str) else list(model)


def parts_of(model: str) -> tuple[str, str | None]:
    """Return what a name stands for: a model or adapter, and the base model that is named with it.

    Args:
        model: Folder or hub id; or BASE+ADAPTER, as mergekit writes it, with the folder of an adapter.
    """
    base, plus, adapter = model.partition("+")
    pair = plus and local_folder(model) is None and local_folder(adapter) is not None
    return (adapter, base) if pair else (model, None)


def local_folder(model: str) -> Path | None:
    """Return the absolute folder of a local model, None of a hub id.

    Args:
        model: Folder or hub id.
    """
    path = Path(os.path.abspath(os.path.expanduser(model)))
    return path if path.is_dir() else None


def model_folder(model: str, cache_dir: str | None = None) -> Path | None:
    """Return the absolute folder of a model: a local one, or the snapshot of a hub id in the local cache.

    Args:
        model: Folder or hub id, "org/model@revision" included.
        cache_dir: The Hugging Face cache, if it is not the usual one.

    Returns:
        None where there is neither; the hub is not asked.
    """
    if (folder := local_folder(model)) or not HUB_ID.fullmatch(model) or model.startswith("."):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name, revision = hub_revision(model)
    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def download(model: str, cache_dir: str | None = None) -> Path:
    """Return the folder of a model on the hub, all that transformers may load of it downloaded.

    Args:
        model: Hub id, "org/model@revision" included.
        cache_dir: The Hugging Face cache, if it is not the usual one.

    Raises:
        UserError: If it cannot be had.
    """
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    name, revision = hub_revision(model)
    try:
        files = list_repo_files(name, revision=revision)
        pickles = ["*.bin"] if any(file.endswith(".safetensors") for file in files) else []
        found = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, ignore_patterns=[*_NOT_LOADED, *pickles]
        )
    except OfflineModeIsEnabled:
        raise UserError(
            f"model {model}: no such folder (looked in {Path.cwd()}), nor whole in the Hugging Face cache, and this "
            f"machine is to stay offline (HF_HUB_OFFLINE); download it where there is a network: `hf download {name}`"
        ) from None
    except Exception as error:  # huggingface_hub and the HTTP library below it raise many kinds
        reason = shortened(" ".join(str(error).split()), 300)
        raise UserError(f"model {model}: no such folder (looked in {Path.cwd()}), and the hub says: {reason}") from None
    return Path(found)


def hub_revision(model: str) -> tuple[str, str | None]:
    """Return what to load and its revision, of "org/model@revision"; a local folder has none, whatever its name.

    Args:
        model: Folder or hub id.
    """
    if local_folder(model):
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


def hub_name(model: str) -> str | None:
    """Return a model's id on the hub, None of a local folder that does not say where it is from.

    Args:
        model: A hub id; or a local folder: one in the Hugging Face cache is named by its place there, others by their
            configuration.
    """
    folder = local_folder(model)
    if folder is None:
        name = hub_revision(model)[0]
        return name if _REPOSITORY.fullmatch(name) else None
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    if cached:
        return cached.removeprefix("models--").replace("--", "/", 1)
    try:
        config = from_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    named = config.get("_name_or_path") if isinstance(config, dict) else None
    known = isinstance(named, str) and "/" in named and _REPOSITORY.fullmatch(named) and local_folder(named) is None
    return str(named) if known else None


def identity(model: str) -> dict[str, Any]:
    """Return what tells this model from another: the content of its folder's files, or its hub id.

    Files in sub-folders (checkpoints, order records) are not part of what is loaded, and do not count.

    Args:
        model: Folder or hub id.
    """
    model, base = parts_of(model)
    folder = local_folder(model)
    if folder is None:
        return {"hub_id": model}
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and _is_loaded(p))
    content: dict[str, Any] = {p.name: fingerprint_file(p) for p in files}
    adapter = _adapter_config(folder, base)
    return {**content, "base_model": identity(adapter["base_model_name_or_path"])} if adapter else content


def _is_loaded(file: Path) -> bool:
    return file.suffix not in NOT_LOADED and file.name != MERGE_MARKER and not file.name.startswith(".")


def loading_args(model: str, backend: str) -> dict[str, str]:
    """Return lm-eval's model arguments that say what to load: a whole model, or an adapter and its base model.

    Args:
        model: Folder or hub id.
        backend: lm-eval's model backend.
    """
    # An absolute path: lm-eval asks the hub for the commit of anything that may be a hub id, as "runs/x" may.
    model, base = parts_of(model)
    folder = local_folder(model)
    adapter = _adapter_config(folder, base) if folder and backend in ADAPTER_ARGS else None
    if folder is None:
        name, revision = hub_revision(model)
        return {"pretrained": name, **({"revision": revision} if revision else {})}
    if adapter is None:
        return {"pretrained": str(folder)}
    arguments = {"pretrained": adapter["base_model_name_or_path"], ADAPTER_ARGS[backend]: str(folder)}
    if adapter.get("revision"):
        arguments["revision"] = adapter["revision"]
    if (folder / "tokenizer_config.json").is_file():
        arguments["tokenizer"] = str(folder)
    return arguments


def model_problem(model: str, backend: str) -> str | None:
    """Return one sentence on why a model cannot be loaded, None if nothing speaks against it.

    Args:
        model: Folder or hub id.
        backend: lm-eval's model backend; only those that load Hugging Face folders are looked into.
    """
    if backend not in FOLDER_BACKENDS:
        return None
    model, base = parts_of(model)
    folder = local_folder(model)
    if folder is None:
        return _absence(model)
    if base and not (folder / "adapter_config.json").is_file():
        return f"{folder} is no adapter: it has no adapter_config.json; write BASE+ADAPTER"
    if base or not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return _adapter_problem(folder, backend, base)
        from ordermerge.file_kinds import MODEL, wrong_kind  # which asks this module for names

        return (
            wrong_kind(Path(model), MODEL)
            or f"{folder} is no model folder: it has no config.json; give the folder that `save_pretrained` wrote"
        )
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        return f"{folder} is incomplete: it has a config.json but no weights (*.safetensors); copy or save it again"
    return _weight_problem(folder)


def _weight_problem(folder: Path) -> str | None:
    """Return what is wrong with the weights that transformers would load."""
    from ordermerge.weights import WEIGHT_FILES, Unreadable, stored_tensors  # not at the top: torch takes time

    if not (folder / WEIGHT_FILES[0]).is_file() and (missing := _missing_shards(folder)):
        return f"{folder} is incomplete: {', '.join(missing)} missing, which its index names; copy or save it again"
    try:
        if any((folder / name).is_file() for name in WEIGHT_FILES):
            stored_tensors(folder)
    except Unreadable as error:
        return f"{folder} cannot be loaded: {error}"
    return None


def _adapter_config(folder: Path, base: str | None = None) -> dict[str, Any] | None:
    """Return the configuration of an adapter, of its own base model if none is named; None of a whole model."""
    file = folder / "adapter_config.json"
    if (base is None and (folder / "config.json").is_file()) or not file.is_file():
        return None
    try:
        config = from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); copy or save the adapter again") from None
    if base is not None and isinstance(config, dict):
        name, revision = hub_revision(base)
        config |= {"base_model_name_or_path": name, "revision": revision}
    if not isinstance(config, dict) or not isinstance(config.get("base_model_name_or_path"), str):
        raise UserError(f"{file} names no base model; set `base_model_name_or_path` in it")
    return {**config, "base_model_name_or_path": _base_of(folder, config["base_model_name_or_path"])}


def _base_of(adapter: Path, named: str) -> str:
    """Return an adapter's base model: a relative path starts at the working directory, or else beside the adapter."""
    beside = next((p for p in (adapter / named, adapter.parent / named) if (p / "config.json").is_file()), None)
    found = local_folder(named) or (Path(os.path.abspath(beside)) if beside else None)
    return str(found) if found else named


def _adapter_problem(folder: Path, backend: str, base: str | None) -> str | None:
    """Return why an adapter cannot be loaded with its base model, None if nothing speaks against it."""
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
        return f"{folder} is incomplete: it has an adapter_config.json but no adapter_model.safetensors; copy it again"
    try:
        config = _adapter_config(folder, base)
    except UserError as error:
        return str(error)
    problem = model_problem(config["base_model_name_or_path"], backend) if config else None
    return f"{folder} is an adapter whose base model cannot be loaded: {problem}" if problem else None


def missing_package(backend: str) -> str | None:
    """Return one sentence if a backend's package is not installed, None if it is.

    Args:
        backend: One of lm-eval's model backends.
    """
    if backend in HF_BACKENDS:
        return None  # they need nothing that is not here already, and take seconds to import
    from lm_eval.api.registry import get_model

    try:
        get_model(backend)
    except ImportError as error:
        wanted = "ordermerge[vllm]" if error.name == "vllm" else error.name
        return f"model: the backend {backend!r} needs a package that is not installed ({error}); pip install '{wanted}'"
    return None


def is_offline() -> bool:
    """Return whether the hub's clients are in offline mode."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _is_of_run(model: str) -> bool:
    """Return whether a model is an order, control or merge in a run directory, RUN/orders/0."""
    folder = local_folder(model)
    if folder is None or folder.parent.name not in ("orders", "merges"):
        return False
    return (folder.parents[1] / RUN_FILE).is_file()


def near_folder(model: str) -> str | None:
    """Return the model folder whose path is written nearly like this one, None where there is none.

    Args:
        model: What is no folder.
    """
    place = Path("/" if model.startswith("/") else "")
    for part in Path(os.path.expanduser(model)).parts:
        if part == "/":
            continue
        folders = [entry.name for entry in place.iterdir() if entry.is_dir()]
        near = [part] if part in folders else difflib.get_close_matches(part, folders, n=1)
        if not near:
            return None
        place /= near[0]
    names = ("config.json", "adapter_config.json")
    return str(place) if any((place / name).is_file() for name in names) else None


def _parts(model: str) -> tuple[str, ...]:
    folder = local_folder(parts_of(model)[0])
    return folder.parts[1:] or ("root",) if folder else tuple(part for part in model.split("/") if part)


def _absence(model: str) -> str | None:
    path = Path(os.path.expanduser(model))
    if path.exists():
        return f"{path} is a file; a model is a folder with config.json and weights, or a hub id"
    if not HUB_ID.fullmatch(model) or model.startswith(".") or ("/" in model and path.parent.is_dir()):
        near = near_folder(model)
        meant = f"; did you mean {near!r}?" if near else ""
        return f"{path}: no such model folder (looked in {Path(os.path.abspath(path)).parent}){meant}"
    return None


def _missing_shards(folder: Path) -> list[str]:
    missing: set[str] = set()
    for index in folder.glob("*.index.json"):
        try:
            shards = from_json(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError):
            continue
        missing.update(shard for shard in shards if not (folder / shard).is_file())
    return sorted(missing)
