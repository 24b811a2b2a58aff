"""TrainingIdentity: K runs that differ in nothing but the order, each directory whole or absent."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train import sft as sft_module
from ordermerge.train import tokenized
from ordermerge.train.orders import epoch_fingerprints, random_orders
from ordermerge.train.sft import train_orders
from ordermerge.train.sft_config import OWNED, REFUSED, check_sft
from ordermerge.train.trainer import OrderTrainer

Write = Callable[..., Experiment]
FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def _equal(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def _order(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "order" / "order.json").read_text(encoding="utf-8"))


def _permutations(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "order" / "permutations.safetensors")


@pytest.fixture
def consumed(monkeypatch: pytest.MonkeyPatch, base: Path) -> list[list[str]]:
    """Return a list that fills, for each training, with the first four letters of the samples it meets."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    runs: list[list[str]] = []
    train, step = OrderTrainer.train, OrderTrainer.training_step

    def record_train(self: OrderTrainer, *args: Any, **named: Any) -> Any:
        runs.append([])
        return train(self, *args, **named)

    def record_step(self: OrderTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        runs[-1].extend("".join(tokenizer.convert_ids_to_tokens(row[:4].tolist())) for row in inputs["input_ids"])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(OrderTrainer, "train", record_train)
    monkeypatch.setattr(OrderTrainer, "training_step", record_step)
    return runs


def test_each_order_trains_on_its_permutations_and_is_a_plain_checkpoint(
    tmp_path: Path, base: Path, records: list[dict[str, str]], write_experiment: Write, consumed: list[list[str]]
):
    experiment = write_experiment()
    directories = train_orders(experiment, tmp_path / "run")
    assert directories == [tmp_path / "run" / "orders" / str(k) for k in range(2)]
    expected = random_orders(40, 2, 2, 0)
    names = [record["question"][:4] for record in records]
    for order, directory in enumerate(directories):
        saved = _permutations(directory)
        assert torch.equal(saved["permutations"], expected[order])
        assert torch.equal(saved["sample_ids"], torch.arange(40))
        assert consumed[order] == [names[i] for i in expected[order].flatten().tolist()]
        assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES, "order"])
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            assert json.loads((directory / name).read_text()) == json.loads((base / name).read_text())
        assert any(not torch.equal(value, _weights(base)[name]) for name, value in _weights(directory).items())
    assert not _equal(*directories)
    assert sorted(consumed[0]) == sorted(consumed[1]) == sorted(2 * names)
    assert _order(directories[0])["steps"] == _order(directories[1])["steps"] == 14
    assert not list((tmp_path / "run" / "orders").glob(".*"))


def test_the_record_tells_how_a_sub_model_was_made(tmp_path: Path, write_experiment: Write):
    (directory,) = train_orders(write_experiment(), tmp_path, only=1)
    record = _order(directory)
    assert record["epoch_fingerprints"] == epoch_fingerprints(random_orders(40, 2, 2, 0)[1])
    told = {"order": 1, "count": 2, "strategy": "random", "seed": 0, "epochs": 2, "samples": 40, "batch_size": 6}
    told |= {"dropped": 0, "truncated": 0, "empty": 0, "samples_consumed": 80, "padding_repeats": 0, "steps": 14}
    assert {name: record[name] for name in told} == told
    told = {"processes": 1, "threads": torch.get_num_threads(), "resumed_after_step": None, "checkpoints": []}
    assert {name: record[name] for name in told} == told
    assert [entry["step"] for entry in record["losses"]] == [2, 4, 6, 8, 10, 12, 14]
    mean = sum(entry["loss"] for entry in record["losses"]) / 7
    assert record["train_loss"] == pytest.approx(mean, rel=1e-5)
    assert record["losses"][-1]["loss"] < record["losses"][0]["loss"]
    assert record["versions"]["torch"] == torch.__version__
    assert len(record["dataset_fingerprint"]) == 64
    assert "count" not in record["inputs"]["orders"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_saved_in_the_dtype_that_the_experiment_says(dtype: str, tmp_path: Path, write_experiment: Write):
    experiment = write_experiment(model={"dtype": dtype}, sft={"bf16": None})
    (directory,) = train_orders(experiment, tmp_path, only=0)
    assert {value.dtype for value in _weights(directory).values()} == {getattr(torch, dtype)}
    assert json.loads((directory / "config.json").read_text())["dtype"] == dtype


def test_orders_with_one_permutation_give_the_same_bits(
    tmp_path: Path, base: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    # The base has dropout, and lacks a tensor, whose values are drawn when it is loaded.
    changed = shutil.copytree(base, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    save_file(
        {k: v for k, v in _weights(base).items() if k != "lm_head.weight"},
        changed / "model.safetensors",
        {"format": "pt"},
    )
    same = {"random": lambda n, epochs, count, seed, batch: random_orders(n, epochs, 1, seed).expand(count, -1, -1)}
    monkeypatch.setattr(tokenized, "STRATEGIES", same)
    monkeypatch.setattr(tokenized, "check_distinct", lambda *_, **_options: None)
    experiment = write_experiment(model={"path": "changed"}, orders={"count": 3})
    first, second, _ = train_orders(experiment, tmp_path / "together")
    (alone,) = train_orders(experiment, tmp_path / "alone", only=2)
    assert _equal(first, second)
    assert _equal(first, alone)


def test_parameters_that_the_base_lacks_start_alike_in_all_orders(tmp_path: Path, base: Path, write_experiment: Write):
    changed = shutil.copytree(base, tmp_path / "changed")
    save_file(
        {k: v for k, v in _weights(base).items() if k != "lm_head.weight"},
        changed / "model.safetensors",
        {"format": "pt"},
    )
    experiment = write_experiment(model={"path": "changed"}, sft={"learning_rate": 0.0})
    first, second = train_orders(experiment, tmp_path / "run")
    assert _equal(first, second)
    assert not torch.equal(_weights(first)["lm_head.weight"], _weights(base)["lm_head.weight"])


def test_dropped_samples_leave_the_others_their_rows(
    tmp_path: Path,
    records: list[dict[str, str]],
    write_experiment: Write,
    consumed: list[list[str]],
    capsys: pytest.CaptureFixture[str],
):
    lines = [dict(record) for record in records[:8]]
    lines[2]["question"] = lines[2]["question"] * 4  # 20 tokens of prompt: nothing of the answer is left
    lines[5]["answer"] = "0123456789"  # 5 + 10 + end: cut
    lines[6]["answer"] = "1234567"  # 5 + 7 + end = 13: the end alone is cut
    lines[7]["answer"] = ""
    (directory,) = train_orders(write_experiment(lines=lines, sft={"max_length": 12}), tmp_path, only=1)
    saved, record = _permutations(directory), _order(directory)
    assert saved["sample_ids"].tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert saved["permutations"].shape == (2, 7)
    assert {name: record[name] for name in ("samples", "dropped", "truncated", "empty")} == {
        "samples": 7,
        "dropped": 1,
        "truncated": 2,
        "empty": 1,
    }
    rows = saved["sample_ids"][saved["permutations"]].flatten().tolist()
    assert consumed == [[records[row]["question"][:4] for row in rows]]
    output = capsys.readouterr()
    assert "1 of 8 samples dropped" in output.err
    assert "2 of 8 samples cut to `sft.max_length`" in output.err
    assert "1 of 8 samples have an empty answer" in output.err
    assert output.out == ""


def test_completions_end_with_one_end_token_and_alone_are_learnt(
    tmp_path: Path, base: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    batches = []
    step = OrderTrainer.training_step

    def record_step(self: OrderTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        batches.append({name: value.clone() for name, value in inputs.items()})
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(OrderTrainer, "training_step", record_step)
    lines = [{"question": "ab?", "answer": "1"}, {"question": "ab?", "answer": "1<eos>"}]
    sft = {"num_train_epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    train_orders(write_experiment(lines=lines, sft=sft), tmp_path, only=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "?", "1", "<eos>"])
    assert batches[0]["input_ids"].tolist() == [ids, ids]
    assert batches[0]["labels"].tolist() == [[-100, -100, -100, *ids[3:]]] * 2


def test_chat_messages_are_trained_on_through_the_chat_template(tmp_path: Path, base: Path, write_experiment: Write):
    lines = [
        {"chat": [{"role": "user", "content": f"{letter}?"}, {"role": "assistant", "content": letter}]}
        for letter in "abcdefgh"
    ]
    data = {"prompt": None, "completion": None, "messages": "chat"}
    with pytest.raises(UserError, match=r"has no chat template, which `data.messages` needs"):
        train_orders(write_experiment(lines=lines, data=data), tmp_path)
    chatty = shutil.copytree(base, tmp_path / "chatty")
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    (chatty / "chat_template.jinja").write_text(template)
    experiment = write_experiment(lines=lines, data=data, model={"path": "chatty"})
    (directory,) = train_orders(experiment, tmp_path, only=0)
    assert (directory / "chat_template.jinja").read_text() == template
    (chatty / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UserError, match=r"`data.messages`: the tokenizer's chat template refuses a chat: roles must"):
        train_orders(experiment, tmp_path / "strict")
    assert _order(directory)["samples_consumed"] == 16


def test_token_ids_that_the_trainers_change_stay_the_bases(
    tmp_path: Path, base: Path, write_experiment: Write, capsys: pytest.CaptureFixture[str]
):
    changed = shutil.copytree(base, tmp_path / "changed")
    tokens = {"pad_token_id": None, "eos_token_id": 2, "use_cache": True}
    for name in ("config.json", "generation_config.json"):
        content = json.loads((changed / name).read_text())
        (changed / name).write_text(json.dumps({**content, **tokens}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(changed)
    (directory,) = train_orders(write_experiment(model={"path": "changed"}), tmp_path, only=0)
    config = transformers.AutoConfig.from_pretrained(directory)
    assert (config.pad_token_id, config.eos_token_id, config.use_cache) == (None, 2, True)
    generation = transformers.GenerationConfig.from_pretrained(directory)
    assert (generation.pad_token_id, generation.eos_token_id) == (None, 2)
    assert transformers.AutoTokenizer.from_pretrained(directory).pad_token is None
    assert "end with the tokenizer's '<eos>' (1), but" in capsys.readouterr().err


def test_finished_orders_are_kept_and_a_larger_count_adds_to_them(
    tmp_path: Path, write_experiment: Write, consumed: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    train_orders(write_experiment(), tmp_path, only=0)
    before = _order(tmp_path / "orders" / "0")
    directories = train_orders(write_experiment(orders={"count": 3}), tmp_path)
    assert len(directories) == 3
    assert len(consumed) == 3
    assert _order(directories[0]) == before
    assert "order_0: already trained" in capsys.readouterr().err
    for order, directory in enumerate(directories):
        assert torch.equal(_permutations(directory)["permutations"], random_orders(40, 2, 3, 0)[order])


def test_other_inputs_are_refused_by_name(tmp_path: Path, write_experiment: Write, records: list[dict[str, str]]):
    train_orders(write_experiment(), tmp_path, only=0)
    message = r"orders/0: sft.learning_rate: 0.01, now 0.1: order_0 was made with the old value. .* --force train`"
    with pytest.raises(UserError, match=message):
        train_orders(write_experiment(sft={"learning_rate": 0.1}), tmp_path)
    with pytest.raises(UserError, match=r"orders.seed: 0, now 1"):
        train_orders(write_experiment(orders={"seed": 1}), tmp_path)
    with pytest.raises(UserError, match=r"data.train: its content has changed"):
        train_orders(write_experiment(lines=records[:-1]), tmp_path)


def test_an_interrupted_order_leaves_nothing_that_looks_finished(
    tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch
):
    step, steps = OrderTrainer.training_step, []

    def break_in_the_second_order(self: OrderTrainer, *args: Any) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 40:
            raise KeyboardInterrupt
        return step(self, *args)

    experiment = write_experiment()
    with monkeypatch.context() as patch:
        patch.setattr(OrderTrainer, "training_step", break_in_the_second_order)
        with pytest.raises(KeyboardInterrupt):
            train_orders(experiment, tmp_path / "broken")
    assert [path.name for path in (tmp_path / "broken" / "orders").iterdir()] == ["0"]
    (tmp_path / "broken" / "orders" / ".1.partial").mkdir()  # as a killed process leaves it
    continued = train_orders(experiment, tmp_path / "broken")
    whole = train_orders(experiment, tmp_path / "whole")
    assert all(_equal(one, other) for one, other in zip(continued, whole, strict=True))


def test_evaluation_while_training_changes_no_weight(tmp_path: Path, write_experiment: Write):
    data = {"validation": 0.2}
    (plain,) = train_orders(write_experiment(data=data), tmp_path / "plain", only=0)
    sft = {"eval_strategy": "epoch"}
    (watched,) = train_orders(write_experiment(data=data, sft=sft), tmp_path / "watched", only=0)
    assert [entry["step"] for entry in _order(watched)["eval_losses"]] == [6, 12]
    assert _order(watched)["samples"] == 32
    assert _equal(plain, watched)


@pytest.mark.parametrize("name", sorted({*OWNED, *REFUSED}))
def test_a_field_that_would_change_the_order_or_the_layout_is_refused(name: str, write_experiment: Write):
    (problem,) = check_sft(write_experiment(sft={name: "something"}))[:1]
    assert problem.startswith(f"`sft.{name}` cannot be set: {(OWNED | REFUSED)[name]}; got 'something'")


def test_a_refused_field_may_say_what_holds_anyway(write_experiment: Write):
    assert check_sft(write_experiment(sft={"packing": False, "max_steps": -1, "shuffle_dataset": False})) == []
    assert len(check_sft(write_experiment(sft={"seed": 0, "data_seed": 0}))) == 2


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        (
            {"learning_rat": 1},
            r"`sft.learning_rat`: TRL's SFTConfig has no such field \(did you mean 'learning_rate'\?\)",
        ),
        ({"xyzzy": 1}, r"no such field; see TRL's documentation of SFTConfig"),
        ({"num_train_epochs": 1.5}, r"`sft.num_train_epochs` must be a whole number, .*; got 1.5"),
        ({"num_train_epochs": 10**9}, r"`sft.num_train_epochs` must be at most 10,000; got 1000000000"),
        ({"num_train_epochs": 0}, r"`sft.num_train_epochs` must be at least 1; got 0"),
        ({"per_device_train_batch_size": 0}, r"`sft.per_device_train_batch_size` must be at least 1; got 0"),
        ({"learning_rate": "fast"}, r"`sft.learning_rate` must be a number; got 'fast'"),
        ({"lr_scheduler_type": "bent"}, r"`sft.lr_scheduler_type` must be 'linear', .* or 'greedy'; got 'bent'"),
        ({"eval_strategy": "epoch"}, r"`sft.eval_strategy` is 'epoch', but there is no `data.validation`"),
        ({"model_init_kwargs": {"dtype": "auto"}}, r"`sft.model_init_kwargs.dtype` cannot be set: the `model` section"),
    ],
)
def test_a_wrong_field_or_value_is_named(sft: dict[str, Any], message: str, tmp_path: Path, write_experiment: Write):
    with pytest.raises(UserError, match=message):
        train_orders(write_experiment(sft=sft), tmp_path)


def test_all_problems_are_told_together(tmp_path: Path, write_experiment: Write):
    sft = {"packing": True, "seed": 3, "learning_rat": 1, "num_train_epochs": 2.5}
    with pytest.raises(UserError, match="5 problems"):
        train_orders(write_experiment(sft=sft, data={"train": "gone.jsonl"}), tmp_path)


def test_half_precision_twice_is_refused(write_experiment: Write):
    (problem,) = check_sft(write_experiment(model={"dtype": "float16"}, sft={"fp16": True}))
    assert problem == "`sft.fp16` needs weights of another dtype; set `model.dtype` to float32, or `fp16: false`"


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path, write_experiment: Write):
    (directory,) = train_orders(write_experiment(sft={"learning_rate": "1e-2"}), tmp_path / "text", only=0)
    (other,) = train_orders(write_experiment(), tmp_path / "number", only=0)
    assert _equal(directory, other)


def test_an_order_that_does_not_exist_is_refused(tmp_path: Path, write_experiment: Write):
    with pytest.raises(UserError, match=r"order 2 does not exist: `orders.count` is 2, so orders are 0 to 1"):
        train_orders(write_experiment(), tmp_path, only=2)


@pytest.mark.parametrize(
    ("sft", "message"),
    [
        (
            {"max_length": 3},
            r"no training sample is left: in all 40 the prompt alone fills `sft.max_length` \(3 tokens\)",
        ),
        (
            {"per_device_train_batch_size": 32},
            r"40 training samples do not fill one batch of 64 \(`sft.per_device_train_batch_size` x",
        ),
    ],
)
def test_data_that_gives_no_step_is_refused(sft: dict[str, Any], message: str, tmp_path: Path, write_experiment: Write):
    with pytest.raises(UserError, match=message):
        train_orders(write_experiment(sft=sft), tmp_path)
    assert not list(tmp_path.glob("orders/*"))


def test_one_of_several_gpus_is_used_without_a_launcher(
    tmp_path: Path, write_experiment: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    train_orders(write_experiment(), tmp_path / "one")
    made = sft_module.make_config

    def with_three_gpus(*args: Any, **named: Any) -> Any:
        config = made(*args, **named)
        assert config.n_gpu == 0
        config._n_gpu = 3  # what transformers sets where it sees three
        return config

    monkeypatch.setattr(sft_module, "make_config", with_three_gpus)
    capsys.readouterr()
    train_orders(write_experiment(), tmp_path / "three")
    assert capsys.readouterr().err.count("3 GPUs are visible, and one process uses one of them; `accelerate") == 1
    assert _order(tmp_path / "three" / "orders" / "0")["batch_size"] == 6
    for order in "01":
        assert _equal(tmp_path / "one" / "orders" / order, tmp_path / "three" / "orders" / order)


def test_dropped_last_batches_are_not_counted_as_consumed(tmp_path: Path, write_experiment: Write):
    (directory,) = train_orders(write_experiment(sft={"dataloader_drop_last": True}), tmp_path, only=0)
    assert _order(directory)["samples_consumed"] == 2 * 39


def test_too_few_samples_for_different_orders_are_refused(
    tmp_path: Path, write_experiment: Write, records: list[dict[str, str]]
):
    with pytest.raises(UserError, match=r"with 1 training samples there are too few different permutations"):
        sft = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
        train_orders(write_experiment(lines=records[:1], sft=sft), tmp_path)


def test_a_base_that_cannot_be_loaded_is_named(tmp_path: Path, base: Path, write_experiment: Write):
    bare = shutil.copytree(base, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"`model.path`: the model of /.*bare cannot be loaded: .*model.safetensors"):
        train_orders(write_experiment(model={"path": "bare"}), tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path, base: Path, write_experiment: Write):
    endless = shutil.copytree(base, tmp_path / "endless")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(endless)
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        train_orders(write_experiment(model={"path": "endless"}), tmp_path)
