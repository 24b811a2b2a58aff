"""Chats: every key is honoured or its record refused; what is learned is what the record says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from ordermerge.config.schema import Experiment
from ordermerge.errors import UserError
from ordermerge.train.samples import load_samples
from ordermerge.train.tokenized import data_trainer

Write = Callable[..., Experiment]
END = "{{ eos_token }}"
PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}" + END + "{% endfor %}"
LEARNED = (
    "{% for m in messages %}{{ m.role[0] }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    + END
    + "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role[0] }}:"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ m.content }}{% endfor %}"
)
AS_TEXT = CALLS.replace("arguments | tojson", "arguments")
PARTS = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endfor %}"
)
USER, ASSISTANT = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}


def calling(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
        **more,
    }


@pytest.fixture
def prepared(write_experiment: Write, tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
    """A function that returns the text of each record as it is trained on, and the part of it that is learned."""

    def prepare(template: str, *records: dict[str, Any], **sft: Any) -> list[tuple[str, str]]:
        data = {"prompt": None, "completion": None, "messages": "messages"}
        experiment = write_experiment(lines=list(records), data=data, sft=sft)
        tokenizer = character_tokenizer()
        tokenizer.chat_template = template
        rows = data_trainer(experiment, load_samples(experiment), tokenizer, tmp_path).train_dataset
        return [
            tuple(
                tokenizer.decode([i for i, label in zip(r["input_ids"], labels, strict=True) if label != -100])
                for labels in (r["input_ids"], r["labels"])
            )
            for r in rows
        ]

    return prepare


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that loses nothing: one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)} | {"<eos>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


@pytest.mark.parametrize("template", [CALLS, AS_TEXT])
def test_each_call_has_its_own_arguments_as_written(template: str, prepared: Callable[..., Any]):
    records = [
        {"messages": [USER, calling({"city": "Pa'ris"})]},
        {"messages": [USER, calling({"x": 1.123456789012345, "y": None, "z": [1, "2"]})]},
        {"messages": [USER, calling('{"n": 12345678901234567890}')]},
    ]
    texts = [text for text, _ in prepared(template, *records)]
    assert texts == [
        'u:a ba:f{"city": "Pa\'ris"}',
        'u:a ba:f{"x": 1.123456789012345, "y": null, "z": [1, "2"]}',
        'u:a ba:f{"n": 12345678901234567890}',
    ]


def test_openais_older_functions_are_tools(prepared: Callable[..., Any]):
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    record = {"messages": [USER, call], "functions": [{"name": "f"}]}
    assert prepared(CALLS, record)[0][0] == '[{"type": "function", "function": {"name": "f"}}]u:a ba:f{}'


def test_what_columnar_files_add_is_taken_away(prepared: Callable[..., Any], write_experiment: Write, tmp_path: Path):
    rows = [{"messages": [USER, calling({"x": 1})]}, {"messages": [USER, calling({"y": 2})]}]
    Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    data = {"train": "d.parquet", "prompt": None, "completion": None, "messages": "messages"}
    chats = load_samples(write_experiment(data=data)).train["chat"]
    assert ['"arguments": {"x": 1}' in chat for chat in chats] == [True, False]
    assert ['"arguments": {"y": 2}' in chat for chat in chats] == [False, True]


def test_a_message_of_weight_0_is_not_learned(prepared: Callable[..., Any]):
    chat = [USER, {**ASSISTANT, "weight": 0}, USER, {"role": "assistant", "content": "d", "weight": 1}]
    learned = prepared(LEARNED, {"messages": chat}, {"messages": [USER, ASSISTANT]}, assistant_only_loss=True)
    assert learned == [("u:a ba:c<eos>u:a ba:d<eos>", "d<eos>"), ("u:a ba:c<eos>", "c<eos>")]


def test_contents_in_parts_are_their_text(prepared: Callable[..., Any]):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    records = [{"messages": [{**USER, "content": parts}, ASSISTANT]}, {"messages": [USER, ASSISTANT]}]
    assert prepared(PLAIN, *records) == [("u:a b<eos>a:c<eos>",) * 2] * 2
    assert prepared(PARTS, *records) == [("a bc",) * 2] * 2


def test_sharegpts_form_is_read(prepared: Callable[..., Any]):
    chat = [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]
    assert prepared(PLAIN, {"messages": chat}) == [("u:a b<eos>a:c<eos>",) * 2]


def test_template_options_reach_the_template(prepared: Callable[..., Any]):
    template = "{% if think %}(think){% endif %}" + PLAIN
    records = [{"messages": [USER], "chat_template_kwargs": {"think": yes}} for yes in (True, False)]
    assert [text for text, _ in prepared(template, *records)] == ["(think)u:a b<eos>", "u:a b<eos>"]


@pytest.mark.parametrize(
    ("template", "record", "message"),
    [
        (PLAIN, {"messages": [{**USER, "content": 5}]}, r"message 0 .*`content` must be text, .*got int 5"),
        (PLAIN, {"messages": [USER, {**ASSISTANT, "content": None}]}, r"message 1 .*`content` must be text.*got none"),
        (PLAIN, {"messages": [{**USER, "content": [{"type": "image"}]}]}, r"holds a part that is no text"),
        (PLAIN, {"messages": [USER], "images": ["x.png"]}, r"field `images` cannot be trained on"),
        (PLAIN, {"messages": [USER], "tools": [{"name": "f"}]}, r"does not read `tools`"),
        (PLAIN, {"messages": [USER], "tools": "{"}, r"`tools` are not valid JSON"),
        (PLAIN, {"messages": [USER], "parallel_tool_calls": False}, r"does not read `parallel_tool_calls`"),
        (PLAIN, {"messages": [USER], "chat_template_kwargs": {"x": 1}}, r"does not read `x`"),
        (PLAIN, {"messages": [{**USER, "name": "d"}]}, r"does not read the messages' `name`"),
        (PLAIN, {"messages": [USER, calling({"x": 1})]}, r"does not read the messages' `tool_calls`"),
        (CALLS, {"messages": [USER, calling("{x")]}, r"message 1 .*`arguments` are not valid JSON .*\{x"),
        (CALLS, {"messages": [USER, calling([1])]}, r"`arguments` must be an object, or its JSON; got \[1\]"),
        (CALLS, {"messages": [USER, calling({"x": float("nan")})]}, r"arguments\.x is no finite number"),
        (PLAIN, {"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, r"`weight` must be 0 or 1; got 0\.5"),
        (PLAIN, {"messages": [USER, {**ASSISTANT, "weight": 0}]}, r"which needs `sft.assistant_only_loss: true`"),
        (PLAIN, {"messages": [{**USER, "weight": 1}]}, r"only an assistant message is learned"),
        (
            "{% if messages[0].role == 'tool' %}{{ raise_exception('no, thanks') }}{% endif %}" + PLAIN,
            {"messages": [{**USER, "role": "tool"}]},
            r"refuses a chat: no, thanks",
        ),
        ("{{ messages[0].content + 1 }}", {"messages": [USER]}, r"refuses a chat: can only concatenate"),
        ("{{ messages[0].content }}", {"messages": [USER, {**USER, "content": "z"}]}, r"leaves out message 1, of role"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(template: str, record: Any, message: str, prepared: Callable[..., Any]):
    with pytest.raises(UserError, match=rf"train\.jsonl: record \d: .*{message}"):
        prepared(template, {"messages": [{**USER}]}, record)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", r"takes more than 0\.5 s"),
        ("{{ 'a' * 10**10 }}", r"takes more than 0\.54 GB"),
        ("{% for i in range(99999) %}{{ '12345678901' }}{% endfor %}", r"makes 1,\d{3},\d{3} characters of it"),
    ],
)
@pytest.mark.parametrize("always", [False, True])
def test_a_template_out_of_bounds_ends_in_one_sentence(
    template: str, message: str, always: bool, prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ordermerge.sandbox._SECONDS", 0.5)
    if not always:
        template = "{% if 'z' in messages[0].content %}" + template + "{% endif %}" + PLAIN
    place = "a trial chat" if always else r"/.*/train\.jsonl: record 1"
    with pytest.raises(UserError, match=rf"^{place}: .*chat template {message}; make it shorter$"):
        prepared(template, {"messages": [USER]}, {"messages": [{**USER, "content": "z"}]})


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([USER, {**ASSISTANT, "weight": 0}], r"every assistant message has `weight: 0`"),
        ([USER], r"`sft.assistant_only_loss` finds nothing of the assistant's in this chat"),
    ],
)
def test_a_chat_with_nothing_to_learn_is_refused(chat: Any, message: str, prepared: Callable[..., Any]):
    with pytest.raises(UserError, match=rf"record 0: {message}"):
        prepared(LEARNED, {"messages": chat}, assistant_only_loss=True)


def test_plain_chats_are_tokenised_as_trl_does_it(write_experiment: Write, tmp_path: Path, base: Path):
    chats = [[USER, ASSISTANT], [USER, ASSISTANT, USER, {**ASSISTANT, "content": "def"}]]
    tokenizer = character_tokenizer()
    tokenizer.chat_template = LEARNED
    data = {"prompt": None, "completion": None, "messages": "chat"}
    experiment = write_experiment(lines=[{"chat": c} for c in chats], data=data, sft={"assistant_only_loss": True})
    ours = data_trainer(experiment, load_samples(experiment), tokenizer, tmp_path).train_dataset
    args = SFTConfig(output_dir=str(tmp_path), assistant_only_loss=True, bf16=False, use_cpu=True, report_to="none")
    stock = SFTTrainer(
        str(base), args, train_dataset=Dataset.from_dict({"messages": chats}), processing_class=tokenizer
    )
    for column in ("input_ids", "labels"):
        assert ours[column][:] == stock.train_dataset[column][:]
