"""Asking agents for snapshots and feeding their items to a handler; the joining itself is ``ipe_events.runtime.snapshot``.

Items come over the stream ``IPE_SNAP`` on a subject that belongs to this request alone. An agent that is away is asked again
until it answers; an agent that refuses is believed, said in the log, and the handler goes on with live changes.
"""

import asyncio
import random
from datetime import datetime

import orjson

from ipe_events.bus.connection import Bus
from ipe_events.bus.delivery import Delivery
from ipe_events.clock import Clock, rfc3339
from ipe_events.errors import BusError, SchemaError, ServiceError
from ipe_events.events.codec import parse
from ipe_events.events.headers import header
from ipe_events.events.ids import derived_id
from ipe_events.events.refs import ResourceRef
from ipe_events.runtime.agents import Agents
from ipe_events.runtime.filters import matches_any
from ipe_events.runtime.snapshot import Join, Scope
from ipe_events.runtime.subscriber import CAPACITY, Subscriber
from ipe_events.subjects import AGENT_SERVICE, SNAPSHOT
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

END_TYPE = "dev.ipe.snapshot.end.v1"
"""``ce-type`` of the marker that ends a snapshot."""

_REQUEST_SECONDS = 300.0
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0
_REFUSALS = frozenset({400, 403, 404})


class SnapshotItem:
    """An item as something that lanes can hold; it lies in no durable, so settling it means nothing."""

    __slots__ = ("body", "deliveries", "header_bytes", "seq", "stream", "subject", "time")

    def __init__(self, delivery: Delivery) -> None:
        self.subject = delivery.subject
        self.header_bytes = delivery.header_bytes
        self.body = delivery.body
        self.seq = -delivery.seq
        self.stream = delivery.stream
        self.time: datetime = delivery.time
        self.deliveries = 1

    def ack(self) -> None:
        """Nothing to tell."""

    def nak(self, delay: float) -> None:
        """Nothing to tell: a handler that starts again takes a new snapshot."""

    def term(self, reason: str = "") -> None:
        """Nothing to tell."""

    def in_progress(self) -> None:
        """Nothing to tell."""


class SnapshotLoader:
    """Loads one handler's snapshots, one after the other.

    Args:
        bus: the connection.
        subscriber: what the items go to.
        clock: tells one start from another.
    """

    def __init__(self, bus: Bus, subscriber: Subscriber, clock: Clock) -> None:
        self._bus = bus
        self._subscriber = subscriber
        self._clock = clock
        self._join = subscriber.join = Join()
        self._scopes: list[Scope] = []

    async def prepare(self) -> None:
        """Find out whom to ask, and note live changes from now on; before the consumer starts.

        Raises:
            BusError: the agents' statuses cannot be read.
        """
        declared = self._subscriber.declared
        known = {status.cluster for status in await Agents(self._bus, declared.name).known()}
        named = {name for name in declared.clusters if not any(letter in name for letter in "*?[")}
        clusters = sorted(name for name in known | named if matches_any(name, declared.clusters))
        self._scopes = [(cluster, ref.group, ref.resource) for cluster in clusters for ref in declared.resources]
        for scope in self._scopes:
            self._join.begin(scope)

    async def run(self) -> None:
        """Load every snapshot; returns when all are complete or refused."""
        for scope in self._scopes:
            await self._until_done(scope)
        log.info("snapshots are complete", handler=self._subscriber.declared.id, scopes=len(self._scopes))

    async def _until_done(self, scope: Scope) -> None:
        delay, attempt = _FIRST_DELAY, 0
        keys = {"handler": self._subscriber.declared.id, "cluster": scope[0], "resource": _resource(scope)}
        while True:
            attempt += 1
            try:
                self._join.end(scope, await self._load(scope, attempt))
            except ServiceError as error:
                if error.code in _REFUSALS:
                    log.error(  # noqa: TRY400 - the answer says it all, a traceback adds nothing
                        "the agent refuses a snapshot; going on with live changes only", **keys, error=str(error)
                    )
                    self._join.end(scope, "")
                    return
                log.warning("no snapshot yet", **keys, error=str(error), retry_seconds=delay)
            except (BusError, SchemaError) as error:
                log.warning("no snapshot yet", **keys, error=str(error), retry_seconds=delay)
            else:
                return
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            delay = min(_LONGEST_DELAY, delay * 2)

    async def _load(self, scope: Scope, attempt: int) -> str:
        """One try; returns the list's resourceVersion."""
        declared = self._subscriber.declared
        cluster, group, resource = scope
        request = derived_id(declared.id, cluster, group, resource, rfc3339(self._clock.now()), attempt)
        subject = SNAPSHOT.format(handler=declared.name, request=request, cluster=cluster, group=group, resource=resource)
        question = {"resource": _resource(scope), "namespace": "", "request": request}
        asked = asyncio.create_task(
            self._ask(AGENT_SERVICE.format(cluster=cluster, caller=declared.name, verb="snapshot"), question)
        )
        reading = asyncio.create_task(self._read(subject))
        try:
            await _both(asked, reading)
            return reading.result()
        finally:
            for task in (asked, reading):
                task.cancel()
            await asyncio.gather(asked, reading, return_exceptions=True)

    async def _ask(self, subject: str, question: dict[str, str]) -> None:
        await self._bus.request(subject, orjson.dumps(question), timeout=_REQUEST_SECONDS)

    async def _read(self, subject: str) -> str:
        """Hand items on until the end marker; returns its resourceVersion."""
        count = 0
        async for delivery in self._bus.read(SNAPSHOT.stream, [subject], start="all", follow=True):
            if header(delivery.header_bytes, b"ce-type") == END_TYPE:
                marker = parse(delivery.body, where=subject)
                if not isinstance(marker, dict) or marker.get("items") != count:
                    raise SchemaError(f"the snapshot's end does not fit the {count} items that came", where=subject)
                return str(marker.get("resource_version", ""))
            count += 1
            await self._subscriber.lanes.wait_below(CAPACITY // 2)
            self._subscriber.receive_item(SnapshotItem(delivery))
        raise SchemaError("the snapshot ended without its marker", where=subject)


async def _both(asked: "asyncio.Task[None]", reading: "asyncio.Task[str]") -> None:
    """Wait for the items' end; a refused question ends the wait, an answered one does not."""
    waiting: set[asyncio.Task[None] | asyncio.Task[str]] = {asked, reading}
    while reading in waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _resource(scope: Scope) -> str:
    return str(ResourceRef(group=scope[1], resource=scope[2]))
