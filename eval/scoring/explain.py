"""What went wrong, in one sentence with its remedy: unknown tasks, data that cannot be had, models that fail."""

import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ordermerge.errors import UserError, did_you_mean
from ordermerge.eval.task_data import PACK
from ordermerge.models import is_offline

LENGTH = 300
# What torch says on CPU and GPU, and accelerate when lm-eval's `batch_size: auto` found that not even 1 fits.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "No executable batch size found")
# lm-eval asserts these of a completion, without a word.
ASSERTIONS = {
    "len(continuation_enc) <= self.max_length": (
        "a text to be scored is longer than the model's context; leave such documents out, or raise `max_length` in "
        "`model_args` if the model can take more"
    ),
    "len(continuation_enc) > 0": (
        "a text to be scored has no characters, or its beginning and the end of its context are one token, so that "
        "nothing is left to score; leave such documents out, or end the context where a token ends (before a space, "
        "which then begins the text)"
    ),
}
OFFLINE = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "MaxRetryError",
    "NameResolutionError",
)


def explained(error: BaseException) -> str:
    """Return what an exception of lm-eval, or of what it calls, means to the user; one sentence.

    Args:
        error: The exception.
    """
    text = " ".join(str(error).split())
    kinds = {type(cause).__name__ for cause in _chain(error)}
    if isinstance(error, UserError):
        return text
    if isinstance(error, MemoryError) or any(phrase in text for phrase in OUT_OF_MEMORY):
        return (
            f"out of memory ({_short(text, 120)}); give a smaller `batch_size`, or `auto` for the largest that fits, "
            "a smaller `max_length` or another `dtype` in `model_args`"
        )
    if isinstance(error, OverflowError):
        return (
            "its scores overflow: it gives the texts next to no probability, as a model does whose training diverged; "
            "look at its losses (order.json), and lower `sft.learning_rate`"
        )
    if "HF_ALLOW_CODE_EVAL" in text:
        return (
            "it runs code that the model wrote; besides `confirm_run_unsafe_code` its metric wants the environment "
            "variable HF_ALLOW_CODE_EVAL=1, best inside a sandbox"
        )
    if kinds & set(OFFLINE) or (is_offline() and "Hugging Face" in text):
        return (
            "it is on the Hugging Face hub, which cannot be reached, and is not in the local cache "
            f"({type(error).__name__}: {_short(text, 120)}); use it once online, or choose what is on this machine"
        )
    if twice := re.search(r"multiple values for keyword argument '(\w+)'", text):
        return f"`{twice[1]}` is given twice, in the task's file (`dataset_kwargs`) and in `metadata`; remove one"
    if "UndefinedError" in kinds:
        return (
            f"a template names a field that the records do not have: {text}; mend `doc_to_text` or `doc_to_target`, or "
            "make the field by `fields`"
        )
    if isinstance(error, AssertionError) and not text:
        frames = traceback.extract_tb(error.__traceback__)
        text = (frames[-1].line or "") if frames else ""
        for line, sentence in ASSERTIONS.items():
            if line in text:
                return sentence
    return f"{type(error).__name__}: {_short(text)}"


def unknown_tasks(
    missing: Iterable[str], include_path: str | None, index: Mapping[str, Any], local: Mapping[str, Any]
) -> list[str]:
    """Return a sentence for each task that does not exist, and for each local file that may be the reason.

    Args:
        missing: The names.
        include_path: The user's folder of task files.
        index: All of lm-eval's entries by name.
        local: Those of the include path and of our own task files.
    """
    own = [name for name, entry in local.items() if entry.yaml_path and entry.yaml_path.parent == PACK]
    places = f"ordermerge's own ({', '.join(sorted(own))}) and lm-eval's {len(index) - len(local)} tasks"
    if include_path is not None:
        places = f"{include_path} ({', '.join(sorted(set(local) - set(own))) or 'no task'}), {places}"
    own_tasks = "" if include_path is not None else "; tasks of your own: `include_path`, the folder of their files"
    problems = [
        f"task {name!r} is unknown{_nearest(name, local) or _nearest(name, index)}; looked in {places}{own_tasks}"
        for name in missing
    ]
    return problems + _unreadable(include_path)


def _nearest(name: str, index: Mapping[str, Any]) -> str:
    if Path(name).suffix in (".yaml", ".yml"):
        return ": it looks like a file; give its folder as the include path, and the name after `task:` in it"
    hint = did_you_mean(name, list(index))
    return hint if hint.startswith(" (did you mean") else ""  # else it lists thousands of names


def _unreadable(include_path: str | None) -> list[str]:
    """Return a sentence for each file of the include path that lm-eval passes over in silence."""
    if include_path is None:
        return []
    from lm_eval.tasks.manager import load_yaml

    problems = []
    for path in sorted(Path(include_path).rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # YAML errors, a missing `include`, a root that is no mapping
            problems.append(f"{path} cannot be read as a task: {' '.join(str(error).split())}")
    named_yml = [str(path) for path in sorted(Path(include_path).rglob("*.yml"))]
    return problems + [f"{path} is not read: lm-eval looks for *.yaml; rename it" for path in named_yml]


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and those it came from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _short(text: str, length: int = LENGTH) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
