"""One message on its way through a handler."""

from typing import Protocol

from ipe_events.events.message import Incoming

UNSETTLED_SECONDS = 1.0
"""Until an event is tried again whose settling failed in a way that nobody foresaw."""


class Deliverable(Incoming, Protocol):
    """A message and the ways to settle it; the bus's ``Delivery`` is one, the test bus has its own."""

    def ack(self) -> None:
        """Done."""
        ...

    def nak(self, delay: float) -> None:
        """Deliver it again after ``delay`` seconds."""
        ...

    def term(self, reason: str = "") -> None:
        """Never deliver it again."""
        ...

    def in_progress(self) -> None:
        """Still at work."""
        ...


class Work:
    """A message with what the runtime knows about it.

    Attributes:
        delivery: the message.
        tries: how often this process has tried it in vain, less the deliveries that it declined untried.
        touched: loop time when the server last heard that it is being worked on.
    """

    __slots__ = ("delivery", "touched", "tries")

    def __init__(self, delivery: Deliverable, touched: float) -> None:
        self.delivery = delivery
        self.tries = 0
        self.touched = touched

    @property
    def attempt(self) -> int:
        """1 for the first time, over all processes."""
        return self.tries + self.delivery.deliveries
