"""The handler runtime: consume → lane → handler that reads metadata → ack, messages as ``ingest`` writes them.

The same broker and stream as ``consume``, and a whole ``HandlerApp`` in this process: what is measured is its CPU from connecting
to the moment when everything is drained and the server has seen every acknowledgement, divided by the events.
"""

import argparse
import asyncio
from dataclasses import replace
from typing import Any

from ipe_events.bus.connection import Bus
from ipe_events.declaration import Subscription, declaration_of
from ipe_events.events.change import Change
from ipe_events.events.message import Event
from ipe_events.handler import handler
from ipe_events.runtime.app import HandlerApp
from tests.bench.corpus import Rates, Stopwatch, add_arguments, measure
from tests.nats import NatsServer

__all__ = ["add_arguments", "run"]

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


async def run(args: argparse.Namespace) -> dict[str, Any]:
    return await measure(args, dispatch)


async def dispatch(server: NatsServer, events: int, number: int) -> Rates:
    """Handles everything once."""
    global left, done
    left, done = events, asyncio.get_running_loop().create_future()
    seen.clear()
    declared = declaration_of(tally)
    assert isinstance(declared, Subscription)
    app = HandlerApp([replace(declared, id=f"tally-{number}")], server.settings)
    watch = Stopwatch()
    await app.start()
    await done
    await app.stop()
    rates = watch.stop(events)
    if sum(seen.values()) != events:
        raise AssertionError(f"{sum(seen.values())} of {events} events were handled")
    async with await Bus.connect(server.settings, name="bench-check") as bus:
        info = await bus.js_api(f"CONSUMER.INFO.IPE_K8S.tally-{number}")
    if info["num_ack_pending"] or info["num_pending"]:
        raise AssertionError(f"{info['num_ack_pending']} acknowledgements and {info['num_pending']} events are missing")
    return rates
