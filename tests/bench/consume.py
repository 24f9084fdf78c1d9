"""The raw consumer alone: stream → header bytes and body → ack, messages as ``ingest`` writes them.

What is measured is this process' CPU from the first pull to the moment when the server has seen every acknowledgement, divided by
the messages.
"""

import argparse
import asyncio
from typing import Any

from ipe_events.bus.connection import Bus
from ipe_events.bus.consumer import Consumer, ConsumerSpec, Delivery
from tests.bench.corpus import Rates, Stopwatch, add_arguments, measure
from tests.nats import NatsServer

__all__ = ["add_arguments", "run"]


async def run(args: argparse.Namespace) -> dict[str, Any]:
    return await measure(args, consume)


async def consume(server: NatsServer, events: int, number: int) -> Rates:
    """Reads everything once."""
    done = asyncio.get_running_loop().create_future()
    left = events

    def take(delivery: Delivery) -> None:
        nonlocal left
        delivery.ack()
        left -= 1
        if not left:
            done.set_result(None)

    spec = ConsumerSpec("IPE_K8S", f"bench-{number}", start="all", max_ack_pending=4096, batch=1024)
    async with await Bus.connect(server.settings, name="bench-consume") as bus:
        watch = Stopwatch()
        consumer = await Consumer.start(bus, spec, take)
        await done
        await consumer.stop()
        rates = watch.stop(events)
        if (await consumer.info())["num_ack_pending"]:
            raise AssertionError("acknowledgements are missing")
    return rates
