"""Asking agents for snapshots and feeding their items to a handler; the joining itself is ``ipe_events.runtime.snapshot``.

The agents' statuses say whom to ask: each cluster that a handler wants is asked once its agent has the whole resource, those
that report for the first time while the handler runs included. Items come over the stream ``IPE_SNAP`` on a subject that belongs
to one request alone. An agent that fails, falls silent or is replaced by another in the middle is asked again until it has
answered in full. What has been taken in is remembered (``ipe_events.runtime.taken``) and not asked for again.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from ipe_events.bus.connection import Bus
from ipe_events.bus.delivery import Delivery
from ipe_events.bus.reading import OrderedReader
from ipe_events.clock import Clock, rfc3339
from ipe_events.errors import BusError, BusTimeout, BusUnavailable, SchemaError
from ipe_events.events.codec import parse
from ipe_events.events.headers import header
from ipe_events.events.ids import derived_id
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import read_status
from ipe_events.runtime.agents import AGENTS_BUCKET
from ipe_events.runtime.filters import matches_any
from ipe_events.runtime.snapshot import Join, Scope, can_tell
from ipe_events.runtime.subscriber import CAPACITY, Subscriber
from ipe_events.runtime.taken import Taken
from ipe_events.subjects import AGENT_SERVICE, SNAPSHOT
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

END_TYPE = "dev.ipe.snapshot.end.v1"
"""``ce-type`` of the marker that ends a snapshot."""

_REQUEST_SECONDS = 300.0
_SILENT_SECONDS = 60.0
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0
_PARALLEL = 4


class SnapshotItem:
    """An item as something that lanes can hold; it lies in no durable, so settling it is only counted."""

    __slots__ = ("_settled", "body", "deliveries", "header_bytes", "seq", "stream", "subject", "time")

    def __init__(self, delivery: Delivery, settled: Callable[[bool], None]) -> None:
        self.subject = delivery.subject
        self.header_bytes = delivery.header_bytes
        self.body = delivery.body
        self.seq = -delivery.seq
        self.stream = delivery.stream
        self.time: datetime = delivery.time
        self.deliveries = 1
        self._settled = settled

    def ack(self) -> None:
        """Done."""
        self._settled(True)

    def nak(self, delay: float) -> None:
        """Not done: a handler that starts again takes the snapshot again."""

    def term(self, reason: str = "") -> None:
        """Given up: the snapshot does not count as taken in, for dead items are not replayed."""
        self._settled(False)

    def in_progress(self) -> None:
        """Nobody waits for it."""


@dataclass(eq=False)
class _Load:
    """One snapshot on its way in.

    Attributes:
        scope: of what.
        agent: the process that is asked.
        replaced: set when another process took its place.
        open: items that the handler has not settled.
        idle: set when there are none.
        dead: items that became dead letters.
    """

    scope: Scope
    agent: str
    replaced: asyncio.Event = field(default_factory=asyncio.Event)
    open: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    dead: int = 0

    def take(self, delivery: Delivery) -> SnapshotItem:
        """The next item."""
        self.open += 1
        self.idle.clear()
        return SnapshotItem(delivery, self._settle)

    def _settle(self, done: bool) -> None:
        self.open -= 1
        self.dead += not done
        if not self.open:
            self.idle.set()

    async def settled(self) -> None:
        """Return when everything that came is settled."""
        while self.open:
            await self.idle.wait()


class SnapshotLoader:
    """Loads one handler's snapshots.

    Args:
        bus: the connection.
        subscriber: what the items go to.
        clock: tells one start from another.
    """

    def __init__(self, bus: Bus, subscriber: Subscriber, clock: Clock) -> None:
        self._bus = bus
        self._subscriber = subscriber
        self._declared = subscriber.declared
        self._clock = clock
        self._join = subscriber.join = Join()
        self._taken = Taken(bus, subscriber.declared, clock)
        self._done: set[Scope] = set()
        self._loads: dict[Scope, _Load] = {}
        self._limit = asyncio.Semaphore(_PARALLEL)

    async def prepare(self, *, resumed: bool) -> None:
        """Find out whom to ask, before the consumer starts.

        Args:
            resumed: the handler's durable exists: what was taken in before is not asked for again.

        Raises:
            BusError: the agents' statuses cannot be read.
        """
        if resumed:
            self._done.update(await self._taken.scopes())
        else:
            await self._taken.clear()
        for scope in self._done:
            self._join.complete(scope)
        async for entry in (await self._bus.kv(AGENTS_BUCKET, create=True)).entries():
            self._look(entry.key, entry.value)

    async def run(self) -> None:
        """Load what is known, then what is heard of, until cancelled; the consumer must have started."""
        async with asyncio.TaskGroup() as group:
            for load in self._loads.values():
                group.create_task(self._until_done(load))
            while True:
                try:
                    async for entry in (await self._bus.kv(AGENTS_BUCKET, create=True)).watch():
                        if entry is not None and not entry.deleted:
                            for load in self._look(entry.key, entry.value):
                                group.create_task(self._until_done(load))
                except BusError as error:
                    log.warning("agents' statuses cannot be read", handler=self._declared.id, error=str(error))
                    await asyncio.sleep(_FIRST_DELAY)

    def _look(self, key: str, value: bytes) -> list[_Load]:
        """What an agent's status asks for: snapshots to begin; those under way are begun anew when it is another agent."""
        try:
            status = read_status(key, value)
        except SchemaError as error:
            log.warning("an agent's status cannot be read", key=key, error=str(error))
            return []
        begun: list[_Load] = []
        if not matches_any(status.cluster, self._declared.clusters):
            return begun
        for ref in self._declared.resources:
            scope = (status.cluster, ref.group, ref.resource)
            load = self._loads.get(scope)
            if load is not None and load.agent != status.agent:
                load.agent = status.agent
                load.replaced.set()
            elif load is None and scope not in self._done and can_tell(status, ref):
                self._join.begin(scope)
                self._loads[scope] = load = _Load(scope, status.agent)
                begun.append(load)
        return begun

    async def _until_done(self, load: _Load) -> None:
        keys = {"handler": self._declared.id, "cluster": load.scope[0], "resource": _resource(load.scope)}
        delay, attempt = _FIRST_DELAY, 0
        version = None
        while version is None:
            attempt += 1
            try:
                async with self._limit:
                    version = await self._load(load, attempt)
            except (BusError, SchemaError) as error:
                wait = delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                log.warning("no snapshot yet", **keys, error=str(error), retry_seconds=round(wait, 1))
                await asyncio.sleep(wait)
                delay = min(_LONGEST_DELAY, delay * 2)
        self._join.end(load.scope, version)
        log.info("snapshot is complete", **keys, resource_version=version)
        await load.settled()
        if load.dead:
            log.warning("items became dead letters; the next start takes the snapshot again", **keys, items=load.dead)
            self._done.add(load.scope)
        while load.scope not in self._done:
            try:
                await self._taken.add(load.scope, version)
                self._done.add(load.scope)
            except BusError as error:
                log.warning("a complete snapshot cannot be recorded yet", **keys, error=str(error))
                await asyncio.sleep(_FIRST_DELAY)
        del self._loads[load.scope]

    async def _load(self, load: _Load, attempt: int) -> str:
        """One try; returns the list's resourceVersion.

        Raises:
            BusError: the agent refuses, is away, silent or replaced.
            SchemaError: items and marker do not fit.
        """
        handler = self._declared
        cluster, group, resource = load.scope
        load.replaced.clear()
        request = derived_id(handler.id, cluster, group, resource, rfc3339(self._clock.now()), attempt)
        subject = SNAPSHOT.format(handler=handler.name, request=request, cluster=cluster, group=group, resource=resource)
        question = {"resource": _resource(load.scope), "namespace": "", "request": request}
        service = AGENT_SERVICE.format(cluster=cluster, caller=handler.name, verb="snapshot")
        reading = asyncio.create_task(self._read(load, subject))
        asked = asyncio.create_task(self._bus.request(service, orjson.dumps(question), timeout=_REQUEST_SECONDS))
        replaced = asyncio.create_task(load.replaced.wait())
        tasks: set[asyncio.Task[Any]] = {reading, asked, replaced}
        try:
            waiting = tasks
            while reading in waiting:
                # a refused question ends the wait, an answered one does not
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if replaced in done and reading not in done:
                    raise BusUnavailable("the agent was replaced by another in the middle", where=cluster)
                for task in done:
                    task.result()
            return reading.result()
        finally:
            await end(*tasks)

    async def _read(self, load: _Load, subject: str) -> str:
        """Hand items on until the end marker; returns its resourceVersion."""
        count = 0
        async with OrderedReader(self._bus, SNAPSHOT.stream, (subject,), start="all") as reader:
            while True:
                try:
                    async with asyncio.timeout(_SILENT_SECONDS):
                        delivery = await reader.next()
                except TimeoutError as error:
                    raise BusTimeout(f"the agent has sent nothing for {_SILENT_SECONDS:g} s", where=subject) from error
                if header(delivery.header_bytes, b"ce-type") == END_TYPE:
                    break
                count += 1
                await self._subscriber.lanes.wait_below(CAPACITY // 2)
                self._subscriber.receive_item(load.take(delivery))
        marker = parse(delivery.body, where=subject)
        if not isinstance(marker, dict) or marker.get("items") != count:
            raise SchemaError(f"the snapshot's end does not fit the {count} items that came", where=subject)
        return str(marker.get("resource_version", ""))


def _resource(scope: Scope) -> str:
    return str(ResourceRef(group=scope[1], resource=scope[2]))
