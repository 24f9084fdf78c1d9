"""Stretches of time as people write them, in seconds everywhere else.

One grammar for what a handler declares, what an agent's configuration says and what is typed after ``--since``: numbers with
units, joined (``90s``, ``1h30m``, ``500ms``, ``2d``). Where a plain number is possible too (Python, YAML), it counts seconds.
"""

import math
import re
from typing import Final

from ipe_events.errors import UsageError

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)(ms|s|m|h|d)")
_TEXT = re.compile(rf"(?:{_PART.pattern}){{1,10}}")


def seconds(value: object, *, what: str = "", zero: bool = False) -> float:
    """Seconds of a number of them, or of a text such as ``30s``, ``500ms``, ``10m``, ``1h30m``.

    Args:
        value: what somebody wrote.
        what: its name in the error; empty: the place says it.
        zero: whether nothing is a duration too.

    Raises:
        UsageError: it is no duration, negative, endless, or zero where that makes no sense.
    """
    named = f"{what} {value!r}".lstrip()
    if isinstance(value, str) and _TEXT.fullmatch(value):
        length = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        length = float(value)
    else:
        raise UsageError(f"{named} is not a duration", fix="write it as 30s, 500ms, 10m or 1h30m")
    if not (0 <= length < math.inf) or (length == 0 and not zero):
        raise UsageError(f"{named} is not positive", fix="write it as 30s, 500ms, 10m or 1h30m")
    return length


def ago(length: float) -> str:
    """A number of seconds in one unit, for people: ``12s``, ``5m``, ``3h``, ``2d``."""
    for unit in ("d", "h", "m"):
        if length >= 2 * _UNITS[unit]:
            return f"{length / _UNITS[unit]:.0f}{unit}"
    return f"{max(length, 0):.0f}s"
