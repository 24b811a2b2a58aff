"""Cards that the hub takes: what their metadata holds, and that no place on somebody's disk stands in them."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from ordermerge.commands.model_card import add_results, add_trained_card
from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.eval.scoring.saved import SavedScores
from ordermerge.eval.scoring.table import Row
from ordermerge.files import file_problems, file_records

MERGED = """---
tags:
- mergekit
- merge
---
# average

From [a paper](https://arxiv.org/abs/2203.05482), by [mergekit](https://github.com/cg123/mergekit).

```yaml
# mergekit-yaml {place}/recipes/average.yml '{place}/merges/average'
models:
- model: {place}/orders/0
```
"""


def experiment(model: str, train: str) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "model": {"path": model},
            "data": {"train": train, "prompt": "{q}", "completion": "{a}"},
            "orders": {"count": 2},
            "sft": {"learning_rate": 1e-3, "deepspeed": "/home/me/secret/ds.json"},
        }
    )


def scores(folder: Path, name: str, limit: float | None = None) -> SavedScores:
    file = folder / "results.json"
    config = {"sums": {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}}
    file.write_text(json.dumps({"results": {}, "configs": config}))
    rows = [Row(name, "sums", "acc", "none", 0.9, 0.01, True, 500, limit)]
    return SavedScores(rows=rows, results={"sums": file}, samples={}, subtasks={})


def trained(folder: Path) -> Path:
    (folder / "order").mkdir(parents=True)
    record = {"order": 0, "batch_size": 2, "dataset_fingerprint": None, "steps": 10, "samples_consumed": 20}
    more = {"seconds": 1.0, "losses": [], "eval_losses": []}
    (folder / "order" / "order.json").write_text(json.dumps(record | more))
    return folder


def checked(file: Path) -> ModelCard:
    """Return a card whose metadata is as the hub wants it."""
    card = ModelCard.load(file)
    for name in filter(None, [card.data.base_model, *(card.data.datasets or [])]):
        validate_repo_id(name)
    return card


def test_card_of_a_sub_model_names_a_local_base_in_its_text_alone(tmp_path: Path) -> None:
    folder = trained(tmp_path / "orders" / "0")
    local = experiment(str(tmp_path / "base"), str(tmp_path / "train.jsonl"))
    assert add_trained_card(folder, "order_0", "the permutations of order 0", scores(tmp_path, "order_0"), local)
    card = checked(folder / "README.md")
    assert (card.data.base_model, card.data.datasets) == (None, None)
    assert card.data.tags == ["ordermerge", "sft", "trl"]
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in card.data.eval_results] == [
        ("sums", "acc", 0.9)
    ]
    assert str(tmp_path) not in card.content
    assert "Trained from `base` on `train.jsonl`" in card.content
    assert "/home/me" not in card.content
    assert "10 optimizer steps, 20 samples" in card.content
    assert "learning_rate: 0.001" in card.content


def test_hub_ids_of_base_and_data_stand_in_the_metadata_and_a_limited_score_does_not(tmp_path: Path) -> None:
    folder = trained(tmp_path / "0")
    hub = experiment("org/model", "org/data")
    add_trained_card(folder, "order_0", "the permutations of order 0", scores(tmp_path, "order_0", 5), hub)
    card = checked(folder / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("org/model", ["org/data"])
    assert card.data.eval_results is None
    assert "NOT COMPARABLE SCORES" in card.content


@pytest.mark.parametrize(("there", "written"), [("# Mine\n", False), ("# Model Card for Model ID\n", True)])
def test_a_card_of_somebody_else_is_kept_and_an_empty_one_replaced(tmp_path: Path, there: str, written: bool) -> None:
    folder = trained(tmp_path / "0")
    (folder / "README.md").write_text(there)
    none = SavedScores(rows=[], results={}, samples={}, subtasks={})
    assert add_trained_card(folder, "order_0", "order 0", none, experiment("org/model", "org/data")) is written
    assert ((folder / "README.md").read_text() == there) is not written
    if written:  # by us, so it is written anew
        assert add_trained_card(folder, "order_0", "order 1", none, experiment("org/model", "org/data"))
        assert "its own: order 1" in (folder / "README.md").read_text()


def test_card_of_a_merge_has_the_scores_and_no_place_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(MERGED.format(place="/home/me/runs/tiny"))
    records = file_records(tmp_path)
    add_results(tmp_path, scores(tmp_path, "average"), experiment("/home/me/base model", "/home/me/train.jsonl"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.tags == ["mergekit", "merge", "ordermerge"]
    assert card.data.base_model is None  # nor is any local folder's name one that the hub knows
    assert "/home/me" not in card.content
    assert "# mergekit-yaml recipes/average.yml 'merges/average'" in card.content
    assert "https://arxiv.org/abs/2203.05482" in card.content
    assert "https://github.com/cg123/mergekit" in card.content
    assert file_problems(tmp_path, records, deep=True) == []  # a card may change; the model did not


@pytest.mark.parametrize("content", [b"\xff", b"---\n[1]\n---\n", b"---\n{\n---\n"])
def test_a_damaged_card_is_told_by_name_and_one_of_somebody_else_is_kept(content: bytes, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_bytes(content)
    hub = experiment("org/model", "org/data")
    with pytest.raises(UserError, match=rf"^{card}: no model card \(.+\); mend it, or delete it"):
        add_results(tmp_path, scores(tmp_path, "average"), hub)
    assert not add_trained_card(trained(tmp_path), "order_0", "order 0", scores(tmp_path, "order_0"), hub)
    assert card.read_bytes() == content
