"""Change in the cluster → handler called, at 1,000 events a second.

Four processes: the simulated cluster, the collector that ``ipe agent run`` uses, the broker, and this one with a whole
``HandlerApp``. What is measured runs from the moment the API server has committed a change to the handler's first line: over
HTTP, redaction, JetStream and the handler's lane. The first two seconds are left out; of several stretches the median counts.

Each hop is measured too (``hops_ms``: p50 and p99), and for each process the share of the time that it ran (``cpu_percent``) and
that it was ready to run and had no processor (``starved_percent``): on a shared machine the tail is made of that.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.clock import SYSTEM
from ipe_events.declaration import declaration_of
from ipe_events.events.change import Change
from ipe_events.events.message import Event
from ipe_events.handler import handler
from ipe_events.runtime.app import HandlerApp
from ipe_events.runtime.subscriber import Subscriber
from ipe_events.runtime.work import Deliverable
from tests.bench.ingest import kubeconfig
from tests.bench.latency_parts import PODS, Stamps
from tests.helpers import eventually
from tests.nats import NatsServer

WARM_UP_SECONDS = 2
_ROOT = Path(__file__).resolve().parents[2]
HOPS = ("committed", "read", "stored", "received", "called")
"""Of a change: committed by the API server, read by the agent, stored by the stream, received from it, given to the handler."""

called: Stamps = {}
received: Stamps = {}
stored: Stamps = {}


@handler(on="pods", start="all")
async def arrived(event: Event[Change]) -> None:
    """Notes when a change gets here."""
    called[event.payload.resource_version] = time.monotonic_ns()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=int, default=1_000, help="changes a second")
    parser.add_argument("--seconds", type=int, default=8, help="of one stretch")
    parser.add_argument("--runs", type=int, default=3, help="how many stretches; the median counts")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    for stamps in (called, received, stored):
        stamps.clear()
    events = args.rate * (WARM_UP_SECONDS + args.seconds * args.runs)
    with tempfile.TemporaryDirectory(prefix="ipe-bench-") as name:
        folder = Path(name)
        server = NatsServer(folder / "nats").start()
        try:
            async with await Bus.connect(server.settings, name="bench-latency") as bus:
                await topology.ensure(bus)
            shares = await _measure(args.rate, events, folder, server)
        finally:
            server.kill()
        committed: Stamps = json.loads((folder / "cluster.json").read_text())
        read: Stamps = json.loads((folder / "agent.json").read_text())
    missing = [version for version in committed if version not in called]
    if missing or len(committed) != events:
        raise AssertionError(f"{len(missing)} of {len(committed)} changes did not arrive, of {events} that were to be made")
    counted = sorted(committed, key=lambda version: committed[version])[WARM_UP_SECONDS * args.rate :]
    stretch = args.seconds * args.rate
    runs = [_spans(committed, called, counted[at : at + stretch]) for at in range(0, len(counted), stretch)]
    passed = dict(zip(HOPS, (committed, read, stored, received, called), strict=True))
    return {
        **{f"p{share}_ms": round(statistics.median(_quantile(each, share) for each in runs), 2) for share in (50, 95, 99)},
        "events_per_second": args.rate,
        "events": len(counted),
        "runs_p99_ms": [round(_quantile(each, 99), 2) for each in runs],
        "hops_ms": {
            after: [round(_quantile(_spans(passed[before], passed[after], counted), share), 2) for share in (50, 99)]
            for before, after in pairwise(HOPS)
        },
        **shares,
    }


async def _measure(rate: int, events: int, folder: Path, server: NatsServer) -> dict[str, dict[str, float]]:
    """Run everything; returns how each process fared."""
    offset = int(SYSTEM.now().timestamp() * 1e9) - time.monotonic_ns()
    with _noting(offset), _part("cluster", folder, str(rate), str(events)) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        url = (await asyncio.to_thread(cluster.stdout.readline)).strip()
        with _part("agent", folder, server.url, kubeconfig(folder, url)) as agent:
            declared = declaration_of(arrived)
            assert declared is not None
            async with HandlerApp([declared], server.settings):
                await eventually(lambda: len(called) >= PODS, timeout=60)
                gc.collect()
                gc.freeze()  # as `ipe handlers run` does
                assert server.process is not None
                processes = {"cluster": cluster.pid, "agent": agent.pid, "broker": server.process.pid, "handler": os.getpid()}
                before, began = {name: _scheduled(pid) for name, pid in processes.items()}, time.monotonic_ns()
                cluster.stdin.write("go\n")
                cluster.stdin.flush()
                await eventually(lambda: len(called) >= PODS + events, timeout=60 + 3 * events / rate, interval=0.5)
                elapsed = time.monotonic_ns() - began
                after = {name: _scheduled(pid) for name, pid in processes.items()}
        return {
            figure: {name: round(100 * (after[name][at] - before[name][at]) / elapsed, 1) for name in processes}
            for at, figure in enumerate(("cpu_percent", "starved_percent"))
        }


@contextmanager
def _part(name: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ``tests.bench.latency_parts``; at the end it writes its stamps."""
    command = [sys.executable, "-m", "tests.bench.latency_parts", name, str(folder / f"{name}.json"), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def _noting(offset: int) -> Iterator[None]:
    """Note when messages were stored and received; ``offset`` is the wall clock's nanoseconds minus the monotonic clock's."""
    receive = Subscriber.receive

    def noted(self: Subscriber, delivery: Deliverable) -> None:
        now = time.monotonic_ns()
        version = delivery.header_bytes.partition(b"ce-id: ")[2].partition(b"\r\n")[0].split(b"/")[5].decode()
        received[version] = now
        stored[version] = int(delivery.time.timestamp() * 1e9) - offset
        receive(self, delivery)

    Subscriber.receive = noted  # type: ignore[method-assign]  # the one place that sees each message as it comes
    try:
        yield
    finally:
        Subscriber.receive = receive  # type: ignore[method-assign]  # as it was


def _spans(start: Stamps, end: Stamps, versions: list[str]) -> list[int]:
    """Nanoseconds from ``start`` to ``end``, ascending."""
    return sorted(end[version] - start[version] for version in versions)


def _quantile(ordered: list[int], percent: int) -> float:
    """Milliseconds below which ``percent`` of the spans lie."""
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1e6


def _scheduled(pid: int) -> tuple[int, int]:
    """Nanoseconds that a process's threads ran, and that they waited for a processor, so far."""
    threads = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(ran) for ran, _, _ in threads), sum(int(waited) for _, waited, _ in threads)
