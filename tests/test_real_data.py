"""The whole chain on a real pretrained model and real instructions, where they are at hand.

They are not part of this project: `../shared/data` beside the checkout holds TinyStories-656K and GPTeacher.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
import yaml
from click.testing import CliRunner

from ordermerge.cli import main
from ordermerge.eval.scoring.saved import load_rows

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL = SHARED / "models" / "tinystories-656k"
RECORDS = SHARED / "gpteacher" / "roleplay-simple-deduped-roleplay-instruct.json"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not RECORDS.exists(), reason=f"no real data at {SHARED}"),
    pytest.mark.skipif(not MODEL.exists(), reason=f"no real model at {MODEL}"),
]

TASK = """
task: roleplay
dataset_path: json
dataset_kwargs: {data_files: {test: HELD_OUT}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{response}}"
metric_list: [{metric: bits_per_byte}]
metadata: {version: 1.0}
"""


def run(*arguments: str | Path) -> None:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)


def test_fine_tuning_lowers_real_held_out_loss_and_so_does_the_merge(tmp_path: Path) -> None:
    records = json.loads(RECORDS.read_text())
    (tmp_path / "train.json").write_text(json.dumps(records[:256]))
    (tmp_path / "held_out.jsonl").write_text("\n".join(json.dumps(record) for record in records[-48:]))
    base = tmp_path / "tinystories"
    # The published file holds the tied embedding under the name of its other end, where mergekit does not look for it.
    transformers.AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(base)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "roleplay.yaml").write_text(TASK.replace("HELD_OUT", str(tmp_path / "held_out.jsonl")))
    experiment = {
        "name": "roleplay",
        "model": {"path": "tinystories", "dtype": "float32"},
        "data": {"train": "train.json", "prompt": "{instruction} {input}\n", "completion": "{response}"},
        "orders": {"count": 2},
        "sft": {
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "max_length": 256,
            "bf16": False,
            "gradient_checkpointing": False,
        },
        "merges": {"resampled": {"merge_method": "parameter_selection_resample"}},
    }
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(experiment))
    run("run", tmp_path / "experiment.yml", "--runs-dir", tmp_path / "runs")
    directory = tmp_path / "runs" / "roleplay"

    merged = tmp_path / "merged"
    mergekit_yaml = Path(sys.executable).with_name("mergekit-yaml")
    subprocess.run([mergekit_yaml, directory / "recipes" / "resampled.yml", merged], cwd=tmp_path, check=True)
    weights = [folder / "model.safetensors" for folder in (merged, directory / "merges" / "resampled")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    models = {"base": base, "order_0": directory / "orders" / "0", "order_1": directory / "orders" / "1"}
    out = tmp_path / "eval"
    options = ["--tasks", "roleplay", "--include-path", tmp_path / "tasks", "--out", out, "--batch-size", "16"]
    run("eval", *models.values(), merged, *options)
    loss = {row.model: row.value for row in load_rows(out) if row.metric == "bits_per_byte"}
    assert loss.keys() == {base.name, "roleplay-orders-0", "roleplay-orders-1", "merged"}
    assert all(math.isfinite(value) for value in loss.values())
    before = loss.pop(base.name)
    assert all(value < before for value in loss.values()), (before, loss)
