"""Chats in OpenAI's and TRL's formats: every key reaches the tokenizer's chat template, or the record is refused.

A table would fill each tool call with the other calls' arguments; a chat stays the JSON text of one record until it is
tokenised.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ordermerge.errors import UserError, quoted
from ordermerge.records import Record
from ordermerge.sandbox import OutOfBounds, bounded

CHAT = "chat"  # the column of a dataset that holds each record's chat as JSON
_MOST_CHARACTERS, _MOST_RATIO = 1_000_000, 20  # of a chat's text, and for each character of its record
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_SHAREGPT = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
# What a template may leave out without a loss: a tool's answer says by its place what it answers.
_LINKS = {"tool_call_id", "id", "index"}
# Left out of earlier turns by the templates that read them.
_THOUGHTS = {"reasoning_content", "reasoning", "thinking"}


def read_chat(record: Mapping[str, Any], field: str, where: str) -> Record:
    """Return a record's chat, and what else of the record is for the chat template, in one form.

    Args:
        record: The record.
        field: Its field that holds the messages.
        where: The record's place, for messages.

    Returns:
        `messages`, each with `role` and `content`, and `tools` and `options` (of the template) where there are such.

    Raises:
        UserError: If the chat has not the form of one, holds what is no text, or a key that training cannot honour.
    """
    if field not in record:
        raise UserError(f"{where} has no field `{field}`, which `data.messages` names (known: {', '.join(record)})")
    messages = record[field]
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: field `{field}` must be a list of chat messages; got {type(messages).__name__} "
            f"{quoted(messages)}"
        )
    for key in _MEDIA:
        if record.get(key) not in (None, [], ""):
            raise UserError(f"{where}: field `{key}` cannot be trained on: training is of text; leave the record out")
    chat: Record = {
        "messages": [_message(message, f"{where}: message {i} of `{field}`") for i, message in enumerate(messages)]
    }
    if tools := _tools(record, where):
        chat["tools"] = tools
    options = record.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"{where}: `chat_template_kwargs` must be an object; got {quoted(options)}")
    if record.get("parallel_tool_calls") is False:  # true is what a chat is without it
        options = {**options, "parallel_tool_calls": False}
    if options:
        chat["options"] = options
    if place := next(_not_finite(chat), None):
        raise UserError(f"{where}: {place} is no finite number (NaN or infinity); write a text, a number or null")
    return chat


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that are null: columnar files fill every object with the others' keys.

    Args:
        value: Anything that JSON holds.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def tokenise_chats(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str | None,
    assistant_only: bool,
    processes: int | None = None,
) -> Dataset:
    """Return a dataset whose column `chat` is replaced by `input_ids` (and `assistant_masks`, 1 where it is learned).

    Args:
        dataset: With the column `chat`.
        tokenizer: The base model's.
        template: A chat template to use instead of the tokenizer's own.
        assistant_only: Whether the assistant's messages alone are learned.
        processes: To share the work.

    Raises:
        UserError: If the chat template refuses a chat, leaves a part of it out, cannot tell what is to be learned, or
            takes more time, memory or text than any does.
    """
    try:
        return _tokenised(dataset, _Renderer(tokenizer, template), assistant_only, processes)
    except OutOfBounds as error:
        raise UserError(str(error)) from None


def _tokenised(dataset: Dataset, renderer: "_Renderer", assistant_only: bool, processes: int | None) -> Dataset:

    def tokenised(row: Record) -> Record:
        chat = json.loads(row[CHAT])
        try:
            return {**renderer.tokens(chat, assistant_only), "problem": ""}
        except UserError as error:
            return {"input_ids": [], **({"assistant_masks": []} if assistant_only else {}), "problem": str(error)}

    drop = [name for name in (CHAT, "messages") if name in dataset.column_names]
    made = dataset.map(tokenised, remove_columns=drop, num_proc=processes, desc="Tokenizing chats")
    problems = [problem for problem in made["problem"] if problem]
    if problems:
        raise UserError(problems[0] + (f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""))
    return made.remove_columns("problem")


class _Renderer:
    """A tokenizer's chat template, and what it makes of chats."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None):
        self._tokenizer, self._template = tokenizer, template
        self._takes_text = self._shows([{"role": "user", "content": "plain"}]) or not self._shows(
            [{"role": "user", "content": [{"type": "text", "text": "plain"}]}]
        )

    def tokens(self, chat: Record, assistant_only: bool) -> Record:
        """Return the tokens of a chat, and which of them are learned where that is for the template to say."""
        where, weights = chat["where"], [message.pop("weight", None) for message in chat["messages"]]
        if not self._takes_text:
            for message in chat["messages"]:
                message["content"] = [{"type": "text", "text": message["content"]}]
        self._honour(chat)
        made = self._apply(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=assistant_only)
        ids, mask = list(made["input_ids"]), list(made.get("assistant_masks") or [])
        if not assistant_only:
            if 0 in weights:
                raise UserError(
                    f"{where}: a message has `weight: 0`, which needs `sft.assistant_only_loss: true`; set it, or "
                    "leave `weight` out"
                )
            return {"input_ids": ids}
        if 1 not in mask:
            raise UserError(
                f"{where}: `sft.assistant_only_loss` finds nothing of the assistant's in this chat; a chat needs an "
                "assistant message, and the tokenizer's chat template {% generation %} around it"
            )
        return {"input_ids": ids, "assistant_masks": _weighted(mask, chat["messages"], weights, where)}

    def _honour(self, chat: Record) -> None:
        """Give the tool calls' arguments the form that the template takes, and refuse what it would leave out."""
        where, messages = chat["where"], chat["messages"]
        text = self._text_of_calls(chat)
        for number, message in enumerate(messages):
            empty = {**message, "content": "" if self._takes_text else []}
            others = [*messages[:number], empty, *messages[number + 1 :]]
            if _plain(message["content"]).strip() not in text and self._same({**chat, "messages": others}, text):
                raise UserError(
                    f"{where}: the tokenizer's chat template leaves out message {number}, of role {message['role']!r}; "
                    "leave the message out, or use a chat template that shows it"
                )
        for what, less in self._reduced(chat):
            if self._same(less, text):
                raise UserError(
                    f"{where}: the tokenizer's chat template does not read {what}; leave it out, or use a chat "
                    "template that reads it"
                )

    def _text_of_calls(self, chat: Record) -> str:
        """Return the chat's text, with the arguments of tool calls as objects, or as JSON where a template wants that.

        Raises:
            UserError: If the template refuses the chat, or writes the arguments otherwise than as JSON.
        """
        calls = [call for message in chat["messages"] for call in _functions(message)]
        refusal = UserError(
            f"{chat['where']}: the tokenizer's chat template does not write tool calls' arguments as JSON"
        )
        for write in (dict, _as_json) if calls else ():
            for call in calls:
                call["arguments"] = write(call["arguments"])
            try:
                text = self._text(chat)
            except UserError as error:
                refusal = error
            else:
                if not any(_misread(call["arguments"], text) for call in calls):
                    return text
        if calls:
            raise refusal
        return self._text(chat)

    def _reduced(self, chat: Record) -> Iterator[tuple[str, Record]]:
        """Yield each thing that the template must read, and the chat without it."""
        source = self._source(chat)
        if "tools" in chat:
            yield "`tools`", {**chat, "tools": None}
        for key in chat.get("options") or {}:
            if key not in source:  # what it does may be what happens anyway
                yield f"`{key}`", chat
        keys = {key for message in chat["messages"] for key in message} - {"role", "content"} - _LINKS
        for key in sorted(keys):
            if key in _THOUGHTS and key in source:
                continue
            kept = ("tool", "function") if key == "name" else ()
            less = [
                message if message["role"] in kept else {k: v for k, v in message.items() if k != key}
                for message in chat["messages"]
            ]
            if less != chat["messages"]:
                yield f"the messages' `{key}`", {**chat, "messages": less}

    def _source(self, chat: Record) -> str:
        return self._template or str(self._tokenizer.get_chat_template(tools=chat.get("tools")))

    def _same(self, chat: Record, text: str) -> bool:
        try:
            return self._text(chat) == text
        except UserError:  # it does read it, then
            return False

    def _shows(self, messages: list[Record]) -> bool:
        try:
            return "plain" in self._text({"messages": messages, "where": ""}).replace("'plain'", "")
        except UserError:
            return False

    def _text(self, chat: Record) -> str:
        """Return a chat's text, within bounds; of all that is asked of a chat this is the first."""
        what = f"{chat['where'] or 'a trial chat'}: `data.messages`: the tokenizer's chat template"
        with bounded(what):
            text = str(self._apply(chat, tokenize=False))
        if len(text) > _MOST_CHARACTERS + _MOST_RATIO * len(str(chat)):
            raise OutOfBounds(f"{what} makes {len(text):,} characters of it; make it shorter")
        return text

    def _apply(self, chat: Record, **named: Any) -> Any:
        options = {**(chat.get("options") or {}), **named}
        try:
            return self._tokenizer.apply_chat_template(
                chat["messages"], tools=chat.get("tools"), chat_template=self._template, **options
            )
        except (OutOfBounds, MemoryError):
            raise
        except Exception as error:  # a template is a program: it raises what it likes, and what Jinja and Python do
            reason = " ".join(str(error).split())
            raise UserError(
                f"{chat['where']}: `data.messages`: the tokenizer's chat template refuses a chat: {reason}"
            ) from error


def _message(message: Any, where: str) -> Record:
    if isinstance(message, dict) and "from" in message and "role" not in message:  # ShareGPT's
        role = _SHAREGPT.get(message["from"])
        if role is None or "value" not in message:
            raise UserError(
                f"{where}: of ShareGPT's form, `from` ({', '.join(_SHAREGPT)}) and `value` are read; got "
                f"{quoted(message)}; write `role` and `content`"
            )
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        message = {"role": role, "content": message["value"], **rest}
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"{where} must be an object with `role` and `content`; got {quoted(message)}")
    made = {key: value for key, value in message.items() if value is not None}
    if "function_call" in made:  # what OpenAI had before tool calls
        made["tool_calls"] = [{"type": "function", "function": made.pop("function_call")}]
    if "tool_calls" in made:
        made["tool_calls"] = _tool_calls(made["tool_calls"], where)
    if not made.get("tool_calls", True):
        del made["tool_calls"]
    made["content"] = _content(made.get("content"), "tool_calls" in made, where)
    weight = made.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise UserError(f"{where}: `weight` must be 0 or 1; got {quoted(weight)}")
    if made["role"] != "assistant":
        if weight:
            raise UserError(f"{where}: only an assistant message is learned; remove `weight` of role {made['role']!r}")
        made.pop("weight", None)
    return made


def _content(content: Any, has_calls: bool, where: str) -> str:
    """Return the text of a content: a text, or parts that are all text."""
    if content is None and has_calls:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        given = "none" if content is None else f"{type(content).__name__} {quoted(content)}"
        raise UserError(f"{where}: `content` must be text, or a list of parts that are text; got {given}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            raise UserError(f"{where}: `content` holds a part that is no text; training is of text; got {quoted(part)}")
        texts.append(text)
    return "".join(texts)


def _tool_calls(calls: Any, where: str) -> list[Record]:
    """Return tool calls with their arguments as objects; OpenAI writes these as JSON text."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UserError(f"{where}: `tool_calls` must be a list of objects; got {quoted(calls)}")
    made = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(f"{where}: a tool call needs a `function` with a `name`; got {quoted(call)}")
        function = {**function, "arguments": _from_json(function.get("arguments"), where)}
        made.append({**call, "function": function} if "function" in call else function)
    return made


def _from_json(arguments: Any, where: str) -> Any:
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments or {}
    except ValueError as error:
        raise UserError(
            f"{where}: a tool call's `arguments` are not valid JSON ({error}): {quoted(arguments)}"
        ) from None
    if not isinstance(read, dict):
        raise UserError(f"{where}: a tool call's `arguments` must be an object, or its JSON; got {quoted(arguments)}")
    return read


def _tools(record: Mapping[str, Any], where: str) -> list[Any]:
    """Return a record's tools, also those in OpenAI's older form, `functions`."""
    tools, functions = record.get("tools") or [], record.get("functions") or []
    try:
        tools, functions = (json.loads(value) if isinstance(value, str) else value for value in (tools, functions))
    except ValueError as error:
        raise UserError(f"{where}: `tools` are not valid JSON: {error}") from None
    for value in (tools, functions):
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UserError(f"{where}: `tools` must be a list of objects; got {quoted(value)}")
    return [*tools, *({"type": "function", "function": function} for function in functions)]


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _not_finite(item, f"{place}.{key}" if place else f"`{key}`")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def _functions(message: Record) -> list[Record]:
    return [call.get("function", call) for call in message.get("tool_calls", ())]


def _as_json(value: Record) -> str:
    return json.dumps(value, ensure_ascii=False)


def _misread(arguments: Any, text: str) -> bool:
    """Return whether a text shows arguments as Python writes them, or their JSON quoted once more."""
    if isinstance(arguments, str):
        return arguments != "{}" and json.dumps(arguments, ensure_ascii=False) in text
    return bool(arguments) and repr(arguments) in text


def _plain(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _weighted(mask: list[int], messages: list[Record], weights: list[int | None], where: str) -> list[int]:
    """Return a mask without the tokens of the assistant's messages of weight 0.

    Each of the assistant's messages is one run of ones, as the next one's beginning is not learned.
    """
    wanted = [weight for message, weight in zip(messages, weights, strict=True) if message["role"] == "assistant"]
    if 0 not in wanted:
        return mask
    if not any(weight in (None, 1) for weight in wanted):
        raise UserError(
            f"{where}: every assistant message has `weight: 0`, so nothing is learned; leave the record out"
        )
    runs = [(bit, len(list(run))) for bit, run in itertools.groupby(mask)]
    if sum(bit for bit, _ in runs) != len(wanted):
        raise UserError(
            f"{where}: `weight: 0` cannot be honoured, as the chat template does not keep the assistant's "
            f"{len(wanted)} messages apart; leave the record out"
        )
    left = iter(wanted)
    return [bit and int(kept) for bit, length in runs for kept in [not bit or next(left) != 0] for _ in range(length)]
