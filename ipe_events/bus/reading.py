"""Reading a stream in order, without acknowledging: lists, tails, replays, watches of buckets.

An ephemeral consumer that keeps nothing on the server feeds a bounded buffer by continuous pull. Consumer sequences must follow
one another; when one is missing, or the consumer or the connection was lost, it is made again after the last message handed out,
so a reader sees every message once and in order, or an error.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from ipe_events.bus.consumer import Start, start_config
from ipe_events.bus.delivery import Delivery, Settler, parse_reply
from ipe_events.bus.pull import Puller
from ipe_events.errors import BusError
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

log = get_logger(__name__)

_BATCH = 256
_INACTIVE_SECONDS = 60
_MAX_DELAY_SECONDS = 5.0
_IDLE_SECONDS = 2.0


class OrderedReader(Settler):
    """Messages of a stream, each once and in order; an async context manager.

    Args:
        bus: the connection.
        stream: its name.
        subjects: filters; empty for all.
        start: where to begin.
        headers_only: leave the bodies out.
    """

    def __init__(
        self, bus: "Bus", stream: str, subjects: tuple[str, ...], *, start: Start | datetime = "all", headers_only: bool = False
    ) -> None:
        self.bus = bus
        self._stream = stream
        self._config: dict[str, Any] = {
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_SECONDS * 10**9,
            "headers_only": headers_only,
            "replay_policy": "instant",
        }
        if subjects or start == "last_per_subject":  # which NATS gives only to filtered consumers
            self._config["filter_subjects"] = list(subjects) or [">"]
        self._start: Start = start
        self._last = 0
        self._expected = 1
        self._buffer: deque[Delivery] = deque()
        self._wake = asyncio.Event()
        self._error: BusError | None = None
        self._puller: Puller | None = None
        self._repair_task: asyncio.Task[None] | None = None
        self._forget_state = bus.on_state(self._on_state)
        self.pending_at_start = 0
        """Messages that waited when the consumer was last made."""

    async def __aenter__(self) -> Self:
        try:
            await self._create()
        except BaseException:
            self._forget_state()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._forget_state()
        if self._repair_task:
            await end(self._repair_task)
        if self._puller:
            self._puller.stop()
            if self.bus.connected:
                # nobody waits for the answer; an unused one goes away by itself
                subject = self.bus.js_subject(f"CONSUMER.DELETE.{self._stream}.{self._puller.consumer}")
                self.bus.client.write(self.bus.frame(subject, b"", b""))

    async def next(self) -> Delivery:
        """The next message.

        Raises:
            BusError: the stream cannot be read any more.
        """
        while not self._buffer:
            if self._error:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        delivery = self._buffer.popleft()
        if self._puller and self._puller.paused and len(self._buffer) < _BATCH // 2:
            self._puller.resume()
        return delivery

    async def exhausted(self) -> bool:
        """Whether nothing is buffered and the stream holds nothing more for this reader."""
        if self._buffer or not self._puller:
            return False
        info = await self.bus.js_api(f"CONSUMER.INFO.{self._stream}.{self._puller.consumer}")
        return not info["num_pending"] and int(info["delivered"]["stream_seq"]) <= self._last and not self._buffer

    async def _create(self) -> None:
        name = self.bus.client._nuid.next().decode()  # noqa: SLF001 - nats-py's id source
        if self._last:
            self._start = self._last + 1
        config = {**self._config, "name": name, **start_config(self._start)}
        info = await self.bus.js_api(
            f"CONSUMER.CREATE.{self._stream}.{name}", {"stream_name": self._stream, "config": config, "action": "create"}
        )
        self.pending_at_start = int(info.get("num_pending", 0))
        if not self._last and self._start == "new":
            self._last = int(info["delivered"]["stream_seq"])
        self._expected = 1
        self._puller = Puller(
            self.bus, self._stream, name, batch=_BATCH, max_bytes=0, on_message=self._receive, on_lost=self._repair
        )
        self._puller.restart()

    def _receive(self, subject: bytes, reply: bytes, head: bytes, body: bytes) -> None:
        position = parse_reply(reply)
        if self._puller is None or position.consumer != self._puller.consumer:
            return
        if position.consumer_seq != self._expected:
            self._puller.stop()
            self._repair(f"expected message {self._expected} of the consumer, got {position.consumer_seq}")
            return
        self._expected += 1
        self._last = position.seq
        self._buffer.append(Delivery(self, position.seq, subject, reply, head, body))
        self._wake.set()
        if len(self._buffer) >= _BATCH:
            self._puller.pause()

    def _on_state(self, up: bool) -> None:
        if up:
            self._repair("the connection was lost")
        elif self._puller:
            self._puller.stop()

    def _repair(self, reason: str) -> None:
        if not self._repair_task or self._repair_task.done():
            self._repair_task = asyncio.create_task(self._repair_until_done(reason), name=f"reader-repair-{self._stream}")

    async def _repair_until_done(self, reason: str) -> None:
        log.debug("reader is being repaired", stream=self._stream, reason=reason)
        attempt = 0
        while True:
            await self.bus.wait_connected()
            try:
                await self._create()
            except BusError as error:
                if not error.retryable:
                    self._error = error
                    self._wake.set()
                    return
                delay = min(_MAX_DELAY_SECONDS, 0.1 * 2 ** min(attempt, 8)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                attempt += 1
                await asyncio.sleep(delay)
            else:
                return


async def read(
    bus: "Bus", stream: str, subjects: tuple[str, ...], *, start: Start | datetime, limit: int, follow: bool
) -> AsyncIterator[Delivery]:
    """Messages of a stream in order; ends after ``limit`` (0: none), or at the stream's end unless ``follow``.

    Raises:
        BusNotFound: no such stream.
    """
    given = 0
    async with OrderedReader(bus, stream, subjects, start=start) as reader:
        if not follow and not reader.pending_at_start:
            return
        while True:
            try:
                async with asyncio.timeout(None if follow else _IDLE_SECONDS):
                    delivery = await reader.next()
            except TimeoutError:
                if await reader.exhausted():  # what was pending has been removed meanwhile
                    return
                continue
            yield delivery
            given += 1
            if given == limit or (not follow and delivery.pending == 0):
                return
