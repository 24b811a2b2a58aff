"""What the commands share: options, lm-eval's own among them, and how a user's mistake is told."""

import functools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ordermerge.errors import UserError, printable, shortened

DEBUG = "ORDERMERGE_DEBUG"  # environment variable: show tracebacks
INTERRUPTED = 130  # the exit status, as shells have it
# Commands that do nothing twice.
_GO_ON = {"run", "train", "frank_wolfe", "evaluate", "soup", "pareto", "losses", "curve"}


def any_path(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file or folder, where hub ids may stand too.

    Args:
        context: click's context.
        parameter: The parameter.
        incomplete: What was typed of it.
    """
    return [CompletionItem(incomplete, type="file")]


RUNS_DIR = click.option(
    "--runs-dir", default="runs", show_default=True, type=click.Path(path_type=Path), help="Holds the run directories."
)

SET = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key otherwise than the file does, such as sft.learning_rate=1e-4; repeatable.",
)


def _set_waiting(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    from ordermerge.locks import waits

    waits.set(value)


WAIT = click.option(
    "--wait",
    is_flag=True,
    expose_value=False,
    callback=_set_waiting,
    help="Wait for another process that makes the same; else this one leaves.",
)

JSON = click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value="-",
    type=click.Path(allow_dash=True, path_type=Path),
    help="Write the numbers to this file too; without a name, print them in place of the tables.",
)

# lm-eval's own fields, less those that `config.schema` says are ours (a test compares them): asking lm-eval for them
# here would cost `--help` its speed. They may be written with lm-eval's underscores.
LM_EVAL_SPELLING = {"token_normalize_func": lambda name: name.replace("_", "-")}
_LM_EVAL_LETTERS = {
    **{"-C": "config", "-c": "use_cache", "-s": "log_samples", "-E": "samples"},
    **{"-v": "verbosity", "-w": "write_out", "-x": "predict_only"},
}
EVALUATION_OPTIONS = (
    click.option("--tasks", "-t", required=True, help="lm-eval task names, comma-separated; `list` prints them."),
    click.option("--include-path", shell_complete=any_path, help="Folder of local lm-eval task files."),
    click.option("--metadata", default="", help="For the tasks' data readers: key=value,key=value, or JSON."),
    click.option("--model", "-M", default="hf", show_default=True, help='lm-eval\'s model backend, such as "vllm".'),
    click.option("--model-args", "-a", default="", help="Further backend arguments: key=value,key=value, or JSON."),
    click.option("--batch-size", "-b", default="1", show_default=True, help='A number, or "auto".'),
    click.option("--max-batch-size", type=int, help='The largest that "auto" may choose.'),
    click.option("--device", help='Such as "cuda:0" or "cpu".'),
    click.option("--num-fewshot", "-f", type=int, help="Examples before each question."),
    click.option(
        "--limit", "-L", type=float, help="Score only so many documents of each task (for trying things out)."
    ),
    click.option("--gen-kwargs", default="", help="Generation arguments: key=value,key=value, or JSON."),
    click.option(
        "--apply-chat-template",
        is_flag=False,
        flag_value="true",
        help="Wrap requests in the model's chat template, or in that of the name given.",
    ),
    click.option(
        "--fewshot-as-multiturn",
        type=bool,
        is_flag=False,
        flag_value=True,
        help="Examples as turns of a chat (default).",
    ),
    click.option("--system-instruction", help="Text at the start of every request."),
    click.option("--trust-remote-code", is_flag=True, help="Allow models to bring code of their own."),
    click.option("--confirm-run-unsafe-code", is_flag=True, help="Allow tasks that run model-written code."),
)


class LmEvalCommand(click.Command):
    """A command with lm-eval's options, which says why it has not those that are decided here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments as click does.

        Args:
            ctx: click's context.
            args: The arguments.

        Raises:
            click.UsageError: As click does; for an option of lm-eval's with the reason.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from ordermerge.config.schema import EVALUATION_OWNED  # not at the top: `--help` is to be quick

            given = error.option_name
            if why := EVALUATION_OWNED.get(_LM_EVAL_LETTERS.get(given, given.lstrip("-").replace("-", "_"))):
                raise click.UsageError(f"{given} of lm-eval cannot be set: {why}; leave it out", ctx) from None
            raise


def names(text: str) -> list[str]:
    """Return the names of a comma-separated list.

    Args:
        text: The list.
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add lm-eval's own options to a command.

    Args:
        command: What click is to decorate.
    """
    for option in reversed(EVALUATION_OPTIONS):
        command = option(command)
    return command


def give_json(value: Any, file: Path | None) -> bool:
    """Write a command's numbers where `--json` says.

    Args:
        value: Anything `json` takes.
        file: What the option holds: a file, "-" for standard output, or None.

    Returns:
        Whether they were printed, in place of the tables.
    """
    import json

    from ordermerge.files import write_json

    if file is None:
        return False
    if str(file) != "-":
        write_json(file, value)
        return False
    click.echo(json.dumps(value, indent=2, default=str))
    return True


def user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a user's mistake into one clear message and exit status 1.

    Args:
        command: The command's function.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            goes_on = "What is finished is kept, and the same command goes on from there."
            begins = "Nothing half-made is left; the same command begins anew."
            click.echo(f"\nInterrupted. {goes_on if command.__name__ in _GO_ON else begins}", err=True)
            raise SystemExit(INTERRUPTED) from None
        except Exception as error:
            # safetensors says "no space left" and the like by an exception of its own; importing it here takes time.
            from ordermerge.files import is_write_problem, write_problem

            if not isinstance(error, UserError) and is_write_problem(error, Path("/")):
                raise click.ClickException(shortened(printable(write_problem(error, Path.cwd())))) from error
            if isinstance(error, (UserError, OSError)) or type(error).__name__ == "SafetensorError":
                if os.environ.get(DEBUG):
                    traceback.print_exc()
                raise click.ClickException(shortened(printable(str(error)))) from error
            raise

    return wrapped
