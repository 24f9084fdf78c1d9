"""What a stream holds behind a sequence, headers only: how publishers and collectors find out what has been stored already."""

import asyncio
from collections.abc import AsyncGenerator

from ipe_events.bus.connection import Bus
from ipe_events.bus.delivery import Delivery
from ipe_events.bus.reading import OrderedReader
from ipe_events.errors import BusTimeout

_PATIENCE_SECONDS = 30.0


async def streams_of(bus: Bus, subjects: str) -> list[str]:
    """The names of the streams that keep some of these subjects.

    Raises:
        BusError: the server does not say.
    """
    return [str(name) for name in (await bus.js_api("STREAM.NAMES", {"subject": subjects})).get("streams") or ()]


async def stream_of(bus: Bus, subjects: str) -> str:
    """The name of the stream that keeps these subjects; empty when none does."""
    names = await streams_of(bus, subjects)
    return names[0] if names else ""


async def tail(bus: Bus, stream: str, subjects: str, *, start: int) -> AsyncGenerator[Delivery, None]:
    """The messages from sequence ``start`` to what is now the end, in order and without bodies; close it when you stop early.

    Raises:
        BusError: the stream cannot be read.
        BusTimeout: it stopped coming.
    """
    async with OrderedReader(bus, stream, (subjects,), start=start, headers_only=True) as reader:
        for _ in range(reader.pending_at_start):
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    delivery = await reader.next()
            except TimeoutError as error:
                raise BusTimeout(f"the stream's tail did not come within {_PATIENCE_SECONDS:.0f} s", where=stream) from error
            yield delivery
