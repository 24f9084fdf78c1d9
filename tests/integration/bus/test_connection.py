"""Publishing, asking and reading over reconnects, and what a lost connection looks like."""

import asyncio

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.errors import BusConflict, BusError, BusTimeout, BusUnavailable, PayloadTooLarge, UsageError
from tests.helpers import eventually
from tests.integration.bus.helpers import make_stream
from tests.nats import NatsServer


async def test_publish_is_acknowledged_and_deduplicated(bus: Bus):
    await make_stream(bus, "S", "s.>")
    first = await bus.publish("s.a", b"1", id="x", headers={"ce-id": "x"})
    again = await bus.publish("s.a", b"1", id="x")
    assert (first.stream, first.seq, first.duplicate) == ("S", 1, False)
    assert (again.seq, again.duplicate) == (1, True)
    stored = await bus.get_message("S", seq=1)
    assert stored
    assert (stored.subject, stored.headers, stored.body) == ("s.a", {"ce-id": "x", "Nats-Msg-Id": "x"}, b"1")
    assert await bus.get_message("S", last_by_subject="s.none") is None


async def test_publish_where_no_stream_is(bus: Bus):
    with pytest.raises(BusError, match=r"nobody\.home: no stream keeps this subject .*ipe bus apply"):
        await bus.publish("nobody.home", b"", timeout=0.3)


async def test_a_payload_that_is_too_large_is_refused_before_writing(bus: Bus):
    await make_stream(bus, "S", "s.>")
    downs: list[bool] = []
    bus.on_state(downs.append)
    with pytest.raises(PayloadTooLarge, match="exceeds the server's max_payload of 8388608"):
        await bus.publish("s.a", b"x" * bus.max_payload)  # with its headers it is over
    with pytest.raises(PayloadTooLarge):
        await bus.request("s.a", b"x" * (bus.max_payload + 1))
    assert (await bus.publish("s.a", b"x" * (bus.max_payload - 1000), timeout=20)).seq == 1
    assert downs == []


async def test_what_would_smuggle_a_command_is_refused(bus: Bus):
    await make_stream(bus, "S", "s.>")
    with pytest.raises(UsageError, match="white space"):
        await bus.publish("s.a 0\r\n\r\nPUB s.b", b"")
    with pytest.raises(UsageError, match="line break"):
        await bus.publish("s.a", b"", headers={"a": "b\r\nNats-Rollup: all"})
    with pytest.raises(UsageError, match="not a token"):
        await bus.publish("s.a", b"", headers={"a b": "c"})


async def test_expected_sequences_are_conflicts(bus: Bus):
    await make_stream(bus, "S", "s.>")
    await bus.publish("s.a", b"1")
    with pytest.raises(BusConflict, match="wrong last sequence"):
        await bus.publish("s.a", b"2", headers={"Nats-Expected-Last-Sequence": "7"})


async def test_publish_over_a_killed_broker_keeps_one_copy_of_each(bus: Bus, nats_server: NatsServer):
    await make_stream(bus, "S", "s.>")
    states: list[bool] = []
    bus.on_state(states.append)
    tasks = [asyncio.create_task(bus.publish("s.a", str(n).encode(), id=str(n), timeout=30)) for n in range(500)]
    await eventually(lambda: sum(task.done() for task in tasks) > 0)
    nats_server.kill()
    await eventually(lambda: not bus.connected)
    nats_server.restart()
    await asyncio.gather(*tasks)
    assert {int(d.body) async for d in bus.read("S")} == set(range(500))
    assert states == [False, True]


async def test_a_lost_connection_fails_waiting_calls_at_once(bus: Bus, nats_server: NatsServer):
    gate = asyncio.Event()
    bus.client.subscribe_raw("silent", lambda *_message: gate.set())
    asked = asyncio.create_task(bus.request("silent", timeout=60))
    await gate.wait()
    nats_server.kill()
    with pytest.raises(BusUnavailable, match="lost while waiting"):
        await asked
    with pytest.raises(BusUnavailable, match=r"no connection to NATS for 0\.05 s"):
        await bus.request("silent", timeout=0.05)
    with pytest.raises(BusUnavailable):
        bus.send("silent")
    nats_server.restart()
    await eventually(lambda: bus.connected)


async def test_no_answer_in_time(bus: Bus):
    bus.client.subscribe_raw("silent", lambda *_message: None)
    with pytest.raises(BusTimeout, match=r"silent: no answer in 0\.05 s"):
        await bus.request("silent", timeout=0.05)


async def test_closing_fails_what_waits_and_can_be_done_twice(nats_server: NatsServer):
    bus = await Bus.connect(nats_server.settings, name="test")
    bus.client.subscribe_raw("silent", lambda *_message: None)
    asked = asyncio.create_task(bus.request("silent", timeout=60))
    await bus.flush()
    await bus.close()
    with pytest.raises(BusUnavailable, match="closed"):
        await asked
    await bus.close()


async def fill(bus: Bus, count: int) -> None:
    await make_stream(bus, "S", "s.>")
    await asyncio.gather(*(bus.publish(f"s.{n % 3}", str(n).encode(), timeout=20) for n in range(count)))


async def test_reading_a_range_in_order(bus: Bus):
    await fill(bus, 1000)
    bodies = [(await bus.get_message("S", seq=seq)).body for seq in (1, 1000)]  # type: ignore[union-attr]  # both exist
    assert bodies == [b"0", b"999"]
    assert [int(d.body) async for d in bus.read("S", ["s.1", "s.2"])] == [n for n in range(1000) if n % 3]
    assert [d.seq async for d in bus.read("S", start=990, limit=3)] == [990, 991, 992]
    assert [int(d.body) async for d in bus.read("S", ["s.1"], start="last")] == [997]
    assert [int(d.body) async for d in bus.read("S", start="last_per_subject")] == [997, 998, 999]
    middle = await bus.get_message("S", seq=500)
    assert middle
    assert next(iter([d.seq async for d in bus.read("S", start=middle.time, limit=1)])) in {499, 500}
    assert [d async for d in bus.read("S", start="new")] == []
    assert [d async for d in bus.read("S", ["s.none"])] == []


async def test_following_over_a_killed_broker_misses_and_repeats_nothing(bus: Bus, nats_server: NatsServer):
    await fill(bus, 600)
    seen: list[int] = []

    async def follow() -> None:
        async for delivery in bus.read("S", follow=True):
            seen.append(int(delivery.body))  # noqa: PERF401 - it never ends

    task = asyncio.create_task(follow())
    await eventually(lambda: len(seen) == 600)
    nats_server.kill()
    nats_server.restart()
    for n in range(600, 700):
        await bus.publish("s.0", str(n).encode(), timeout=20)
    await eventually(lambda: seen == list(range(700)), timeout=20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_reading_what_does_not_exist(bus: Bus):
    with pytest.raises(BusError, match="stream not found"):
        _ = [d async for d in bus.read("NONE")]
