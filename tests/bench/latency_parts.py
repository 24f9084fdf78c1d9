"""The processes around ``latency``: the simulated cluster and the agent's collector, each noting when a change passes.

``python -m tests.bench.latency_parts cluster|agent FILE …`` runs one until SIGTERM, then writes to FILE, as JSON, what it has
seen: resourceVersion → the machine's monotonic clock in nanoseconds, which all processes of one machine share.
"""

import asyncio
import gc
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ipe_events.agent.collector import Collector, CollectSettings
from ipe_events.agent.feed import Feed
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import KubeSession
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.load import LoadGenerator

CLUSTER = "prod-eu-1"
PODS = 256

Stamps = dict[str, int]


async def cluster(stamps: Stamps, stop: asyncio.Event, rate: str, events: str) -> None:
    """Print the URL, wait for a line, then change pods at an even rate; each change is noted as it is committed.

    Changes go straight to the store: patching and field management, which an API server does in other processes on other
    processors, would take half of one of ours.
    """
    generator = LoadGenerator()
    async with FakeCluster(CLUSTER) as fake:
        generator.populate(fake, pods=PODS)
        print(fake.url, flush=True)
        if not await asyncio.to_thread(sys.stdin.readline):
            return  # nobody wants changes any more
        fake.store.subscribe(("", "pods"), lambda change: stamps.__setitem__(str(change.rv), time.monotonic_ns()))
        gc.collect()
        gc.freeze()
        loop = asyncio.get_running_loop()
        start = loop.time()
        keys = [key for key, _ in fake.store.items(("", "pods"))]
        for number in range(int(events)):
            # also when late: what was changed must get a chance to leave before the next change
            await asyncio.sleep(max(0.0, start + number / float(rate) - loop.time()))
            _touch(fake, keys[number % PODS], number)
        await stop.wait()


def _touch(fake: FakeCluster, key: tuple[str, str], number: int) -> None:
    item = fake.store.get(("", "pods"), key)
    assert item is not None
    metadata = item.obj["metadata"]
    annotations = metadata["annotations"] | {"load.ipe.dev/number": str(number)}
    fake.store.put(("", "pods"), key, item.obj | {"metadata": metadata | {"annotations": annotations}})


async def agent(stamps: Stamps, stop: asyncio.Event, nats: str, kubeconfig: str) -> None:
    """The collector that ``ipe agent run`` uses; each change is noted when it has been read and decoded."""
    take: Callable[..., None] = Feed.event

    def event(self: Feed, event: Any, version: int) -> None:
        stamps[str(version)] = time.monotonic_ns()
        take(self, event, version)

    Feed.event = event  # type: ignore[method-assign]  # the one place that sees each change before it is published
    async with (
        await Bus.connect(BusSettings(servers=(nats,)), name="bench-agent") as bus,
        await KubeSession.open(ClusterSource(CLUSTER, kubeconfig)) as session,
    ):
        collector = Collector(CLUSTER, session, bus, CollectSettings())
        collector.want([ResourceRef.parse("pods")])
        gc.collect()
        gc.freeze()  # as `ipe agent run` does
        collecting = asyncio.create_task(collector.run())
        await stop.wait()
        collecting.cancel()
        await asyncio.wait([collecting])


PARTS: dict[str, Callable[..., Awaitable[None]]] = {"cluster": cluster, "agent": agent}


async def _main(part: str, file: str, *arguments: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    stamps: Stamps = {}
    await PARTS[part](stamps, stop, *arguments)
    Path(file).write_text(json.dumps(stamps))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
