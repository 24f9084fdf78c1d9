"""What an agent says of its cluster, published in order and kept while the bus is away.

Events are handed over without waiting, since gaps are found in the middle of the hot path. At most a thousand wait; beyond that
gaps of one resource and cause become one that names no object, so that a storm of oversize objects cannot fill the memory and
still nothing is silent.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ipe_events.bus.cloudevents import headers_for
from ipe_events.bus.connection import Bus
from ipe_events.errors import BusError
from ipe_events.events.cluster import ClusterEvent, Gap
from ipe_events.events.codec import encode
from ipe_events.events.ids import derived_id
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import counter
from ipe_events.telemetry.trace import new_trace

_log = get_logger(__name__)

GAPS = counter("ipe_gaps_total", "Stretches in which the record may be incomplete, by cause.", ("cluster", "resource", "cause"))

_MOST_WAITING = 1000
_LONGEST_DELAY = 10.0


class Announcer:
    """Publishes the cluster events of one agent.

    Args:
        bus: the connection.
        cluster: the operator's name for it.
        agent_id: which agent says so.
        on_event: called with each event after it was published.
    """

    def __init__(
        self, bus: Bus, cluster: str, agent_id: str, on_event: Callable[[ClusterEvent], Awaitable[None] | None] | None = None
    ) -> None:
        self._bus = bus
        self._cluster = cluster
        self._agent_id = agent_id
        self._on_event = on_event
        self._waiting: deque[ClusterEvent] = deque()
        self._merged: dict[tuple[str, str], Gap] = {}
        self._wake = asyncio.Event()
        self._done = asyncio.Event()
        self._count = 0

    def say(self, event: ClusterEvent) -> None:
        """Publish this after everything said before."""
        if isinstance(event, Gap):
            GAPS.labels(self._cluster, event.resource, event.cause).add()
            _log.warning("gap", cluster=self._cluster, resource=event.resource, cause=event.cause, detail=event.detail)
            if len(self._waiting) >= _MOST_WAITING:
                merged = event.model_copy(update={"subject_object": "", "detail": f"many objects; the last: {event.detail}"})
                self._merged[(event.resource, event.cause)] = merged
                self._wake.set()
                return
        elif len(self._waiting) >= _MOST_WAITING:
            _log.warning("cluster event dropped: too many wait for the bus", cluster=self._cluster, state=event.type_name)
            return
        self._waiting.append(event)
        self._wake.set()

    @property
    def waiting(self) -> bool:
        """Whether something said is not published yet."""
        return bool(self._waiting or self._merged)

    async def drain(self) -> None:
        """Return when everything said so far is published."""
        while self._waiting or self._merged:
            self._done.clear()
            await self._done.wait()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            while not self._waiting and not self._merged:
                self._done.set()
                self._wake.clear()
                await self._wake.wait()
            if not self._waiting:
                self._waiting.append(self._merged.pop(next(iter(self._merged))))
            event = self._waiting[0]
            await self._publish(event)
            self._waiting.popleft()
            if self._on_event is not None:
                told = self._on_event(event)
                if told is not None:
                    await told

    async def _publish(self, event: ClusterEvent) -> None:
        """Until the bus takes it."""
        self._count += 1
        event_id = derived_id(self._agent_id, self._cluster, event.type_name, event.time.isoformat(), self._count)
        trace = new_trace().traceparent
        headers = headers_for(event, id=event_id, source=f"/clusters/{self._cluster}", time=event.time, trace=trace)
        subject = event.topic.format(cluster=self._cluster, state=event.type_name)
        body, delay = encode(event), 0.2
        while True:
            try:
                await self._bus.publish(subject, body, id=event_id, headers=headers)
            except BusError as error:
                _log.warning("cluster event not published yet", subject=subject, error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
            else:
                return
