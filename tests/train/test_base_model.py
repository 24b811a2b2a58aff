"""The base model: what identifies it is what training reads of it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file

from ordermerge import files
from ordermerge.config.schema import Experiment
from ordermerge.train.base_model import base_inputs

Write = Callable[..., Experiment]


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "copied")


def test_a_base_that_was_only_stored_anew_is_the_same(
    copied: Path, base: Path, tmp_path: Path, write_experiment: Write
):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(copied, max_shard_size="20KB")
    (copied / "model.safetensors").unlink()
    (copied / "README.md").write_text("read by nobody")
    shards = list(copied.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert base_inputs(write_experiment(model={"path": "copied"})) == base_inputs(write_experiment())
    # read once: the digests of the files are known by then
    known = files.digests.get()
    assert {path: known[str(path)]["digest"] for path in shards} == {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards
    }


@pytest.mark.parametrize("change", ["weight", "name", "config", "tokenizer", "generation"])
def test_what_training_reads_makes_another_base(change: str, copied: Path, write_experiment: Write):
    before = base_inputs(write_experiment(model={"path": "copied"}))
    weights, config = load_file(copied / "model.safetensors"), json.loads((copied / "config.json").read_text())
    if change == "weight":
        weights["lm_head.weight"][0, 0] += 1
    if change == "name":
        weights["other"] = weights.pop("lm_head.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    if change == "config":
        (copied / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    if change == "tokenizer":
        (copied / "tokenizer_config.json").write_text("{}")
    if change == "generation":
        (copied / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert base_inputs(write_experiment(model={"path": "copied"})) != before
