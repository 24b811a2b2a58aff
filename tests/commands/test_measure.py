"""The data that losses are taken on: the tokens of every sample, as they were prepared, in little memory."""

import dataclasses

from datasets import Dataset, concatenate_datasets

from ordermerge.commands.losses import data_fingerprint
from ordermerge.commands.measure import splits_of
from ordermerge.train.tokenized import Tokenised


def test_splits_hold_the_tokens_of_the_prepared_data() -> None:
    rows = {"sample_id": [3, 5, 6], "input_ids": [[1, 2, 3], [4], [5, 6]], "labels": [[-100, 2, 3], [4], [-100, 6]]}
    data = Dataset.from_dict(rows)
    # As filters leave data: a choice of rows, in several pieces.
    chosen = concatenate_datasets([data.select([2, 0]), data.select([1])])
    train, validation = splits_of(Tokenised(chosen, data, ""))
    assert (train.name, train.sample_ids, validation.sample_ids) == ("train", [6, 3, 5], [3, 5, 6])
    assert [row.tolist() for row in train.input_ids] == [[5, 6], [1, 2, 3], [4]]
    assert [row.tolist() for row in train.labels] == [[-100, 6], [-100, 2, 3], [4]]
    assert [row.tolist() for row in validation.input_ids] == rows["input_ids"]


def test_the_fingerprint_is_of_tokens_labels_and_ids() -> None:
    rows = {"sample_id": [0], "input_ids": [[1, 2]], "labels": [[1, 2]]}
    (split,) = splits_of(Tokenised(Dataset.from_dict(rows), None, ""))
    others = [
        {"sample_id": [1], "input_ids": [[1, 2]], "labels": [[1, 2]]},
        {"sample_id": [0], "input_ids": [[1, 3]], "labels": [[1, 2]]},
        {"sample_id": [0], "input_ids": [[1, 2]], "labels": [[-100, 2]]},
    ]
    found = [data_fingerprint(splits_of(Tokenised(Dataset.from_dict(other), None, ""))) for other in others]
    renamed = data_fingerprint([dataclasses.replace(split, name="validation")])
    assert len({data_fingerprint([split]), renamed, *found}) == 5
