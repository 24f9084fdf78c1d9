"""Handlers on a bus whose changes are spread over several streams."""

from ipe_events import Change, handler
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import TopologySettings
from ipe_events.declaration import Declared, declaration_of
from ipe_events.runtime.app import HandlerApp
from ipe_events.testing import change
from ipe_events.testing.testbus import codec_headers
from tests.helpers import eventually
from tests.nats import NatsServer

SHARDED = TopologySettings(shards={"east": ("c-east",), "west": ("c-west", "c-far")}, clusters=("c-rest",))
CLUSTERS = ("c-east", "c-west", "c-far", "c-rest")


async def publish(bus: Bus, cluster: str, version: int) -> None:
    metadata = {"name": f"of-{cluster}", "namespace": "shop", "resourceVersion": str(version)}
    one = change({"kind": "Pod", "apiVersion": "v1", "metadata": metadata}, cluster=cluster)
    await bus.publish(one.subject, one.body, id=one.id, headers=codec_headers(one.header_bytes))


async def consumers(bus: Bus, stream: str) -> list[str]:
    return list((await bus.js_api(f"CONSUMER.NAMES.{stream}")).get("consumers") or ())


async def test_a_handler_hears_of_every_shard_and_consumes_only_those_it_needs(nats_server: NatsServer, bus: Bus):
    await topology.apply(bus, await topology.plan(bus, topology.desired(SHARDED)))
    copy = {"name": "COPY", "sources": [{"name": "IPE_K8S_east"}], "storage": "file"}
    await bus.js_api("STREAM.CREATE.COPY", copy)
    seen: list[tuple[str, str, str]] = []

    @handler(on="pods", start="all")
    async def everywhere(pod: Change) -> None:
        seen.append(("everywhere", pod.cluster, pod.resource_version))

    @handler(on="pods", start="all", clusters="c-west")
    async def western(pod: Change) -> None:
        seen.append(("western", pod.cluster, pod.resource_version))

    for cluster in CLUSTERS:
        await publish(bus, cluster, 1)
    declared = [one for one in map(declaration_of, (everywhere, western)) if isinstance(one, Declared)]
    async with HandlerApp(declared, nats_server.settings):
        for cluster in CLUSTERS:
            await publish(bus, cluster, 2)
        await eventually(lambda: len(seen) >= 2 * len(CLUSTERS) + 2)
        expected = [("everywhere", cluster, version) for cluster in CLUSTERS for version in "12"]
        assert sorted(seen) == sorted([*expected, ("western", "c-west", "1"), ("western", "c-west", "2")])
        assert await consumers(bus, "IPE_K8S") == ["everywhere"]
        assert sorted(await consumers(bus, "IPE_K8S_west")) == ["everywhere", "western"]
        assert await consumers(bus, "COPY") == []
