"""The seam to nats-py: its client, with raw subscriptions, unawaited writes and errors that do not end the connection.

nats-py parses the headers of every message into a dict before anybody asks, and moves every message through a queue into a task.
With our fifteen headers that is two thirds of a consumer's CPU. A subscription made by ``subscribe_raw`` gets subject, reply,
header block and body as they are, synchronously: mostly from our parser (``ipe_events.bus.parser``), else from ``_process_msg``,
where nats-py's parser hands a message over. ``_process_err`` is overridden too, since nats-py closes for good on any error that
it does not know, while we want to reconnect for ever. ``tests/unit/test_bus_client.py`` pins what we rely on, so that a new
nats-py cannot remove the seam unnoticed.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import ParseResult

from nats import errors
from nats.aio.client import Client as NatsClient
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from ipe_events.bus.parser import FastParser, RawCallback, Run
from ipe_events.errors import IpeError
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

READ_SIZE = 256 << 10
"""Bytes taken from the socket at once."""

_CLOSE_SECONDS = 1.0
_VIOLATION = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"")
_HARMLESS = ("invalid subject", "maximum subscriptions exceeded")


class _WideTransport(TcpTransport):
    """TCP that reads as much as has arrived, not 32 KiB at a time: four of our messages would need a wake-up."""

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        self.close()  # type: ignore[no-untyped-call]  # an attempt that failed after the TCP handshake: nats-py would forget its socket
        await super().connect(uri, max(buffer_size, READ_SIZE), connect_timeout)

    async def read(self, buffer_size: int) -> bytes:
        return bytes(await super().read(max(buffer_size, READ_SIZE)))

    async def wait_closed(self) -> None:
        with suppress(TimeoutError, OSError):  # asyncio never reports the end of a connection whose TLS handshake failed
            async with asyncio.timeout(_CLOSE_SECONDS):
                await super().wait_closed()  # type: ignore[no-untyped-call]  # nats-py leaves it unannotated

    def __bool__(self) -> bool:
        return True  # nats-py makes its own transport while this is false


class Client(NatsClient):
    """nats-py's client with our seam; made by ``Bus.connect`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = _WideTransport()  # type: ignore[no-untyped-call]  # nats-py leaves it unannotated
        self._raw: dict[int, RawCallback] = {}
        self._runs: dict[int, Run] = {}
        self._ps = FastParser(self, self._raw, self._runs)
        self.on_violation: Callable[[str, str], None] = lambda _kind, _subject: None
        """Called with ``publish`` or ``subscription`` and the subject **in lower case**, as nats-py hands it over."""

    async def close(self) -> None:
        """Closes for good; does nothing when no connection was ever tried."""
        if self._flush_queue is not None:
            await super().close()

    # --- writing -----------------------------------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        """Appends protocol bytes to what is sent next, without waiting; kept over a reconnect."""
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())

    @property
    def buffered(self) -> int:
        """Bytes written but not yet handed to the socket."""
        return self._pending_data_size

    # --- raw subscriptions ---------------------------------------------------------------------------------------------------

    def subscribe_raw(
        self, subject: str, callback: RawCallback, *, queue: str = "", run: Callable[[int], Run] | None = None
    ) -> int:
        """Subscribes and returns the subscription's number; replayed after a reconnect. A violation comes by ``on_violation``.

        Args:
            subject: may hold wildcards.
            callback: gets each message that ``run`` does not take.
            queue: group that shares the messages.
            run: given the number, returns what takes many messages of a known form at once.
        """
        self._sid += 1
        subscription = Subscription(self, self._sid, subject, queue=queue)
        self._subs[self._sid] = subscription
        self._raw[self._sid] = callback
        if run is not None:
            self._runs[self._sid] = run(self._sid)
        self.write(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        return self._sid

    def unsubscribe_raw(self, sid: int) -> None:
        """Ends a raw subscription; messages that are on their way are dropped."""
        self._runs.pop(sid, None)
        if self._raw.pop(sid, None) is not None and self._subs.pop(sid, None) is not None:
            self.write(f"UNSUB {sid}\r\n".encode())

    # --- nats-py's inner calls -----------------------------------------------------------------------------------------------

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        callback = self._raw.get(sid)
        if callback is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        try:
            callback(subject, reply, headers or b"", data)
        except Exception:
            log.exception("a message callback failed", subject=subject.decode(errors="replace"))

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        # nats-py's ping overtakes what still waits for its flusher, so that the pong would prove nothing about it
        if self._pending_data_size > 0:
            assert self._transport
            self._transport.writelines(self._pending[:])
            self._pending = []
            self._pending_data_size = 0
        await super()._send_ping(future)

    def _connect_command(self) -> bytes:
        try:
            return bytes(super()._connect_command())
        except IpeError as error:  # a creds file is being replaced: nats-py tries again after its own errors only
            raise errors.Error(str(error)) from error

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("'")
        violation = _VIOLATION.search(text)
        if violation:
            self.on_violation(violation[1], violation[2])
        elif any(harmless in text for harmless in _HARMLESS):
            log.warning("NATS refused a command", error=text)
        else:
            self._err = errors.Error(f"nats: {text}")
            log.warning("NATS ended the connection; it is opened again", error=text)
            await self._process_op_err(self._err)
