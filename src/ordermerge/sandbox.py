"""Bounds on templates that come from a file: sandboxed in a process of their own, or stopped in this one.

Jinja's sandbox keeps a template from what the process can do, not from looping ten billion times or from a text of
gigabytes; only the system can stop that.
"""

import json
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError

_SECONDS, _RECORDS_A_SECOND = 2, 500  # it takes microseconds a record
_BYTES = 512 * 2**20
_MOST_CHARACTERS = 1_000_000  # of one field


def render_fields(templates: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Render templates over each of some records, with lm-eval's filter `regex_replace`.

    Args:
        templates: Jinja templates by the name of what each one makes.
        records: The records.

    Returns:
        For each record what the templates make of it.

    Raises:
        UserError: If a template is not valid, names a field that a record does not have, does what the sandbox
            forbids, or takes more time, memory or text than any template for data does.
    """
    task = pickle.dumps((dict(templates), [dict(record) for record in records]))
    bounds = [str(_SECONDS + len(records) // _RECORDS_A_SECOND), str(_BYTES + 20 * len(task))]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ordermerge.sandbox", *bounds], input=task, capture_output=True, check=False
    )
    if done.returncode:
        raise UserError(
            f"a template of {', '.join(templates)} takes more than {bounds[0]} s, or {int(bounds[1]) / 1e9:.2g} GB, "
            f"for {len(records)} records; make it shorter"
        )
    answer = json.loads(done.stdout)
    if "problem" in answer:
        raise UserError(answer["problem"])
    return list(answer["rendered"])


class OutOfBounds(Exception):
    """What ran under `bounded` took more time or memory than it may."""


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Stop the block where it takes more than 2 s of this process's time, or 0.5 GB more memory than it has.

    It is for Python code that begins no threads, such as a chat template. The time is bounded in the main thread of
    Unix systems, the memory on Linux.

    Args:
        what: What runs, for the message.

    Yields:
        Nothing.

    Raises:
        OutOfBounds: If it was stopped.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfBounds(f"{what} takes more than {_SECONDS} s; make it shorter")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
    try:
        with _bounded_memory():
            yield
    except MemoryError:
        raise OutOfBounds(f"{what} takes more than {_BYTES / 1e9:.2g} GB; make it shorter") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):  # no Linux, or another limit, which holds
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _main() -> None:
    """Render what standard input holds, and answer on standard output."""
    _bound(int(sys.argv[1]), int(sys.argv[2]))
    templates, records = pickle.load(sys.stdin.buffer)
    try:
        answer: dict[str, Any] = {"rendered": _rendered(templates, records)}
    except UserError as error:
        answer = {"problem": str(error)}
    sys.stdout.write(json.dumps(answer))


def _bound(seconds: int, size: int) -> None:
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _rendered(templates: Mapping[str, str], records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # As lm-eval's own, but for the sandbox.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, pattern, new, count=0: re.sub(pattern, new, text, count=count)
    compiled = {name: _compiled(environment, name, text) for name, text in templates.items()}
    return [{name: _text(template, name, record) for name, template in compiled.items()} for record in records]


def _compiled(environment: Any, name: str, text: str) -> Any:
    from jinja2 import TemplateError

    try:
        return environment.from_string(text)
    except (TemplateError, RecursionError) as error:
        raise UserError(f"`{name}` is no valid template: {error}") from None


def _text(template: Any, name: str, record: Mapping[str, Any]) -> str:
    from jinja2 import UndefinedError

    parts, length = [], 0
    try:
        for part in template.generate(record):
            parts.append(part)
            if (length := length + len(part)) > _MOST_CHARACTERS:
                raise UserError(f"`{name}` makes more than {_MOST_CHARACTERS:,} characters of one record")
    except UndefinedError as error:
        raise UserError(f"{error}; its records have the fields {', '.join(map(str, record))}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever an expression raises: a division by zero, what the sandbox forbids
        raise UserError(f"`{name}` cannot be rendered: {type(error).__name__}: {error}") from None
    return "".join(parts)


if __name__ == "__main__":
    _main()
