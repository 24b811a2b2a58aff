"""Models that changed since a run made them are found by what reads them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from ordermerge.cli import main
from ordermerge.digests import verified
from ordermerge.errors import UserError
from ordermerge.files import file_records, write_json

Family = Callable[..., list[Path]]
NAME = "model.safetensors"


def flip(file: Path) -> None:
    """Change the last bit of a file, as a failing disk does: its size and times stay."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def trained(source: Path, folder: Path) -> Path:
    """Make of a model a sub-model with a kept checkpoint, as training leaves them."""
    shutil.copytree(source, folder)
    shutil.copytree(source, folder / "checkpoints" / "step-3")
    write_json(folder / "order" / "order.json", {"files": file_records(folder)})
    return folder


def merge(models: list[Path], out: Path) -> Result:
    recipe = out.with_suffix(".yml")
    listed = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": listed, "dtype": "float32"}))
    return CliRunner().invoke(main, ["merge", str(recipe), str(out), "--quiet"])


@pytest.mark.integration
def test_a_flipped_bit_is_not_merged(family: list[Path], tmp_path: Path) -> None:
    first, other = trained(family[1], tmp_path / "0"), family[2]
    kept = first / "checkpoints" / "step-3"
    assert merge([first, kept, other], tmp_path / "sound").exit_code == 0
    for damaged in (first, kept):
        flip(damaged / NAME)
        done = merge([damaged, other], tmp_path / "out")
        assert done.exit_code == 1
        assert f"{damaged / NAME}: is not what it was when it was made (its SHA-256 is another); restore" in done.output
        assert f"without {first / 'order' / 'order.json'} it is taken as it is" in done.output
        assert not (tmp_path / "out").exists()
        flip(damaged / NAME)
    shutil.copytree(tmp_path / "sound", tmp_path / "merged")
    flip(tmp_path / "merged" / NAME)
    assert f"{tmp_path / 'merged' / NAME}: is not" in merge([tmp_path / "merged", other], tmp_path / "out").output


@pytest.mark.integration
def test_what_has_no_digests_is_merged_and_of_an_older_version_that_is_said(family: list[Path], tmp_path: Path) -> None:
    first = trained(family[1], tmp_path / "0")
    write_json(first / "order" / "order.json", {})
    done = merge([first, family[2]], tmp_path / "out")
    assert done.exit_code == 0
    assert f"warning: {first}: its record holds no digests, so its files were not verified" in done.output
    assert f"{family[2]}: its record" not in done.output


def test_damage_is_told_in_place_of_what_it_led_to(family: list[Path], tmp_path: Path) -> None:
    model = trained(family[1], tmp_path / "0")
    flip(model / "config.json")
    with pytest.raises(UserError, match=r"config\.json: is not what it was") as caught, verified([model]):
        raise ValueError("a strange config")
    assert isinstance(caught.value.__cause__, ValueError)
    flip(model / "config.json")
    with pytest.raises(ValueError, match="another fault"), verified([model]):
        raise ValueError("another fault")
