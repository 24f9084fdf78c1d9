"""What the runtime itself publishes about a handler, on ``ipe.event.<handler>.…``."""

from pydantic import AwareDatetime

from ipe_events.events.base import Payload


class HandlerPaused(Payload):
    """Everything fails, so the handler pauses and probes.

    Attributes:
        handler: id of the function.
        error: class of the last exception; its text may quote what is confidential and stays in the log.
        time: when.
    """

    handler: str
    error: str
    time: AwareDatetime


class HandlerResumed(Payload):
    """A probe succeeded, the handler works again.

    Attributes:
        handler: id of the function.
        time: when.
    """

    handler: str
    time: AwareDatetime


class Occasion:
    """Stands for the input of a call that no event caused: a timer's tick, a notice.

    Attributes:
        id: what outputs' ids are derived from.
        cluster: empty.
        trace: empty, a new one begins.
        hops: 0.
    """

    __slots__ = ("cluster", "hops", "id", "trace")

    def __init__(self, identity: str, *, trace: str = "", cluster: str = "") -> None:
        self.id = identity
        self.cluster = cluster
        self.trace = trace
        self.hops = 0
