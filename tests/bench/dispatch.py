"""The handler runtime: consume → lane → handler that reads metadata → ack, messages as ``ingest`` writes them.

The same broker and stream as ``consume``, and a whole ``HandlerApp`` in this process: what is measured is its CPU from connecting
to the moment when everything is drained and the server has seen every acknowledgement, divided by the events.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.declaration import Subscription, declaration_of
from ipe_events.events.change import Change
from ipe_events.events.message import Event
from ipe_events.handler import handler
from ipe_events.runtime.app import HandlerApp
from tests.bench.consume import fill
from tests.nats import NatsServer

seen: dict[str, int] = {}
left = 0
done: "asyncio.Future[None]"


@handler(on="pods", start="all")
async def tally(event: Event[Change]) -> None:
    """Counts pods by application label: the least that most handlers do."""
    global left
    application = (event.payload.metadata.labels or {}).get("app", "")
    seen[application] = seen.get(application, 0) + 1
    left -= 1
    if not left:
        done.set_result(None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=40_000, help="messages in the stream")
    parser.add_argument("--runs", type=int, default=3, help="how often to handle them; the median counts")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ipe-bench-") as folder:
        server = NatsServer(Path(folder)).start()
        try:
            async with await Bus.connect(server.settings, name="bench-dispatch") as bus:
                size = await fill(bus, args.events)
                await topology.ensure(bus)
            runs = [await dispatch(server, args.events, number) for number in range(args.runs)]
        finally:
            server.kill()
    return {
        "events_per_second": round(statistics.median(rate for rate, _ in runs)),
        "cpu_us_per_event": round(statistics.median(cpu for _, cpu in runs), 2),
        "bytes_per_event": size,
        "events": args.events,
    }


async def dispatch(server: NatsServer, events: int, number: int) -> tuple[float, float]:
    """Handles everything once; returns events per second and CPU µs per event."""
    global left, done
    loop = asyncio.get_running_loop()
    left, done = events, loop.create_future()
    seen.clear()
    declared = declaration_of(tally)
    assert isinstance(declared, Subscription)
    app = HandlerApp([replace(declared, id=f"tally-{number}")], server.settings)
    usage, start = resource.getrusage(resource.RUSAGE_SELF), loop.time()
    await app.start()
    await done
    await app.stop()
    after, end = resource.getrusage(resource.RUSAGE_SELF), loop.time()
    if sum(seen.values()) != events:
        raise AssertionError(f"{sum(seen.values())} of {events} events were handled")
    async with await Bus.connect(server.settings, name="bench-check") as bus:
        info = await bus.js_api(f"CONSUMER.INFO.IPE_K8S.tally-{number}")
    if info["num_ack_pending"] or info["num_pending"]:
        raise AssertionError(f"{info['num_ack_pending']} acknowledgements and {info['num_pending']} events are missing")
    cpu = after.ru_utime - usage.ru_utime + after.ru_stime - usage.ru_stime
    return events / (end - start), cpu / events * 1e6
