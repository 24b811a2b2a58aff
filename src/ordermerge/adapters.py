"""LoRA adapters as PEFT saves them: read as low-rank changes of a model's matrices, and written."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ordermerge.errors import UserError, quoted
from ordermerge.files import write_json
from ordermerge.low_rank import LowRank
from ordermerge.yaml_json import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PAIR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
# Fields that say which modules are adapted, with which rank and scaling: what is read here.
_WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_UNDERSTOOD = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", *_WHERE}
# Fields that matter in training only, or say what the adapter is for.
_UNDERSTOOD |= {"lora_dropout", "init_lora_weights", "inference_mode", "task_type", "peft_type", "peft_version"}
_UNDERSTOOD |= {"base_model_name_or_path", "revision", "auto_mapping", "runtime_config", "ensure_weight_tying"}
# Of `init_lora_weights`: those that leave the base model as it is.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """An adapter of low rank.

    Args:
        folder: Where it is.
        config: Its adapter_config.json.
        changes: Name of each module that it adapts, and the change of its matrix, the scaling included; for an
            embedding, and where `fan_in_fan_out` is set, that of the transposed matrix.
        embeddings: The modules that are embeddings.
    """

    folder: Path
    config: Mapping[str, Any]
    changes: Mapping[str, LowRank]
    embeddings: frozenset[str]

    def is_transposed(self, module: str) -> bool:
        """Tell whether the change is that of the transposed matrix.

        Args:
            module: One of its modules.
        """
        return module in self.embeddings or bool(self.config.get("fan_in_fan_out"))


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that is a low-rank change of some matrices and nothing else.

    Args:
        folder: Its folder.

    Raises:
        UserError: If it is more than that (trained biases, whole modules, DoRA), or damaged.
    """
    config = read_json(folder / CONFIG, dict, remedy="copy or save the adapter again")
    if problems := _config_problems(folder, config):
        raise UserError(problems)
    sides: dict[str, dict[str, torch.Tensor]] = {}
    embeddings = set()
    for name, tensor in _read_weights(folder).items():
        match = _PAIR.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise UserError(
                f"adapter {folder} holds `{name}` of shape {list(tensor.shape)}, which is no low-rank matrix: the "
                "adapters cannot be merged to an adapter; merge them without `--adapter`"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"adapter {folder}: `{name}` holds NaN or infinite values (a training that diverged?)")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
        embeddings |= {match["module"]} if match["embedding"] else set()
    changes = {}
    for module, pair in sides.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise UserError(f"adapter {folder}: A and B of `{module}` do not go together; copy or save it again")
        changes[module] = LowRank(pair["B"].float() * _scaling(config, module, len(pair["A"])), pair["A"].float())
    if not changes:
        raise UserError(f"adapter {folder} adapts no module; train it again")
    return Adapter(folder, config, changes, frozenset(embeddings))


def write_adapter(
    folder: Path, like: list[Adapter], changes: Mapping[str, LowRank], base: str, revision: str | None
) -> None:
    """Write an adapter that PEFT loads, in float32, with a scaling of 1.

    Args:
        folder: An existing folder.
        like: The adapters that it was made from, of one base model.
        changes: As in `Adapter`.
        base: The base model's folder or hub id.
        revision: Of the hub id.
    """
    first = like[0]
    embeddings = frozenset().union(*(adapter.embeddings for adapter in like))
    tensors = {}
    for module, change in changes.items():
        kind, end = ("embedding_", "") if module in embeddings else ("", ".weight")
        for side, tensor in (("A", change.right), ("B", change.left)):
            tensors[f"base_model.model.{module}.lora_{kind}{side}{end}"] = tensor.float().contiguous()
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    ranks = {module: change.rank for module, change in changes.items()}
    common = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != common}
    alike = all(_where(adapter) == _where(first) for adapter in like)
    where = {key: first.config.get(key) for key in _WHERE} if alike else dict.fromkeys(_WHERE)
    written = {
        **first.config,
        **where,
        **({} if alike else {"target_modules": sorted(changes)}),
        "r": common,
        "lora_alpha": common,
        "use_rslora": False,
        "rank_pattern": others,
        "alpha_pattern": others,
        "init_lora_weights": True,
        "inference_mode": True,
        "base_model_name_or_path": base,
        "revision": revision,
    }
    write_json(folder / CONFIG, written)


def _where(adapter: Adapter) -> dict[str, str]:
    """Return the fields that say which modules are adapted, to be compared; the order of a list says nothing."""
    fields = ((key, adapter.config.get(key)) for key in _WHERE)
    return {key: json.dumps(sorted(map(str, value)) if isinstance(value, list) else value) for key, value in fields}


def _config_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    from peft import LoraConfig

    end = "so it cannot be merged to an adapter; merge without `--adapter`"
    if (kind := config.get("peft_type")) != "LORA":
        return [f"adapter {folder} is of the kind {quoted(kind)}, not LORA, {end}"]
    start = config.get("init_lora_weights", True)
    plain = {**LoraConfig().to_dict(), "bias": "none"}
    more = {
        key: value
        for key, value in config.items()
        if key not in _UNDERSTOOD and value != plain.get(key) and value not in (None, False, {}, [])
    }
    if start not in _PLAIN_STARTS:
        more["init_lora_weights"] = start
    said = ", ".join(f"`{key}: {quoted(value)}`" for key, value in more.items())
    return [f"adapter {folder} is more than a low-rank change of the base model ({said}), {end}"] if more else []


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from peft.utils.save_and_load import load_peft_weights

    if not any((folder / name).is_file() for name in (WEIGHTS, "adapter_model.bin")):
        raise UserError(f"adapter {folder} is incomplete: it has no {WEIGHTS}; copy it again")
    try:
        return dict(load_peft_weights(str(folder), device="cpu"))
    except Exception as error:  # of many kinds, for a damaged file
        raise UserError(f"adapter {folder} cannot be read ({' '.join(str(error).split())}); copy it again") from error


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return what PEFT multiplies B A with: alpha / r, or with rank-stabilised LoRA alpha / sqrt(r)."""
    from peft.utils.other import get_pattern_key

    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
