"""A message as it came from the bus, and what its headers say: ``Message``, ``Meta``, ``Event``.

Nothing is parsed before it is touched. ``Message`` is what a handler asks for that takes anything (an audit log); ``Change`` is
one that knows what Kubernetes changes look like; ``Event`` pairs a decoded payload with ``Meta``.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar

from ipe_events.errors import SubjectError
from ipe_events.events.headers import header, parse
from ipe_events.subjects import CORE, topic_of, unescape

T_co = TypeVar("T_co", covariant=True)


class Incoming(Protocol):
    """What the bus delivers, as far as this module reads it."""

    @property
    def subject(self) -> str:
        """Where it was published."""
        ...

    @property
    def header_bytes(self) -> bytes:
        """The raw header block; empty when there is none."""
        ...

    @property
    def body(self) -> bytes:
        """The payload's bytes."""
        ...

    @property
    def seq(self) -> int:
        """Sequence in the stream."""
        ...

    @property
    def stream(self) -> str:
        """Name of the stream."""
        ...

    @property
    def time(self) -> datetime:
        """When the stream stored it."""
        ...

    @property
    def deliveries(self) -> int:
        """How many times it was delivered, this time included."""
        ...


class Message:
    """One message of the bus, unparsed.

    Attributes:
        subject: where it was published.
        header_bytes: the raw header block.
        body: the payload's bytes.
    """

    __slots__ = ("body", "header_bytes", "subject")

    def __init__(self, subject: str, header_bytes: bytes, body: bytes) -> None:
        self.subject = subject
        self.header_bytes = header_bytes
        self.body = body

    @classmethod
    def of(cls, source: Incoming) -> Self:
        """The message that was delivered."""
        return cls(source.subject, source.header_bytes, source.body)

    def header(self, name: str) -> str:
        """One header's value; empty when absent."""
        return header(self.header_bytes, name.encode())

    @property
    def headers(self) -> Mapping[str, str]:
        """All headers."""
        return parse(self.header_bytes)

    @property
    def id(self) -> str:
        """``ce-id``, the same for ever; empty when a foreign publisher set none."""
        return header(self.header_bytes, b"ce-id")

    @property
    def type(self) -> str:
        """``ce-type``, e.g. ``dev.ipe.k8s.modified.v1``."""
        return header(self.header_bytes, b"ce-type")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.subject} {len(self.body)} bytes>"


class Meta:
    """What is known about an event besides its payload; read from the raw message when it is asked for.

    Args:
        source: the message.
        tries: how often this process has tried it in vain.
    """

    __slots__ = ("_source", "_tries")

    def __init__(self, source: Incoming, tries: int = 0) -> None:
        self._source = source
        self._tries = tries

    @property
    def attempt(self) -> int:
        """1 for the first time that the handler sees it, growing with each repetition, over all processes."""
        return self._tries + self._source.deliveries

    @property
    def id(self) -> str:
        """The event's id: the idempotency key for what a handler does outside the bus."""
        return header(self._source.header_bytes, b"ce-id") or f"{self._source.stream}/{self._source.seq}"

    @property
    def subject(self) -> str:
        """Where it was published."""
        return self._source.subject

    @property
    def type(self) -> str:
        """``ce-type``."""
        return header(self._source.header_bytes, b"ce-type")

    @property
    def cluster(self) -> str:
        """The cluster it belongs to, from the subject; empty when the topic has none."""
        return cluster_of(self._source.subject)

    @property
    def time(self) -> datetime:
        """When it happened (``ce-time``), or else when the stream stored it."""
        text = header(self._source.header_bytes, b"ce-time")
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            return self._source.time

    @property
    def trace(self) -> str:
        """W3C ``traceparent`` of the step that published it; empty when there was none."""
        return header(self._source.header_bytes, b"traceparent")

    @property
    def cause(self) -> str:
        """Id of the event that led to this one; empty when nothing is known."""
        return header(self._source.header_bytes, b"ce-cause")

    @property
    def hops(self) -> int:
        """How many commands led here; 0 for a change that none caused."""
        text = header(self._source.header_bytes, b"ce-hops")
        return int(text) if text.isdecimal() and len(text) < 6 else 0

    @property
    def source(self) -> str:
        """``ce-source``: ``/clusters/<cluster>`` or ``/handlers/<handler>``."""
        return header(self._source.header_bytes, b"ce-source")

    @property
    def stream(self) -> str:
        """Stream that keeps it."""
        return self._source.stream

    @property
    def sequence(self) -> int:
        """Its sequence in the stream."""
        return self._source.seq

    def __repr__(self) -> str:
        return f"<Meta {self.id} attempt={self.attempt}>"


class Event(Generic[T_co]):
    """A payload with its meta.

    Attributes:
        payload: what the handler asked for.
        meta: id, cluster, time, attempt, trace, cause…
    """

    __slots__ = ("meta", "payload")

    payload: T_co

    def __init__(self, payload: T_co, meta: Meta) -> None:
        self.payload = payload
        self.meta = meta

    def __repr__(self) -> str:
        return f"<Event {self.payload!r} {self.meta!r}>"


def cluster_of(subject: str) -> str:
    """The cluster named by a subject; empty when its topic has none."""
    tokens = subject.split(".")
    if len(tokens) == 8 and tokens[1] == "k8s":
        return unescape(tokens[2])
    try:
        return topic_of(subject).parse(subject).get("cluster", "")
    except SubjectError:
        return ""


def group_of(token: str) -> str:
    """The API group behind a subject's token."""
    return "" if token == CORE else unescape(token)
