"""Change in the cluster → handler called, at 1,000 events a second.

Four processes: the simulated cluster, which dates each change with the machine's monotonic clock as it makes it; the collector
that ``ipe agent run`` uses; the broker; and this one with a whole ``HandlerApp``. What is measured runs from the cluster's write
to the handler's first line, over HTTP, redaction, JetStream and the handler's lane. The first second is left out.
"""

import argparse
import asyncio
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ipe_events.agent.collector import Collector, CollectSettings
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.declaration import declaration_of
from ipe_events.events.change import Change
from ipe_events.events.message import Event
from ipe_events.events.refs import ResourceRef
from ipe_events.handler import handler
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import KubeSession
from ipe_events.runtime.app import HandlerApp
from ipe_events.testing.load import SENT_ANNOTATION
from tests.bench.ingest import kubeconfig
from tests.helpers import eventually
from tests.nats import NatsServer

CLUSTER = "prod-eu-1"
PODS = 256
_ROOT = Path(__file__).resolve().parents[2]

samples: list[int] = []
initial: set[str] = set()


@handler(on="pods", start="all")
async def arrived(event: Event[Change]) -> None:
    """Notes how old a change is when it gets here, in nanoseconds."""
    sent = (event.payload.metadata.annotations or {}).get(SENT_ANNOTATION)
    if sent is None:
        initial.add(event.payload.uid)
    else:
        samples.append(time.monotonic_ns() - int(sent))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=10_000, help="changes to make")
    parser.add_argument("--rate", type=int, default=1_000, help="changes a second")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    samples.clear()
    initial.clear()
    with tempfile.TemporaryDirectory(prefix="ipe-bench-") as name:
        folder = Path(name)
        server = NatsServer(folder / "nats").start()
        try:
            async with await Bus.connect(server.settings, name="bench-latency") as bus:
                await topology.ensure(bus)
            await _measure(args, folder, server)
        finally:
            server.kill()
    if len(samples) != args.events:
        raise AssertionError(f"{len(samples)} of {args.events} changes arrived")
    counted = sorted(samples[args.rate :])
    return {
        "p50_ms": round(_quantile(counted, 0.50), 2),
        "p95_ms": round(_quantile(counted, 0.95), 2),
        "p99_ms": round(_quantile(counted, 0.99), 2),
        "events_per_second": args.rate,
        "events": len(counted),
    }


async def _measure(args: argparse.Namespace, folder: Path, server: NatsServer) -> None:
    fake = [sys.executable, "-m", "ipe_events.testing.fake", "--pods", str(PODS), "--rate", str(args.rate), "--events"]
    with subprocess.Popen(  # noqa: ASYNC220 - starting a process takes no time that counts
        [*fake, str(args.events)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
    ) as cluster:
        assert cluster.stdout is not None
        assert cluster.stdin is not None
        url = (await asyncio.to_thread(cluster.stdout.readline)).strip()
        agent_command = [sys.executable, "-m", "tests.bench.latency", server.url, kubeconfig(folder, url)]
        with subprocess.Popen(agent_command, cwd=_ROOT) as agent:  # noqa: ASYNC220 - as above
            try:
                declared = declaration_of(arrived)
                assert declared is not None
                async with HandlerApp([declared], server.settings):
                    await eventually(lambda: len(initial) >= PODS, timeout=60)
                    gc.collect()
                    gc.freeze()  # as `ipe handlers run` does
                    cluster.stdin.write("go\n")
                    cluster.stdin.flush()
                    limit = 60 + 3 * args.events / args.rate
                    await eventually(lambda: len(samples) >= args.events, timeout=limit, interval=0.1)
            finally:
                agent.terminate()
                cluster.terminate()


def _quantile(ordered: list[int], share: float) -> float:
    """Milliseconds below which ``share`` of the samples lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


async def _collect(url: str, config: str) -> None:
    """The agent's process: collect pods until it is ended."""
    async with (
        await Bus.connect(BusSettings(servers=(url,)), name="bench-agent") as bus,
        await KubeSession.open(ClusterSource(CLUSTER, config)) as session,
    ):
        collector = Collector(CLUSTER, session, bus, CollectSettings())
        collector.want([ResourceRef.parse("pods")])
        gc.collect()
        gc.freeze()  # as `ipe agent run` does
        await collector.run()


if __name__ == "__main__":
    asyncio.run(_collect(sys.argv[1], sys.argv[2]))
