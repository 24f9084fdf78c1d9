"""One subscription's consumers and its heartbeat.

The heartbeat ticks a few times per second at most and does everything that must not cost anything per event: it cancels calls
that take too long, tells the server about events that wait or are worked on (``in_progress``), holds the consumer when memory is
full and lets it go on at half, probes a paused handler, and keeps the gauges.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from ipe_events.bus.connection import Bus
from ipe_events.bus.consumer import Consumer, ConsumerEvent, ConsumerSpec
from ipe_events.bus.consumer import Start as ConsumerStart
from ipe_events.bus.tail import streams_of
from ipe_events.bus.topology import CHANGES
from ipe_events.declaration import Start
from ipe_events.errors import BusNotFound, BusPermissionDenied
from ipe_events.runtime.filters import Filters
from ipe_events.runtime.subscriber import CAPACITY, Subscriber
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

ACK_WAIT = 30.0
"""Seconds after which the server offers an event again that nobody has said anything about."""

_MAX_ACK_PENDING = 4 * CAPACITY
_PULL = 1_024
_NAK_SECONDS = 0.0


class Consumption:
    """A subscriber with its durable consumers, one per stream.

    Args:
        bus: the connection.
        subscriber: what the messages go to.
        on_gap: told stream, first and last sequence of a stretch that retention removed unread.
    """

    def __init__(self, bus: Bus, subscriber: Subscriber, on_gap: Callable[[str, int, int], None]) -> None:
        self._bus = bus
        self._on_gap = on_gap
        self.subscriber = subscriber
        self.consumers: list[Consumer] = []
        self._full = False
        self._ticker: asyncio.Task[None] | None = None
        self._probe_at = 0.0
        subscriber.on_full = self._hold

    async def exists(self) -> bool:
        """Whether all durables exist already; also true where we may only use what an administrator made.

        Raises:
            BusError: the server does not say.
        """
        for stream in self.subscriber.filters.streams:
            try:
                await self._bus.js_api(f"CONSUMER.INFO.{stream}.{self.subscriber.declared.id}")
            except BusNotFound:
                return False
            except BusPermissionDenied:
                continue
        return True

    async def start(self) -> None:
        """Make or find the durables and begin.

        Raises:
            BusNotFound: a stream is missing.
            BusPermissionDenied: the identity may not consume it.
        """
        declared = self.subscriber.declared
        for stream, patterns in self.subscriber.filters.streams.items():
            spec = ConsumerSpec(
                stream=stream,
                name=declared.id,
                filters=patterns,
                start=consumer_start(declared.start),
                ack_wait=ACK_WAIT,
                max_ack_pending=_MAX_ACK_PENDING,
                batch=_PULL,
                description=f"handler {declared.name}: {declared.place}",
            )
            self.consumers.append(
                await Consumer.start(self._bus, spec, self.subscriber.receive, on_gap=self._gap_of(stream), on_event=self._said)
            )
        self._ticker = asyncio.create_task(self._tick(), name=f"handler-ticks-{declared.id}")

    async def stop(self, grace: float) -> None:
        """Finish what runs within ``grace`` seconds, hand the rest back to the server, stop consuming."""
        for consumer in self.consumers:
            consumer.pause()
        left = await self.subscriber.lanes.drain(grace)
        if self._ticker is not None:
            await end(self._ticker)
        for consumer in self.consumers:
            await consumer.stop()
        # only now: while we still pull, the server would send back to us what we hand back
        for work in (*left, *self.subscriber.lanes.works()):
            work.delivery.nak(_NAK_SECONDS)
        if self._bus.connected:
            await self._bus.flush()

    async def lag(self) -> int:
        """Events of the streams that were not delivered yet.

        Raises:
            BusError: the server does not say.
        """
        return sum([int((await consumer.info())["num_pending"]) for consumer in self.consumers])

    def _gap_of(self, stream: str) -> Callable[[int, int], None]:
        return lambda first, last: self._on_gap(stream, first, last)

    def _said(self, event: ConsumerEvent) -> None:
        log.warning("consumer repaired", handler=self.subscriber.declared.id, kind=event.kind, detail=event.detail)

    def _hold(self) -> None:
        if not self._full:
            self._full = True
            for consumer in self.consumers:
                consumer.pause()

    async def _tick(self) -> None:
        loop, subscriber = asyncio.get_running_loop(), self.subscriber
        limit = subscriber.declared.timeout
        interval = min(0.5, limit / 4)
        told = loop.time()
        while True:
            await asyncio.sleep(interval)
            now = loop.time()
            subscriber.lanes.cancel_overdue(limit)
            if now - told > ACK_WAIT / 6:
                told = now
                self._say_in_progress(now)
            if self._full and subscriber.lanes.size <= CAPACITY // 2:
                self._full = False
                subscriber.lanes.resumed()
                for consumer in self.consumers:
                    consumer.resume()
            self._probe(now)
            subscriber.measure()

    def _say_in_progress(self, now: float) -> None:
        for work in self.subscriber.lanes.works():
            if now - work.touched > ACK_WAIT / 3:
                work.touched = now
                work.delivery.in_progress()

    def _probe(self, now: float) -> None:
        breaker = self.subscriber.breaker
        if not breaker.paused:
            self._probe_at = 0.0
        elif not self._probe_at:
            self._probe_at = now + breaker.probe_after
        elif now >= self._probe_at:
            self._probe_at = 0.0
            log.info("probing a paused handler", handler=self.subscriber.declared.id)
            breaker.probing()
            self.subscriber.lanes.probe()


async def located(bus: Bus, filters: Filters) -> Filters:
    """The filters on the streams that keep what they match: a big fleet's changes lie in several, ``IPE_K8S_<shard>``.

    Streams of other names that copy our subjects are left alone. A shard made later is found at the next start.

    Raises:
        BusError: the server does not say which streams there are.
    """
    streams: dict[str, tuple[str, ...]] = {name: patterns for name, patterns in filters.streams.items() if name != CHANGES}
    for pattern in filters.streams.get(CHANGES, ()):
        try:
            names = await streams_of(bus, pattern)
        except BusPermissionDenied:
            return filters
        kept = [name for name in names if name == CHANGES or name.startswith(f"{CHANGES}_")]
        for name in kept or [CHANGES]:  # a stream that is missing is said when its consumer is made
            streams[name] = (*streams.get(name, ()), pattern)
    return replace(filters, streams=streams)


def consumer_start(start: Start) -> ConsumerStart:
    """Where the durable begins; a snapshot is followed by what happens from now on."""
    return "new" if start == "snapshot" else start
