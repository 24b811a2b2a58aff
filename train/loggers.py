"""Loggers such as TensorBoard and Weights & Biases, which transformers has callbacks for."""

import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ordermerge.errors import did_you_mean


def absent_loggers(report_to: str | list[str] | None) -> list[str]:
    """Return a sentence for each logger that is asked for and not installed, or unknown.

    Args:
        report_to: SFTConfig's field.
    """
    names = [report_to] if isinstance(report_to, str) else report_to or []
    known, installed = list(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    problems = []
    for name in names:
        if name not in ("all", "none", *known):
            problems.append(f"`sft.report_to`: unknown logger {name!r}{did_you_mean(name, known)}")
        elif name in known and name not in installed:
            problems.append(f"`sft.report_to`: {name} is not installed; install its package, or leave {name} out")
    return problems


class EndRun(TrainerCallback):
    """Ends Weights & Biases' run with its order: transformers leaves it open, and the next order would go on in it.

    To be added after the loggers' own callbacks.
    """

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run, if there is one."""
        wandb = sys.modules.get("wandb")
        if wandb is not None and getattr(wandb, "run", None) is not None:
            wandb.finish()
