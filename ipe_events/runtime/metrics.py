"""A handler's figures: rate, errors, duration and lag, per declared function."""

from ipe_events.telemetry.metrics import Cell, counter, gauge, histogram

RECEIVED = counter("ipe_handler_received_total", "Events that reached a handler's consumer.", ("handler",))
SETTLED = counter(
    "ipe_handler_settled_total",
    "Events by how they ended: acked, skipped, filtered, stale, superseded, rejected, dead.",
    ("handler", "outcome"),
)
FAILED = counter("ipe_handler_failed_total", "Calls that raised an exception or took too long.", ("handler", "error"))
RETRIED = counter("ipe_handler_retried_total", "Events that a handler asked to see again later.", ("handler",))
PUBLISHED = counter("ipe_handler_published_total", "Payloads and commands that handlers published.", ("handler",))
DURATION = histogram("ipe_handler_duration_seconds", "Time from call to settled, without waiting in the lane.", ("handler",))
LAG = gauge("ipe_handler_lag_seconds", "Age of the event received last; 0 when none came since the last look.", ("handler",))
WAITING = gauge("ipe_handler_waiting", "Events in memory that are not settled.", ("handler",))
PAUSED = gauge("ipe_handler_paused", "1 while a handler is paused because everything fails.", ("handler",))


class Figures:
    """The cells of one declared function, bound once."""

    __slots__ = ("duration", "handler", "lag", "outcomes", "paused", "published", "received", "retried", "waiting")

    def __init__(self, handler: str) -> None:
        self.handler = handler
        self.received = RECEIVED.labels(handler)
        self.retried = RETRIED.labels(handler)
        self.published = PUBLISHED.labels(handler)
        self.duration = DURATION.labels(handler)
        self.lag = LAG.labels(handler)
        self.waiting = WAITING.labels(handler)
        self.paused = PAUSED.labels(handler)
        self.outcomes = {
            outcome: SETTLED.labels(handler, outcome)
            for outcome in ("acked", "skipped", "filtered", "stale", "superseded", "rejected", "dead")
        }

    def failed(self, error: BaseException) -> Cell:
        """The cell of one class of errors."""
        return FAILED.labels(self.handler, type(error).__name__)
