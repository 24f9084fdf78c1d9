"""One message of a stream, as the consumer hands it over: bytes that are parsed when somebody asks.

Acknowledgements are written to the connection's buffer without waiting; only ``ack_sync`` waits. Position, attempt and time come
from the reply subject, which exists in two forms (nine tokens, or eleven and more with domain and account hash); the number of
tokens decides which one it is.
"""

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import orjson

from ipe_events.bus.frames import parse_headers
from ipe_events.errors import SchemaError, UsageError

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

_V1_TOKENS = 9
_V2_MIN_TOKENS = 11


class Position(NamedTuple):
    """What a reply subject tells."""

    stream: str
    consumer: str
    deliveries: int
    seq: int
    consumer_seq: int
    time_ns: int
    pending: int


def parse_reply(reply: bytes) -> Position:
    """The position in a ``$JS.ACK`` subject of either form.

    Raises:
        SchemaError: the subject is not one.
    """
    tokens = reply.split(b".")
    if len(tokens) == _V1_TOKENS:
        first = 2
    elif len(tokens) >= _V2_MIN_TOKENS:
        first = 4
    else:
        raise SchemaError(f"reply subject {reply!r} is no $JS.ACK subject")
    try:
        return Position(
            tokens[first].decode(),
            tokens[first + 1].decode(),
            int(tokens[first + 2]),
            int(tokens[first + 3]),
            int(tokens[first + 4]),
            int(tokens[first + 5]),
            int(tokens[first + 6]),
        )
    except ValueError as error:
        raise SchemaError(f"reply subject {reply!r} is no $JS.ACK subject") from error


def stream_sequence(reply: bytes) -> int:
    """The stream sequence alone, for hot paths; the reply must be a ``$JS.ACK`` subject."""
    tokens = reply.split(b".")
    return int(tokens[5 if len(tokens) == _V1_TOKENS else 7])


class Settler:
    """Who writes acknowledgements and remembers what is still open; ``Consumer`` is one, readers without acks need none."""

    bus: "Bus"

    def settled(self, seq: int) -> None:
        """The message with this stream sequence needs no redelivery."""


class Delivery:
    """A message and what to do with it.

    Attributes:
        header_bytes: the header block as it came; empty without headers.
        body: the payload.
        seq: position in the stream.
    """

    __slots__ = ("__dict__", "_reply", "_settler", "_subject", "body", "header_bytes", "seq")

    def __init__(self, settler: Settler, seq: int, subject: bytes, reply: bytes, head: bytes, body: bytes) -> None:
        self._settler = settler
        self._subject = subject
        self._reply = reply
        self.header_bytes = head
        self.body = body
        self.seq = seq

    @property
    def subject(self) -> str:
        """Where it was published; bytes that are no text are shown as ``\\xff``, which no topic takes for a token."""
        return self._subject.decode(errors="backslashreplace")

    @property
    def reply(self) -> str:
        """The acknowledgement subject."""
        return self._reply.decode()

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers, parsed at the first look.

        Raises:
            SchemaError: the block is malformed.
        """
        return parse_headers(self.header_bytes)

    @cached_property
    def position(self) -> Position:
        """Everything that the reply subject tells."""
        return parse_reply(self._reply)

    @property
    def stream(self) -> str:
        """The stream it comes from."""
        return self.position.stream

    @property
    def deliveries(self) -> int:
        """How many times it was delivered, this time included."""
        return self.position.deliveries

    @property
    def pending(self) -> int:
        """How many messages waited behind it when it was sent."""
        return self.position.pending

    @property
    def time(self) -> datetime:
        """When the stream stored it."""
        return datetime.fromtimestamp(self.position.time_ns / 1e9, UTC)

    def ack(self) -> None:
        """Done."""
        self._settler.settled(self.seq)
        self._settler.bus.client.write(b"PUB %b 4\r\n+ACK\r\n" % self._reply)

    async def ack_sync(self, timeout: float = 5.0) -> None:
        """Done, and the server has taken note.

        Raises:
            BusTimeout, BusUnavailable: it is not known whether it has.
        """
        await self._settler.bus.ask(self.reply, b"+ACK", timeout=timeout)
        self._settler.settled(self.seq)

    def nak(self, delay: float) -> None:
        """Deliver it again after ``delay`` seconds; required, since a blip would burn all attempts in milliseconds."""
        if delay < 0:
            raise UsageError(f"a delay of {delay} s is negative")
        self._write(b"-NAK " + orjson.dumps({"delay": int(delay * 1e9)}))

    def term(self, reason: str = "") -> None:
        """Never deliver it again."""
        self._settler.settled(self.seq)
        self._write(b"+TERM " + reason.encode() if reason else b"+TERM")

    def in_progress(self) -> None:
        """Still at work: the time to acknowledge starts anew. Without a connection it is not said: it would only pile up."""
        if self._settler.bus.connected:
            self._write(b"+WPI")

    def _write(self, body: bytes) -> None:
        self._settler.bus.client.write(b"PUB %b %d\r\n%b\r\n" % (self._reply, len(body), body))
