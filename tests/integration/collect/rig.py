"""One collector between a FakeCluster and a real bus, and what the stream holds afterwards.

Every test of this folder compares sets of change ids: what the cluster did, taken from the cluster, with what the stream holds.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from ipe_events.agent.collector import Collector, CollectSettings
from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import ensure
from ipe_events.events.cluster import ClusterEvent, Gap
from ipe_events.events.headers import header
from ipe_events.events.ids import ChangeId, parse_change_id
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import KubeSession
from ipe_events.testing.fake.cluster import FakeCluster
from tests.helpers import eventually

E = TypeVar("E", bound=ClusterEvent)

CONFIGMAPS = ResourceRef.parse("configmaps")
CLUSTER = "prod-eu"
QUICK = CollectSettings(silent_seconds=1.0, checkpoint_seconds=0.05, index_seconds=0.2, heartbeat=0.5, page=3, farewell_seconds=0)
"""Settings under which faults are noticed within a test's patience."""

_LOOK_SECONDS = 15.0


def config_map(name: str, value: str = "1", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"value": value}}


@dataclass
class Rig:
    """What a test holds in its hands."""

    cluster: FakeCluster
    bus: Bus
    folder: Path
    settings: CollectSettings = QUICK
    events: list[ClusterEvent] = field(default_factory=list)

    @asynccontextmanager
    async def collecting(
        self, *resources: str, flush: bool = False, settings: CollectSettings | None = None
    ) -> AsyncIterator[Collector]:
        """A running collector, synced; it ends without a farewell, as if killed, unless ``flush``."""
        source = ClusterSource(CLUSTER, str(self.cluster.kubeconfig(self.folder / "kubeconfig")))
        async with await KubeSession.open(source) as session:
            settings = settings or self.settings
            settings = replace(settings, farewell_seconds=5.0) if flush else settings
            collector = Collector(CLUSTER, session, self.bus, settings, on_event=self.events.append)
            collector.want([ResourceRef.parse(name) for name in resources or ("configmaps",)])
            task = asyncio.create_task(collector.run())
            try:
                await eventually(lambda: collector.status().state == "connected", timeout=_LOOK_SECONDS)
                yield collector
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def messages(self, stream: str = "IPE_K8S") -> list[tuple[str, dict[str, Any]]]:
        """(id, body) of every change in the stream, in order."""
        if not (await self.bus.stream_info(stream))["state"]["messages"]:
            return []
        return [
            (header(delivery.header_bytes, b"ce-id"), orjson.loads(delivery.body)) async for delivery in self.bus.read(stream)
        ]

    async def changes(self) -> list[ChangeId]:
        """Every change in the stream, in order; fails on an id that is there twice."""
        ids = [text for text, _ in await self.messages()]
        twice = [text for text, count in Counter(ids).items() if count > 1]
        assert not twice, f"ids twice in the stream: {twice[:5]}"
        return [parse_change_id(text) for text in ids]

    async def expect(self, wanted: Callable[[], set[tuple[str, str, str]]] | set[tuple[str, str, str]]) -> None:
        """The stream comes to hold exactly these (uid, resourceVersion, verb)."""

        def target() -> set[tuple[str, str, str]]:
            return wanted() if callable(wanted) else wanted

        async def complete() -> bool:
            return target() <= {(change.uid, change.resource_version, change.verb) for change in await self.changes()}

        try:
            await eventually(complete, timeout=_LOOK_SECONDS, interval=0.1)
        finally:
            found = {(change.uid, change.resource_version, change.verb) for change in await self.changes()}
            assert found == target(), f"missing {target() - found}, too much {found - target()}"

    async def gap(self, cause: str) -> Gap:
        """The first gap of this cause, once it is published."""
        await eventually(lambda: any(gap.cause == cause for gap in self.told(Gap)), timeout=_LOOK_SECONDS)
        return next(gap for gap in self.told(Gap) if gap.cause == cause)

    def told(self, kind: type[E]) -> list[E]:
        """The cluster events of this kind that were published so far."""
        return [event for event in self.events if isinstance(event, kind)]

    async def first(self, kind: type[E]) -> E:
        """The first cluster event of this kind, once it is published."""
        await eventually(lambda: self.told(kind), timeout=_LOOK_SECONDS)
        return self.told(kind)[0]

    def with_settings(self, **changes: Any) -> CollectSettings:
        return replace(self.settings, **changes)


def seen(obj: dict[str, Any], verb: str) -> tuple[str, str, str]:
    """What the stream holds of this state of an object."""
    return obj["metadata"]["uid"], obj["metadata"]["resourceVersion"], verb


async def make_rig(bus: Bus, cluster: FakeCluster, folder: Path) -> Rig:
    await ensure(bus)
    return Rig(cluster, bus, folder)
