from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ordermerge.errors import UserError
from ordermerge.files import checkpoint_bytes, require_space


def test_checkpoint_bytes_are_the_files_or_scaled_by_dtype(
    make_family: Callable[..., list[Path]], tmp_path: Path
) -> None:
    (base,) = make_family(count=0, dtype=torch.bfloat16)
    stored = (base / "model.safetensors").stat().st_size
    assert checkpoint_bytes(base) == checkpoint_bytes(base, "bfloat16") == stored
    assert checkpoint_bytes(base, "float32") == 2 * stored
    assert checkpoint_bytes(tmp_path) == 0
    assert checkpoint_bytes(tmp_path / "no", "float32") == 0
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    assert checkpoint_bytes(tmp_path, "float32") == 5


def test_too_little_space_is_said_with_both_numbers(tmp_path: Path) -> None:
    require_space(tmp_path / "new" / "folder", 1, "a merge")
    with pytest.raises(UserError, match=rf"^a merge needs 1e\+06 GB of disk, and {tmp_path} has .* GB free; free some"):
        require_space(tmp_path / "new" / "folder", 10**15, "a merge")
