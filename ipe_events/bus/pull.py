"""Continuous pull: a JetStream consumer that is never asked too late nor for more than we can hold.

Messages go to an inbox of ours; when half of what was asked for has arrived, the rest is asked for again, so the server always
has credit. A pull is bounded in messages and bytes. The server sends a heartbeat when it has nothing to send; two missed ones
mean that it has forgotten us. A pull that ends early says how much of it is left, which is given back to the credit. Each restart
uses a new inbox, so that pulls which the server still remembers cannot add to new ones.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from ipe_events.bus.frames import parse_headers, parse_status
from ipe_events.bus.parser import RawCallback
from ipe_events.errors import SchemaError
from ipe_events.telemetry.log import get_logger

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

log = get_logger(__name__)

EXPIRES_SECONDS = 30.0
"""How long a pull waits on the server."""

HEARTBEAT_SECONDS = 5.0
"""How often the server says that it is still there."""

_HEARTBEAT, _NO_MESSAGES, _TIMEOUT, _CONFLICT, _NO_RESPONDERS = 100, 404, 408, 409, 503


class Puller:
    """Pulls one consumer's messages into ``on_message``.

    Args:
        bus: the connection.
        stream: the consumer's stream.
        consumer: its name.
        batch: how many messages may be under way at most.
        max_bytes: how many bytes one pull may bring; at least twice the server's ``max_payload``.
        on_message: gets subject, reply, header block and body.
        on_lost: called once with a reason when the server forgot us; nothing is pulled until ``restart``.
    """

    def __init__(
        self,
        bus: "Bus",
        stream: str,
        consumer: str,
        *,
        batch: int,
        max_bytes: int,
        on_message: RawCallback,
        on_lost: Callable[[str], None],
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._batch = batch
        self._low = batch // 2
        self._max_bytes = max_bytes
        self._on_message = on_message
        self._on_lost = on_lost
        self.consumer = consumer
        self._sid = 0
        self._inbox = ""
        self._outstanding = 0
        self.paused = False
        self._lost = True
        self._silent_ticks = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def subject(self) -> str:
        """Where pulls are published."""
        return self._bus.js_subject(f"CONSUMER.MSG.NEXT.{self._stream}.{self.consumer}")

    def restart(self) -> None:
        """(Re)starts pulling with a new inbox and full credit."""
        self.stop()
        self._inbox = self._bus.client.new_inbox()
        self._sid = self._bus.client.subscribe_raw(self._inbox, self._receive)
        self._lost = False
        self._outstanding = 0
        self._silent_ticks = 0
        self._refill()
        self._arm()

    def pause(self) -> None:
        """Asks for nothing more; what is under way (at most ``batch``) still arrives."""
        self.paused = True

    def resume(self) -> None:
        """Goes on."""
        self.paused = False
        self._silent_ticks = 0
        self._refill()

    def stop(self) -> None:
        """Ends pulling; what is under way is dropped and delivered again later."""
        self._lost = True
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._sid:
            self._bus.client.unsubscribe_raw(self._sid)
            self._sid = 0

    async def give_back(self) -> None:
        """Ends pulling; what is under way goes back to the server now, not after ``ack_wait``.

        Raises:
            BusUnavailable: the connection was lost; then it goes back by itself.
        """
        self._lost = True
        self._on_message = self._return
        if self._sid:
            self._bus.client.write(f"UNSUB {self._sid}\r\n".encode())
            await self._bus.flush()
        self.stop()

    def _return(self, _subject: bytes, reply: bytes, _head: bytes, _body: bytes) -> None:
        self._bus.client.write(b"PUB %b 4\r\n-NAK\r\n" % reply)

    def _receive(self, subject: bytes, reply: bytes, head: bytes, body: bytes) -> None:
        self._silent_ticks = 0
        if not reply:
            self._status(head)
            return
        self._outstanding -= 1
        if self._outstanding <= self._low and not self.paused:
            self._refill()
        self._on_message(subject, reply, head, body)

    def _refill(self) -> None:
        if self._lost or self.paused or self._outstanding > self._low:
            return
        wanted = self._batch - self._outstanding
        self._outstanding = self._batch
        request = orjson.dumps(
            {
                "batch": wanted,
                "max_bytes": max(self._max_bytes, 2 * self._bus.max_payload),
                "expires": int(EXPIRES_SECONDS * 1e9),
                "idle_heartbeat": int(HEARTBEAT_SECONDS * 1e9),
            }
        )
        self._bus.client.write(self._bus.frame(self.subject, b"", request, self._inbox))

    def _status(self, head: bytes) -> None:
        code, text = parse_status(head)
        if code == _HEARTBEAT:
            return
        try:
            headers = parse_headers(head)
        except SchemaError as error:
            self._lose(str(error))
            return
        left = headers.get("Nats-Pending-Messages", "")
        if code in {_TIMEOUT, _CONFLICT, _NO_MESSAGES} and left.isdecimal():
            self._outstanding = max(0, self._outstanding - int(left))
            self._refill()
        elif code == _NO_RESPONDERS:
            self._lose("nobody answers for the consumer")
        else:
            self._lose(f"{code} {text}".lower())

    def _lose(self, reason: str) -> None:
        if not self._lost:
            self.stop()
            self._on_lost(reason)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_SECONDS, self._tick)

    def _tick(self) -> None:
        if self._outstanding and self._bus.connected:
            self._silent_ticks += 1
            if self._silent_ticks > 2:
                self._lose("heartbeats are missing")
                return
        self._arm()
