"""What the benches of the reading side share: a broker with a filled stream, several runs over it, and how a run is measured.

The broker is a process of its own. Messages are as ``ingest`` writes them, bodies are the load generator's pods, so that the
figures of ``consume`` and ``dispatch`` can be subtracted from each other.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.bus.frames import encode_headers
from ipe_events.events.ids import ChangeId
from ipe_events.subjects import CHANGE, partition
from ipe_events.testing.load import LoadGenerator
from tests.nats import NatsServer

CLUSTER = "prod-eu-1"
CLUSTER_UID = "0b7e6c8a-2f43-4f0a-9a55-3d1c5e9b7f10"
CHUNK = 250

Rates = tuple[float, float]
"""Events per second, and CPU µs of this process per event."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=40_000, help="messages in the stream")
    parser.add_argument("--runs", type=int, default=3, help="how often to read them; the median counts")


async def measure(args: argparse.Namespace, once: Callable[[NatsServer, int, int], Awaitable[Rates]]) -> dict[str, Any]:
    """The medians of several runs of ``once``, which gets the server, the number of events and the number of the run."""
    with tempfile.TemporaryDirectory(prefix="ipe-bench-") as folder:
        server = NatsServer(Path(folder)).start()
        try:
            async with await Bus.connect(server.settings, name="bench-fill") as bus:
                size = await fill(bus, args.events)
                await topology.ensure(bus)
            runs = [await once(server, args.events, number) for number in range(args.runs)]
        finally:
            server.kill()
    return {
        "events_per_second": round(statistics.median(rate for rate, _ in runs)),
        "cpu_us_per_event": round(statistics.median(cpu for _, cpu in runs), 2),
        "bytes_per_event": size,
        "events": args.events,
    }


class Stopwatch:
    """Measures from where it is made to ``stop``."""

    def __init__(self) -> None:
        self._usage, self._start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()

    def stop(self, events: int) -> Rates:
        usage, end = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        cpu = usage.ru_utime - self._usage.ru_utime + usage.ru_stime - self._usage.ru_stime
        return events / (end - self._start), cpu / events * 1e6


async def fill(bus: Bus, events: int) -> int:
    """Writes the stream; returns the size of one message."""
    await bus.js_api(
        "STREAM.CREATE.IPE_K8S",
        {"name": "IPE_K8S", "subjects": [CHANGE.wildcard], "storage": "file", "retention": "limits", "discard": "old"},
    )
    load = LoadGenerator(seed=7)
    bodies = [load.pod_json(index) for index in range(64)]
    size = 0
    for number in range(events):
        namespace = load.namespace(number)
        subject = CHANGE.format(
            cluster=CLUSTER,
            group="",
            resource="pods",
            namespace=namespace,
            verb="modified",
            partition=partition(CLUSTER, namespace, "pods"),
        )
        change = str(
            ChangeId(
                CLUSTER_UID,
                1,
                "",
                "pods",
                f"{number % 4096:08x}-9d1f-4c55-8a60-7f0a3f6e2b11",
                str(10_000_000 + number),
                "modified",
            )
        )
        headers = {
            "ce-specversion": "1.0",
            "ce-id": change,
            "ce-source": f"/clusters/{CLUSTER}",
            "ce-type": "dev.ipe.k8s.modified.v1",
            "ce-time": "2026-11-22T21:51:09.000123Z",
            "ce-subject": f"/api/v1/namespaces/{namespace}/pods/checkout-7c9f8d6b5-{number % 4096:05x}",
            "ce-kind": "Pod",
            "ce-name": f"checkout-7c9f8d6b5-{number % 4096:05x}",
            "ce-sequence": str(number),
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        }
        body = bodies[number % len(bodies)]
        if number % CHUNK == CHUNK - 1 or number == events - 1:
            await bus.publish(subject, body, id=change, headers=headers, timeout=30)  # waits for all before it
        else:
            frame = bus.frame(subject, encode_headers({**headers, "Nats-Msg-Id": change}), body)
            bus.client.write(frame)
            size = len(frame)
    info = await bus.stream_info("IPE_K8S")
    if info["state"]["messages"] != events:
        raise AssertionError(f"{info['state']['messages']} of {events} messages are in the stream")
    return size
