"""When a handler itself is broken rather than an event: failures across lanes with no success between.

One poisonous object fails alone while others succeed: it becomes a dead letter. When the database behind a handler is gone,
*every* object fails, and retry limits would empty the stream into the dead letters. So the runtime counts how many different
lanes failed since anything last succeeded; at ``lanes`` of them the handler pauses and tries a single event now and then.
"""


class Breaker:
    """Pure bookkeeping of failures.

    Args:
        lanes: how many different lanes must fail in a row.
        first: seconds before the first probe.
        ceiling: longest wait between probes, in seconds.
    """

    def __init__(self, *, lanes: int = 5, first: float = 5.0, ceiling: float = 300.0) -> None:
        self._limit = lanes
        self._first = first
        self._ceiling = ceiling
        self._failing: set[bytes | str] = set()
        self._probes = 0
        self.paused = False

    def failed(self, lane: bytes | str) -> bool:
        """Note a failure; True when it is the one that pauses the handler."""
        if self.paused:
            return False  # a probe, or a call that was at work when the handler was paused
        self._failing.add(lane)
        self.paused = len(self._failing) >= self._limit
        return self.paused

    def probing(self) -> None:
        """Note that a probe begins."""
        self._probes += 1

    def succeeded(self) -> bool:
        """Note a success; True when it ends a pause."""
        resumed = self.paused
        if self._failing:
            self._failing.clear()
        self._probes = 0
        self.paused = False
        return resumed

    @property
    def probe_after(self) -> float:
        """Seconds until the next probe."""
        return min(self._ceiling, self._first * 2.0 ** min(self._probes, 32))
