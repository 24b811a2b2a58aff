"""Disk space, asked for before hours of work rather than at the end of them."""

import shutil
from pathlib import Path

from ordermerge.errors import UserError

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def checkpoint_bytes(folder: Path, dtype: str | None = None) -> int:
    """Return how much disk a checkpoint's weights take, or would take in another dtype.

    Args:
        folder: A local checkpoint; 0 is returned where it has no weights that are known here.
        dtype: "float16", "bfloat16", "float32" or "float64"; as stored, if not given.
    """
    files = [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    stored = sum(file.stat().st_size for file in files)
    if dtype not in _ITEM_BYTES or not files or files[0].suffix != ".safetensors":
        return stored
    from safetensors import safe_open

    with safe_open(files[0], framework="np") as opened:
        kinds = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (not a dict)
    return stored * _ITEM_BYTES[dtype] // max((_ITEM_BYTES.get(kind, 1) for kind in kinds), default=1)


def require_space(directory: Path, needed: int, what: str) -> None:
    """Refuse work whose result would not fit on the disk.

    Args:
        directory: Where the result goes; it need not exist yet.
        needed: Bytes.
        what: What needs them, for the message.

    Raises:
        UserError: If fewer bytes are free.
    """
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.3g} GB of disk, and {existing} has {free / 1e9:.3g} GB free; "
            "free some, or write elsewhere"
        )
