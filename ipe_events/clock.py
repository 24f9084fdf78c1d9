"""The one place that reads the wall clock.

Everything that needs the time takes a ``Clock``: tests and back-tests hand in their own, and a linter rule keeps
``time.time`` and ``datetime.now`` out of every other module. Durations between two moments of one process come from
``Clock.monotonic``; the wall clock only dates things.
"""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What code that needs the time asks for."""

    def now(self) -> datetime:
        """The time, aware and in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time, aware and in UTC."""
        return datetime.now(UTC)  # noqa: TID251 - this is the one place

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment."""
        return time.monotonic()


SYSTEM: Clock = SystemClock()
"""The default wherever a ``Clock`` can be passed."""


def rfc3339(moment: datetime) -> str:
    """``moment`` as Kubernetes and CloudEvents write it, in UTC with microseconds: ``2026-11-22T21:51:09.000123Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
