"""Reads the record from the bus for people: a stretch of it, its live end, one event, the trail around one.

JetStream reads forwards only. The last N events of several streams are therefore the ends of forward reads over a stretch of time
(``--since``), merged by the time at which the streams stored them; what was left out is counted and said.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ipe_events.cli.record import Entry, NoSuchEvent, Query, entry_of, parse_ref
from ipe_events.cli.trail import Trail
from ipe_events.errors import BusNotFound, SchemaError, UsageError
from ipe_events.events.ids import ChangeId, parse_change_id
from ipe_events.subjects import CHANGE, DLQ
from ipe_events.tasks import end

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus
    from ipe_events.bus.delivery import Delivery

MAX_ENTRIES = 200_000
"""Findings, commands, outcomes and the like that one search may hold in memory."""

_WAITING = 1_000
"""Entries that may wait between the streams and the printer; when it is full, reading waits."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was read: the newest entries in order of time, and how many matched in all."""

    entries: list[Entry]
    matched: int


async def streams_of(bus: "Bus", base: str) -> list[str]:
    """The streams that keep a topic: the one, or its shards (``IPE_K8S_<shard>``) in a big fleet.

    Raises:
        BusNotFound: there is none yet.
    """
    names: list[str] = []
    while True:
        page = await bus.js_api("STREAM.NAMES", {"offset": len(names)})
        found = page.get("streams") or []
        names += found
        if not found or len(names) >= page["total"]:
            break
    wanted = [name for name in names if name == base or name.startswith(f"{base}_")]
    if not wanted:
        raise BusNotFound(f"stream {base} does not exist", where="bus", fix="make it with `ipe bus apply`")
    return sorted(wanted)


async def durables(bus: "Bus", streams: Iterable[str]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(stream, what NATS says of it) of every durable consumer of these streams.

    Raises:
        BusNotFound: one of the streams does not exist.
    """
    for stream in streams:
        offset, total = 0, 1
        while offset < total:
            page = await bus.js_api(f"CONSUMER.LIST.{stream}", {"offset": offset})
            infos, total = page.get("consumers") or [], int(page["total"])
            for info in infos:
                if info["config"].get("durable_name"):
                    yield stream, info
            if not infos:
                break
            offset += len(infos)


def entry_from(delivery: "Delivery") -> Entry:
    """The entry in a message; a malformed header block is said, not raised."""
    ref = f"{delivery.stream}:{delivery.seq}"
    try:
        headers: Mapping[str, str] = delivery.headers
    except SchemaError as error:
        return Entry(ref, "", delivery.time, "unreadable", delivery.subject, summary=f"unreadable headers: {error.message}")
    return entry_of(ref, delivery.subject, delivery.time, headers, delivery.body)


async def read(bus: "Bus", query: Query, *, since: datetime, limit: int) -> Stretch:
    """The newest ``limit`` entries (0: all) since a time.

    Raises:
        BusNotFound: a stream is missing.
    """
    kept: deque[Entry] = deque(maxlen=limit or None)
    matched = 0
    for topic_stream, filters in query.streams().items():
        newest: deque[Entry] = deque(maxlen=limit or None)
        for stream in await streams_of(bus, topic_stream):
            async for delivery in bus.read(stream, filters, start=since):
                entry = entry_from(delivery)
                if query.matches(entry):
                    matched += 1
                    newest.append(entry)
        kept = deque(sorted([*kept, *newest], key=lambda entry: entry.time), maxlen=limit or None)
    return Stretch(list(kept), matched)


async def follow(bus: "Bus", query: Query, *, since: datetime | None) -> AsyncIterator[Entry]:
    """Entries as they come (from a time, or from now on), for ever."""
    waiting: asyncio.Queue[Entry] = asyncio.Queue(_WAITING)

    async def pump(stream: str, filters: list[str]) -> None:
        async for delivery in bus.read(stream, filters, start=since or "new", follow=True):
            entry = entry_from(delivery)
            if query.matches(entry):
                await waiting.put(entry)

    pumps = [
        asyncio.create_task(pump(stream, filters), name=f"tail-{stream}")
        for topic_stream, filters in query.streams().items()
        for stream in await streams_of(bus, topic_stream)
    ]
    try:
        while True:
            getter = asyncio.create_task(waiting.get())
            done, _ = await asyncio.wait([getter, *pumps], return_when=asyncio.FIRST_COMPLETED)
            if getter in done:
                yield getter.result()
                continue
            getter.cancel()
            for task in done:
                task.result()  # a pump ends only by an error
    finally:
        await end(*pumps)


async def find(bus: "Bus", text: str, *, since: datetime) -> Entry:
    """The event with this id (or a unique beginning of it), or at this ``STREAM:SEQUENCE``.

    Raises:
        NoSuchEvent: the record holds none since that time.
    """
    ref = parse_ref(text)
    if ref is not None:
        try:
            stored = await bus.get_message(ref[0], seq=ref[1])
        except BusNotFound:
            stored = None
        if stored is None:
            raise NoSuchEvent(f"{text} does not exist (any more)", where="events", fix="see `ipe events list -o wide`")
        return entry_of(text, stored.subject, stored.time, stored.headers, stored.body)
    try:
        change = await _change(bus, parse_change_id(text), since)
    except SchemaError:
        trail = Trail()
        await _load_governance(bus, trail, since)
        change = trail.find(text)
    if change is None:
        raise NoSuchEvent(f"no event {text!r} in that time", where="events", fix="read further back with `--since`, e.g. 7d")
    return change


async def trail_around(bus: "Bus", text: str, *, since: datetime) -> tuple[Trail, Entry]:
    """The trail that holds an event, its causes and its effects; and that event.

    Raises:
        NoSuchEvent: the record holds none since that time.
    """
    entry = await find(bus, text, since=since)
    trail = Trail()
    await _load_governance(bus, trail, since)
    trail.add(entry)
    tried: set[str] = set()
    while True:
        # each round can only add changes that close entries name, so this ends
        ids, writes = trail.wanted(step.entry for step in trail.tree(trail.root_of(entry)))
        missing = [one for one in ids if str(one) not in tried]
        unread = [one for one in writes if one.id not in tried]
        if not missing and not unread:
            return trail, trail.by_id.get(entry.id, entry)
        for one in missing:
            tried.add(str(one))
            found = await _change(bus, one, since)
            if found is not None:
                trail.add(found)
        for write in unread:
            tried.add(write.id)
            await _written_change(bus, trail, write, since)


async def _load_governance(bus: "Bus", trail: Trail, since: datetime) -> None:
    """Everything but changes, dead letters and heartbeats."""
    query = Query()
    for topic_stream, filters in query.streams().items():
        if topic_stream in {CHANGE.stream, DLQ.stream}:
            continue
        for stream in await streams_of(bus, topic_stream):
            async for delivery in bus.read(stream, filters, start=since):
                entry = entry_from(delivery)
                if query.matches(entry):
                    trail.add(entry)
                if len(trail.by_id) > MAX_ENTRIES:
                    fix = "read less far back with `--since`, e.g. 1h"
                    raise UsageError(f"more than {MAX_ENTRIES} events in that time", where="events", fix=fix)


async def _change(bus: "Bus", wanted: ChangeId, since: datetime) -> Entry | None:
    """The change with this id, wherever its cluster and namespace are."""
    needle = f"/{wanted.uid}/".encode()  # most messages are passed over without parsing their headers
    pattern = CHANGE.filter(group=wanted.group, resource=wanted.resource, verb=wanted.verb)
    for stream in await streams_of(bus, CHANGE.stream):
        async with _opened(bus, stream, [pattern], since) as deliveries:
            async for delivery in deliveries:
                if needle in delivery.header_bytes and (entry := entry_from(delivery)).id == str(wanted):
                    return entry
    return None


@asynccontextmanager
async def _opened(bus: "Bus", stream: str, filters: list[str], since: datetime) -> "AsyncIterator[AsyncIterator[Delivery]]":
    """A read that may be left early: its consumer is given back at once."""
    deliveries = bus.read(stream, filters, start=since)
    assert isinstance(deliveries, AsyncGenerator)
    async with aclosing(deliveries):
        yield deliveries


async def _written_change(bus: "Bus", trail: Trail, outcome: Entry, since: datetime) -> None:
    """Adds the change that an applied outcome caused."""
    needle = f"/{outcome.uid}/{outcome.resource_version}/".encode()
    query = Query(
        topics=(CHANGE.name,), cluster=outcome.cluster, namespace=outcome.namespace, resource=outcome.resource
    )  # fmt: skip
    for topic_stream, filters in query.streams().items():
        for stream in await streams_of(bus, topic_stream):
            async with _opened(bus, stream, filters, since) as deliveries:
                async for delivery in deliveries:
                    if needle in delivery.header_bytes:
                        entry = entry_from(delivery)
                        if (entry.uid, entry.resource_version) == (outcome.uid, outcome.resource_version):
                            trail.add(entry)
                            return
