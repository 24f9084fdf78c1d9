"""Which snapshots a handler has taken in: remembered in KV, so that a restart goes on with live changes alone.

A snapshot counts only when its last item has been handled, and none became a dead letter; a handler that starts again before
takes it again. The memory
belongs to the handler's durable: when there is none (the first start, or somebody deleted it to have everything once more), it
is cleared. A snapshot taken for other namespaces than the handler wants now does not count either.
"""

from collections.abc import Sequence

from ipe_events.bus.connection import Bus
from ipe_events.clock import Clock
from ipe_events.declaration import Subscription
from ipe_events.errors import SchemaError
from ipe_events.events.codec import decode, encode
from ipe_events.events.registry import SnapshotTaken
from ipe_events.runtime.snapshot import Scope
from ipe_events.subjects import escape
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

BUCKET = "ipe_snapshots"


class Taken:
    """The memory of one handler.

    Raises (all methods):
        BusError: the bucket cannot be read or written.
    """

    def __init__(self, bus: Bus, declared: Subscription, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._prefix = escape(declared.id)
        self._namespaces = tuple(sorted(declared.namespaces))

    async def scopes(self) -> Sequence[Scope]:
        """What has been taken in."""
        found: list[Scope] = []
        async for entry in (await self._bus.kv(BUCKET, create=True)).entries(self._prefix):
            try:
                record = decode(SnapshotTaken, entry.value)
            except SchemaError as error:
                log.warning("a snapshot's record cannot be read; it is taken again", key=entry.key, error=str(error))
                continue
            if record.namespaces == self._namespaces:
                found.append((record.cluster, record.group, record.resource))
        return found

    async def add(self, scope: Scope, resource_version: str) -> None:
        """A snapshot has been taken in."""
        cluster, group, resource = scope
        record = SnapshotTaken(
            cluster=cluster,
            group=group,
            resource=resource,
            resource_version=resource_version,
            namespaces=self._namespaces,
            time=self._clock.now(),
        )
        key = ".".join((self._prefix, escape(cluster), escape(group or "core"), escape(resource)))
        await (await self._bus.kv(BUCKET, create=True)).put(key, encode(record))

    async def clear(self) -> None:
        """Forget everything."""
        bucket = await self._bus.kv(BUCKET, create=True)
        for key in await bucket.keys(self._prefix):
            await bucket.delete(key)
