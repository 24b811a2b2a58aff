"""Whether a task's templates can be filled from its documents: fields that are not there, or hold nothing."""

import math
from collections.abc import Iterator
from typing import Any

from ordermerge.errors import UserError
from ordermerge.eval.scoring.explain import explained

_TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice")


def template_problems(name: str, task: Any) -> list[str]:
    """Return a sentence for each template of a task that its documents cannot fill.

    Args:
        name: The task's name.
        task: lm-eval's task, loaded.
    """
    if not hasattr(getattr(task, "config", None), "doc_to_text"):
        return []  # a class of its own
    documents = task.eval_docs
    fields = dict.fromkeys(field for field, _ in _fields(task.config, documents))
    problems = [problem for field in fields if (problem := _absence(field, documents))]
    if problems or not len(documents):
        return [f"task {name!r}: {problem}" for problem in problems]
    try:
        task.doc_to_text(documents[0])
        task.doc_to_target(documents[0])
        if task.config.doc_to_choice is not None:
            task.doc_to_choice(documents[0])
    except Exception as error:  # a template is a program, and so is a function in its place
        return [f"task {name!r}: its first document cannot be made a request: {explained(error)}"]
    return []


def _fields(config: Any, documents: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields whose value a template writes out as it is, and the template's key."""
    for key in _TEMPLATES:
        value = getattr(config, key, None)
        texts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for text in texts:
            if isinstance(text, str) and text in documents.features:  # the field itself is meant
                yield text, key
            elif isinstance(text, str):
                yield from ((field, key) for field in _written_out(text, key))


def _written_out(template: str, key: str) -> Iterator[str]:
    """Yield the names within `{{ }}` that stand there alone, or before filters."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    try:
        parsed = Environment().parse(template)
    except TemplateSyntaxError as error:
        raise UserError(f"`{key}` is no valid template: {error}") from None
    for output in parsed.find_all(nodes.Output):
        for node in output.nodes:
            while isinstance(node, nodes.Filter) and node.node is not None and node.name != "default":
                node = node.node
            if isinstance(node, nodes.Name):
                yield node.name


def _absence(field: str, documents: Any) -> str | None:
    """Return which document has no such field, or nothing there that could be written out."""
    if field not in documents.features:
        return None  # set within the template; else the first document's text fails
    for number, value in enumerate(documents[field]):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            what = "nothing" if value is None else str(value)
            return (
                f"document {number} has {what} in the field `{field}`, which a template writes out; give it a text "
                "or a number, or leave the document out"
            )
    return None
