"""A clock that stands still until a test moves it."""

from datetime import UTC, datetime, timedelta

from ipe_events.durations import seconds


class FakeClock:
    """Implements ``ipe_events.clock.Clock``.

    Args:
        start: the time it shows at first.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)) -> None:
        self._now = start
        self._elapsed = 0.0

    def now(self) -> datetime:
        """The time, aware and in UTC."""
        return self._now

    def monotonic(self) -> float:
        """Seconds that were passed by ``advance``."""
        return self._elapsed

    def advance(self, duration: float | str) -> datetime:
        """Move on by seconds, or by a text such as ``"10m"``; returns the new time."""
        length = seconds(duration)
        self._elapsed += length
        self._now += timedelta(seconds=length)
        return self._now
