"""The one exception that means "the user can mend this": no traceback, exit status 1.

ValueError
└── UserError          one sentence, or several problems found together
"""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """One or more problems in what the user gave; its text is meant to be read by the user.

    Args:
        problems: A sentence, or several, each saying what is wrong, where, what was found and what to do.
        where: The file that all of them are in, if it is one.
    """

    def __init__(self, problems: str | Iterable[str], *, where: object = None):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        prefix = "" if where is None else f"{where}: "
        super().__init__(
            prefix + self.problems[0]
            if len(self.problems) == 1
            else f"{prefix}{len(self.problems)} problems:\n" + "\n".join(f"  - {problem}" for problem in self.problems)
        )


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or the list of names when none is near.

    Args:
        name: What the user wrote.
        known: The names that exist there.
    """
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})"
