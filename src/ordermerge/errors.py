"""The one exception that means "the user can mend this": no traceback, exit status 1.

ValueError
└── UserError          one sentence, or several problems found together

What a message quotes comes from files that anyone may have written: it is cut, and shows no control characters.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence

QUOTED = 200  # characters of a value
MESSAGE = 1900  # characters of a whole message
# What moves a terminal's cursor, its colours or its window title, or turns the direction of writing; half characters.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """One or more problems in what the user gave; its text is meant to be read by the user.

    Args:
        problems: A sentence, or several, each saying what is wrong, where, what was found and what to do.
        where: The file that all of them are in, if it is one.
    """

    def __init__(self, problems: str | Iterable[str], *, where: object = None):
        given = [problems] if isinstance(problems, str) else list(problems)
        self.problems: list[str] = [shortened(printable(problem)) for problem in given]
        prefix = "" if where is None else f"{printable(str(where))}: "
        if len(given) == 1:
            super().__init__(shortened(prefix + self.problems[0]))
            return
        lines = [f"{prefix}{len(given)} problems:", *(f"  - {problem}" for problem in self.problems)]
        shown = next((n for n in range(1, len(lines)) if len("\n".join(lines[: n + 1])) > MESSAGE), len(lines))
        if shown < len(lines):
            lines[shown:] = [f"  - ... and {len(lines) - shown} more; mend these first"]
        super().__init__("\n".join(lines))


def quoted(value: object) -> str:
    """Return a value as Python writes it, in at most `QUOTED` characters.

    Args:
        value: Anything that YAML or JSON holds; of a large one only the beginning is looked at.
    """
    try:
        return shortened(_REPR.repr(value), QUOTED)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"a {type(value).__name__} too large to show"


def shortened(text: str, length: int = MESSAGE) -> str:
    """Return a text in at most so many characters: of a longer one the beginning and the end, which says what to do.

    Args:
        text: The text.
        length: The most.
    """
    tail = length // 3
    return text if len(text) <= length else f"{text[: length - tail - 5]} ... {text[-tail:]}"


def printable(text: str) -> str:
    """Return a text whose control characters and lone surrogates are written out; new lines stay.

    Args:
        text: Anything that is to be shown.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known name, or the list of names when none is near.

    Args:
        name: What the user wrote.
        known: The names that exist there.
    """
    # The search takes time in the length of the name.
    close = difflib.get_close_matches(str(name)[:QUOTED], known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})"


def counted(number: int, what: str) -> str:
    """Return a number with what is counted: "1 epoch", "1,200 epochs".

    Args:
        number: How many.
        what: The noun, in the singular.
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share in per cent: "95 %".

    Args:
        share: From 0 to 1.
        digits: After the decimal point.
    """
    return f"{100 * share:.{digits}f} %"


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 4, QUOTED, QUOTED, QUOTED
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = 20
