"""The publisher against a broker that dies in the middle, and against what it must not send."""

import asyncio
from collections import Counter

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.bus.frames import encode_headers
from ipe_events.bus.publisher import Lane, Publisher
from ipe_events.bus.topology import ensure
from ipe_events.errors import PayloadTooLarge
from tests.helpers import eventually
from tests.nats import NatsServer

SUBJECT = b"ipe.k8s.prod.core.pods.default.added.0"
FILTER = "ipe.k8s.prod.core.pods.*.*.*"


async def _send(publisher: Publisher, lane: Lane, first: int, end: int) -> None:
    for number in range(first, end):
        lane.send(SUBJECT, encode_headers({"Nats-Msg-Id": f"id-{number}"}), b"x" * 2000, mark=number + 1)
        if publisher.full:
            await publisher.wait_room()
        elif number % 200 == 199:
            await asyncio.sleep(0)  # let the broker see something before everything is sent


async def _ids(bus: Bus) -> Counter[str]:
    return Counter([delivery.headers["Nats-Msg-Id"] async for delivery in bus.read("IPE_K8S")])


@pytest.mark.parametrize("acked", [1, 700, 2500])
async def test_sigkill_with_acks_outstanding_loses_and_doubles_nothing(bus: Bus, nats_server: NatsServer, acked: int) -> None:
    await ensure(bus)
    total = 6000
    async with Publisher(bus, window=1000) as publisher:
        lane = publisher.lane(FILTER)
        await _send(publisher, lane, 0, acked)
        sending = asyncio.create_task(_send(publisher, lane, acked, total))
        await eventually(lambda: lane.unacked > 100, interval=0)
        nats_server.kill()
        assert lane.unacked
        await eventually(lambda: not bus.connected)
        assert publisher.full
        nats_server.start()
        await asyncio.wait_for(sending, 40)
        await asyncio.wait_for(publisher.drain(), 40)
        assert (lane.acked, lane.unacked, lane.acked_mark) == (total, 0, total)
    found = await _ids(bus)
    assert set(found) == {f"id-{number}" for number in range(total)}
    assert [message for message, count in found.items() if count > 1] == []


async def test_what_was_stored_without_our_knowing_is_not_sent_again(bus: Bus, nats_server: NatsServer) -> None:
    await ensure(bus)
    config = (await bus.stream_info("IPE_K8S"))["config"]
    # an outage longer than the broker's memory of ids
    await bus.js_api("STREAM.UPDATE.IPE_K8S", config | {"duplicate_window": 100_000_000})
    total = 500
    async with Publisher(bus, window=1000) as publisher:
        lane = publisher.lane(FILTER)
        deaf, run = bus.client._raw[publisher._sid], bus.client._runs.pop(publisher._sid)
        bus.client._raw[publisher._sid] = lambda *_message: None  # acknowledgements that a dying broker never wrote
        await _send(publisher, lane, 0, total)
        await eventually(lambda: _stored(bus, total))
        assert lane.acked == 0
        nats_server.kill()
        bus.client._raw[publisher._sid], bus.client._runs[publisher._sid] = deaf, run
        await eventually(lambda: not bus.connected)
        await asyncio.sleep(0.2)  # the passing of time is what is tested: twice the broker's memory
        nats_server.start()
        await asyncio.wait_for(publisher.drain(), 40)
        assert (lane.acked, lane.acked_seq) == (total, total)
    assert set((await _ids(bus)).values()) == {1}


async def _stored(bus: Bus, wanted: int) -> bool:
    return bool((await bus.stream_info("IPE_K8S"))["state"]["messages"] == wanted)


async def test_the_acknowledged_prefix_carries_mark_and_sequence(bus: Bus) -> None:
    await ensure(bus)
    async with Publisher(bus) as publisher:
        lane = publisher.lane(FILTER)
        assert (lane.acked_mark, lane.acked_seq) == (0, 0)
        lane.mark(5)
        assert lane.acked_mark == 5
        await _send(publisher, lane, 5, 15)
        lane.mark(99)
        assert lane.acked_mark == 5
        await publisher.drain()
        assert (lane.acked_mark, lane.acked_seq, lane.stream) == (99, 10, "IPE_K8S")


async def test_duplicates_among_acknowledgements_leave_no_hole(bus: Bus) -> None:
    await ensure(bus)
    async with Publisher(bus) as publisher:
        lane = publisher.lane(FILTER)
        await _send(publisher, lane, 0, 100)
        await publisher.drain()
        other = publisher.lane(FILTER)
        for number in range(400):  # every fourth is in the stream already
            known = number // 4 if number % 4 == 0 else 1000 + number
            (other if number % 2 else lane).send(SUBJECT, encode_headers({"Nats-Msg-Id": f"id-{known}"}), b"x", mark=number + 1)
        await publisher.drain()
        assert (lane.acked, lane.unacked, lane.acked_mark) == (300, 0, 399)
        assert (other.acked, other.unacked, other.acked_mark, other.acked_seq) == (200, 0, 400, 400)
        assert (publisher.unacked, publisher._bytes) == (0, 0)


async def test_what_is_too_large_is_refused_before_it_ends_the_connection(bus: Bus) -> None:
    await ensure(bus)
    async with Publisher(bus) as publisher:
        lane = publisher.lane(FILTER)
        head = encode_headers({"Nats-Msg-Id": "large"})
        with pytest.raises(PayloadTooLarge, match="max_payload"):
            lane.send(SUBJECT, head, b"x" * bus.max_payload)
        assert not lane.unacked
        await _send(publisher, lane, 0, 1)
        await publisher.drain()
    assert bus.connected


async def test_a_full_window_makes_room_again(bus: Bus) -> None:
    await ensure(bus)
    async with Publisher(bus, window=10, max_bytes=1 << 20) as publisher:
        lane = publisher.lane(FILTER)
        for number in range(10):
            lane.send(SUBJECT, encode_headers({"Nats-Msg-Id": f"id-{number}"}), b"x")
        assert publisher.full
        await asyncio.wait_for(publisher.wait_room(), 5)
        assert publisher.unacked <= 5
