"""The publisher of the hot path: its own window over raw frames, lossless over everything but our own death.

nats-py's asynchronous publish loses its place when a server dies with acknowledgements outstanding, and spends most of its time
on header dicts. Here a message is a header block that the caller filled into a template, and a body; frames are joined into
writes of up to half a MiB, and all acknowledgements come to one inbox. What is not acknowledged is kept, within a bound on number
and bytes, and sent again under the same id: after a time-out, after a refusal, after a reconnect.

After a reconnect the broker may have stored what it could not acknowledge, and a restarted broker no longer knows the ids that
it has stored. So the publisher first reads the headers of the stream's tail, takes what it finds there as acknowledged, and sends
only the rest: no id twice, none missing.

A *lane* is a sequence whose contiguous acknowledged prefix matters: one resource of one cluster. Each message may carry a *mark*
(the resourceVersion up to which everything has been sent); ``lane.acked_mark`` is the highest whose predecessors are all stored.

When no stream takes the messages (missing, full, no leader) the publisher holds everything, says why in ``error``, and tries
its oldest message again until it is accepted.
"""

import asyncio
import re
from collections import deque
from contextlib import aclosing
from types import TracebackType
from typing import Self

import msgspec

from ipe_events.bus.connection import Bus
from ipe_events.bus.frames import parse_status
from ipe_events.bus.parser import Run
from ipe_events.bus.tail import stream_of, tail
from ipe_events.errors import BusError, IpeError, PayloadTooLarge
from ipe_events.events.headers import header
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import counter

_log = get_logger(__name__)

DUPLICATES = counter("ipe_publish_duplicates_total", "Publishes that the stream already held.")
RESENT = counter("ipe_publish_resent_total", "Frames sent again, by cause.", ("cause",))
REFUSED = counter("ipe_publish_refused_total", "Publishes that JetStream refused; they are tried again.")

_WRITE_BYTES = 448 << 10
"""Bytes that are joined into one write: what one read of a watch brings, so that both cost one turn of the loop."""
_MOST_BUFFERED = 2 << 20
_TICK_SECONDS = 0.25
_LONGEST_PROBE = 5.0
_LONGEST_PATIENCE = 60.0
_CRLF = b"\r\n"
_ID = b"Nats-Msg-Id"


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


class Ticket(msgspec.Struct, gc=False, eq=False):
    """One message on its way; ``head`` is the command line and the header block."""

    lane: "Lane"
    number: int
    head: bytes
    body: bytes | memoryview
    mark: int
    seq: int = 0
    done: bool = False


class Lane:
    """A sequence of messages with its acknowledged prefix.

    Attributes:
        subjects: filter of the subjects it publishes on, to find its messages again.
        stream: that keeps them, as the last acknowledgement said; empty before the first.
        after: stream sequence behind which all its messages lie.
        sent: messages handed over.
        acked: length of the acknowledged prefix.
        acked_mark: the highest mark in that prefix; 0: none yet.
        acked_seq: the highest stream sequence in that prefix.
    """

    def __init__(self, publisher: "Publisher", subjects: str, after: int) -> None:
        self._publisher = publisher
        self.subjects = subjects
        self.stream = ""
        self.after = after
        self.sent = 0
        self.acked = 0
        self.acked_mark = 0
        self.acked_seq = 0
        self._open: deque[Ticket] = deque()

    @property
    def unacked(self) -> int:
        """Messages that are not acknowledged, or behind one that is not."""
        return len(self._open)

    def send(self, subject: bytes, head: bytes, body: bytes | memoryview, mark: int = 0) -> None:
        """Hand over one message; never blocks. Look at ``publisher.full`` before.

        Args:
            subject: where to.
            head: complete header block, with a ``Nats-Msg-Id``.
            body: kept as it is (and what it is a slice of) until acknowledged.
            mark: everything up to here has been sent with this message; 0: says nothing.

        Raises:
            PayloadTooLarge: nothing was sent.
        """
        self._publisher._send(self, subject, head, body, mark)  # noqa: SLF001 - lanes are the publisher's handles

    def mark(self, mark: int) -> None:
        """Everything up to ``mark`` has been sent already."""
        if self._open:
            self._open[-1].mark = mark
        else:
            self.acked_mark = mark

    def advance(self) -> None:
        """Take the acknowledged messages off the front."""
        opened = self._open
        acked, mark, seq = self.acked, self.acked_mark, self.acked_seq
        while opened and opened[0].done:
            ticket = opened.popleft()
            acked += 1
            mark = ticket.mark or mark
            if ticket.seq > seq:
                seq = ticket.seq
        self.acked, self.acked_mark, self.acked_seq = acked, mark, seq


class Publisher:
    """A window of unacknowledged messages over one connection; start it, close it, or use ``async with``.

    Args:
        bus: the connection.
        window: most unacknowledged messages.
        max_bytes: most bytes that they may hold.
        ack_timeout: seconds after which an unacknowledged message is sent again.

    Attributes:
        full: no room, or no connection, or no stream: wait with ``wait_room``.
        error: why nothing can be stored at present; None when all is well.
    """

    def __init__(self, bus: Bus, *, window: int = 2048, max_bytes: int = 32 << 20, ack_timeout: float = 5.0) -> None:
        self.bus = bus
        self.full = False
        self.error: BusError | None = None
        self._client = bus.client
        self._window = window
        self._max_bytes = max_bytes
        self._ack_timeout = ack_timeout
        self._unacked: dict[int, Ticket] = {}
        self._bytes = 0
        self._next = 1
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._flush_scheduled = False
        self._blocked = False
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._progress = asyncio.Event()
        self._oldest_since = (0, 0.0)
        self._loop = asyncio.get_running_loop()
        inbox = bus.client.new_inbox()
        self._inbox = inbox.encode() + b"."
        self._inbox_length = len(self._inbox)
        self._sid = bus.client.subscribe_raw(inbox + ".*", self._on_ack, run=self._acks)
        self._unlisten = bus.on_state(self._on_state)
        self._recovery: asyncio.Task[None] | None = None
        self._ticker = self._loop.create_task(self._tick())
        self._ticker.add_done_callback(_complain)
        self._max_payload = bus.max_payload
        self._duplicates = DUPLICATES.labels()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def lane(self, subjects: str, after: int = 0) -> Lane:
        """A new sequence.

        Args:
            subjects: a filter that all its subjects match.
            after: the stream's last sequence now, if known: saves reading from the beginning after a reconnect.
        """
        return Lane(self, subjects, after)

    @property
    def unacked(self) -> int:
        """Messages on their way."""
        return len(self._unacked)

    async def wait_room(self) -> None:
        """Return when another message may be sent."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    async def drain(self) -> None:
        """Return when everything sent is acknowledged."""
        self._flush()
        while self._unacked:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Stop; what is not acknowledged is not sent again (``drain`` first)."""
        self._unlisten()
        self._client.unsubscribe_raw(self._sid)
        tasks = [task for task in (self._ticker, self._recovery) if task is not None]
        await end(*tasks)

    # --- sending ---------------------------------------------------------------------------------------------------------

    def _send(self, lane: Lane, subject: bytes, head: bytes, body: bytes | memoryview, mark: int) -> None:
        head_size = len(head)
        size = head_size + len(body)
        if size > self._max_payload:
            raise PayloadTooLarge(
                f"message of {size} bytes exceeds the server's max_payload of {self._max_payload}", where=subject.decode()
            )
        number = self._next
        self._next = number + 1
        frame_head = b"HPUB %b %b%d %d %d\r\n%b" % (subject, self._inbox, number, head_size, size, head)
        ticket = Ticket(lane, number, frame_head, body, mark)
        lane._open.append(ticket)  # noqa: SLF001 - lanes are the publisher's handles
        lane.sent += 1
        unacked = self._unacked
        unacked[number] = ticket
        self._bytes += len(frame_head) + len(body)
        if len(unacked) >= self._window or self._bytes >= self._max_bytes:
            self.full = True
        if not self._blocked:
            self._out += (frame_head, body, _CRLF)
            self._out_bytes += size
            if self._out_bytes >= _WRITE_BYTES:
                self._flush()
            elif not self._flush_scheduled:
                self._flush_scheduled = True
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            if not self._blocked:
                self._client.write(data)
                if self._client.buffered > _MOST_BUFFERED:
                    self.full = True

    # --- acknowledgements -----------------------------------------------------------------------------------------------

    def _acks(self, sid: int) -> Run:
        """What takes a run of plain acknowledgements at once: they come by dozens, and one by one each would cost twice as much.

        Duplicates, refusals and everything else are left to ``_on_ack``.
        """
        start = re.escape(b"MSG " + self._inbox)
        plain = rb'%b([0-9]+) %d [0-9]+\r\n\{"stream":"([^"\\\r\n]+)", ?"seq":([0-9]+)\}\r\n' % (start, sid)
        run, each = re.compile(rb"(?:%b)+" % plain.replace(b"([", b"(?:[")).match, re.compile(plain).findall

        def take(data: bytes, at: int) -> int:
            found = run(data, at)
            if found is None:
                return at
            unacked, lanes, freed = self._unacked, {}, 0
            for number, stream, seq in each(data, at, found.end()):
                ticket = unacked.pop(int(number), None)
                if ticket is not None:
                    freed += len(ticket.head) + len(ticket.body)
                    ticket.done = True
                    ticket.seq = int(seq)
                    lanes[ticket.lane] = stream
            self._bytes -= freed
            for lane, stream in lanes.items():
                lane.stream = stream.decode()
                lane.advance()
            self._accepted()
            return found.end()

        return take

    def _on_ack(self, subject: bytes, _reply: bytes, head: bytes, body: bytes) -> None:
        ticket = self._unacked.get(int(subject[self._inbox_length :]))
        if ticket is None:
            return
        try:
            ack = _decode_ack(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._refuse(ticket, *_no_ack(head, body))
            return
        if ack.error is not None:
            self._refuse(ticket, ack.error.description or "no description", ack.error.err_code)
            return
        if ack.duplicate:
            self._duplicates.add()
        ticket.lane.stream = ack.stream
        self._accept(ticket, ack.seq)

    def _accept(self, ticket: Ticket, seq: int) -> None:
        del self._unacked[ticket.number]
        self._bytes -= len(ticket.head) + len(ticket.body)
        ticket.done = True
        ticket.seq = seq
        lane = ticket.lane
        if lane._open and lane._open[0] is ticket:  # noqa: SLF001 - lanes are the publisher's handles
            lane.advance()
        self._accepted()

    def _accepted(self) -> None:
        """Tell those who wait for acknowledgements."""
        if self._blocked:
            self._progress.set()
        if self.full or not self._unacked:
            self._make_room()

    def _make_room(self) -> None:
        if not self._unacked:
            self._idle.set()
        if (
            self.full
            and not self._blocked
            and len(self._unacked) <= self._window // 2
            and self._bytes <= self._max_bytes // 2
            and self._client.buffered <= _MOST_BUFFERED
        ):
            self.full = False
            self._room.set()

    def _refuse(self, ticket: Ticket, why: str, code: int) -> None:
        """JetStream did not take it: hold everything, and try the oldest again until it is taken."""
        REFUSED.labels().add()
        if self._blocked:
            return
        subject = ticket.head.split(b" ", 2)[1].decode()
        self.error = BusError(
            f"JetStream does not store changes: {why}" + (f" ({code})" if code else ""),
            where=subject,
            fix="create the streams with `ipe bus apply`, and look at `ipe doctor`",
        )
        _log.warning("publishing is held", error=str(self.error), unacked=len(self._unacked))
        self._block()
        self._start_recovery()

    # --- recovery --------------------------------------------------------------------------------------------------------

    def _block(self) -> None:
        self._blocked = self.full = True
        self._out.clear()
        self._out_bytes = 0

    def _on_state(self, up: bool) -> None:
        if up:
            self._start_recovery()
        else:
            self._block()

    def _start_recovery(self) -> None:
        if self._recovery is not None:
            self._recovery.cancel()
        self._recovery = self._loop.create_task(self._recover())
        self._recovery.add_done_callback(_complain)

    async def _recover(self) -> None:
        """Find out what is stored, send the rest, and open the window again."""
        delay = 0.2
        while True:
            try:
                await self.bus.wait_connected()
                self._max_payload = self.bus.max_payload
                await self._reconcile()
                if (self.error is None or await self._probe(delay)) and self.bus.connected:
                    break
            except IpeError as error:
                _log.warning("the stream's tail cannot be read yet", error=str(error))
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_PROBE)
        if self.error is not None:
            _log.info("publishing goes on", unacked=len(self._unacked))
        self.error = None
        self._blocked = False
        self._resend(list(self._unacked.values()), "reconnect")
        self._recovery = None
        self._make_room()

    async def _probe(self, patience: float) -> bool:
        """Send the oldest message; whether it was taken."""
        oldest = next(iter(self._unacked.values()), None)
        if oldest is None:
            return True
        self._client.write(b"".join((oldest.head, oldest.body, _CRLF)))
        try:
            async with asyncio.timeout(max(patience, 1.0)):
                while not oldest.done:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    async def _reconcile(self) -> None:
        """Take as acknowledged what the streams hold already."""
        for lane in list(dict.fromkeys(ticket.lane for ticket in self._unacked.values())):
            stream = lane.stream or await stream_of(self.bus, lane.subjects)
            if not stream:
                continue
            waiting = {header(ticket.head, _ID): ticket for ticket in self._unacked.values() if ticket.lane is lane}
            start = max(lane.acked_seq, lane.after) + 1
            async with aclosing(tail(self.bus, stream, lane.subjects, start=start)) as stored:
                async for delivery in stored:
                    ticket = waiting.pop(header(delivery.header_bytes, _ID), None)
                    if ticket is not None and not ticket.done:
                        self._accept(ticket, delivery.seq)
                    if not waiting:
                        break

    def _resend(self, tickets: list[Ticket], cause: str) -> None:
        if not tickets:
            return
        RESENT.labels(cause).add(len(tickets))
        for ticket in tickets:
            self._out += (ticket.head, ticket.body, _CRLF)
            self._out_bytes += len(ticket.head) + len(ticket.body)
            if self._out_bytes >= _WRITE_BYTES:
                self._flush()
        self._flush()

    async def _tick(self) -> None:
        """Send again what has waited too long, and look for room that no acknowledgement announces."""
        patience = self._ack_timeout
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._loop.time()
            oldest = next(iter(self._unacked), 0)
            if oldest == 0 or oldest != self._oldest_since[0] or self._blocked:
                self._oldest_since = (oldest, now)
                patience = self._ack_timeout
            elif now - self._oldest_since[1] >= patience:
                # acknowledgements come in order: who waits this long while nothing moves was dropped on the way
                self._resend(list(self._unacked.values()), "timeout")
                self._oldest_since = (oldest, now)
                patience = min(patience * 2, _LONGEST_PATIENCE)
            self._make_room()


def _complain(task: asyncio.Task[None]) -> None:
    """A task of a publisher ends only when it is cancelled; anything else is a mistake of ours that must be seen."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("the publisher failed", exc_info=task.exception())


def _no_ack(head: bytes, body: bytes) -> tuple[str, int]:
    """Why there is no acknowledgement in an answer: a status (no stream listens), or something foreign."""
    status, text = parse_status(head) if head else (0, "")
    if status == 503:
        return "no stream keeps this subject", status
    return text or f"unexpected answer {body[:80]!r}", status
