"""Buckets: compare and set, watches over restarts, keys that hold anything."""

import asyncio

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.bus.kv import Entry, KeyValue
from ipe_events.errors import BusConflict, BusNotFound, UsageError
from tests.helpers import eventually
from tests.nats import NatsServer


@pytest.fixture
async def kv(bus: Bus) -> KeyValue:
    return await bus.kv("test", create=True)


async def test_create_update_and_delete_by_revision(kv: KeyValue):
    assert await kv.get("a.b") is None
    first = await kv.create("a.b", b"1")
    with pytest.raises(BusConflict, match=r"test/a\.b: the key has a value already"):
        await kv.create("a.b", b"2")
    second = await kv.update("a.b", b"2", first)
    with pytest.raises(BusConflict):
        await kv.update("a.b", b"3", first)
    assert await kv.get("a.b") == Entry("a.b", b"2", second, (await stored(kv, "a.b")).created)
    with pytest.raises(BusConflict):
        await kv.delete("a.b", revision=first)
    await kv.delete("a.b", revision=second)
    assert await kv.get("a.b") is None
    assert await kv.create("a.b", b"4") > second
    await kv.purge("a.b")
    assert await kv.get("a.b") is None


async def stored(kv: KeyValue, key: str) -> Entry:
    entry = await kv.get(key)
    assert entry
    return entry


async def test_only_one_of_many_writers_wins(kv: KeyValue):
    outcomes = await asyncio.gather(*(kv.create("claim", str(n).encode()) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert all(isinstance(outcome, int | BusConflict) for outcome in outcomes)


async def test_keys_and_entries_below_a_prefix(kv: KeyValue):
    for key in ("eu.a", "eu.b", "euro", "us.a"):
        await kv.put(key, key.encode())
    await kv.delete("eu.b")
    assert await kv.keys() == ["eu.a", "euro", "us.a"]
    assert await kv.keys("eu") == ["eu.a"]
    assert [entry.value async for entry in kv.entries("*.a")] == [b"eu.a", b"us.a"]
    assert await kv.keys("none") == []


async def test_a_watch_goes_on_after_the_broker_was_killed(bus: Bus, kv: KeyValue, nats_server: NatsServer):
    await kv.put("before", b"1")
    seen: list[tuple[str, bytes, bool] | None] = []

    async def watch() -> None:
        async for entry in kv.watch():
            seen.append((entry.key, entry.value, entry.deleted) if entry else None)  # noqa: PERF401 - it never ends

    task = asyncio.create_task(watch())
    await eventually(lambda: seen == [("before", b"1", False), None])
    await kv.put("live", b"2")
    await eventually(lambda: seen[-1] == ("live", b"2", False))
    nats_server.kill()
    nats_server.restart()
    loop = asyncio.get_running_loop()
    await eventually(lambda: bus.connected)
    back = loop.time()
    await bus.publish("$KV.test.after", b"3", timeout=20)
    await eventually(lambda: seen[-1] == ("after", b"3", False))
    assert loop.time() - back < 5
    await kv.delete("live")
    await eventually(lambda: seen[-1] == ("live", b"", True))
    assert len(seen) == 5  # nothing twice
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_value_with_a_time_to_live_vanishes(kv: KeyValue):
    await kv.create("lease", b"1", ttl=1)

    async def gone() -> bool:
        return await kv.get("lease") is None

    await eventually(gone)
    await kv.create("lease", b"2")


async def test_missing_buckets_and_bad_names(bus: Bus, kv: KeyValue):
    with pytest.raises(BusNotFound, match="bucket none is missing"):
        await bus.kv("none")
    with pytest.raises(UsageError, match="bucket name 'a b'"):
        await bus.kv("a b", create=True)
    with pytest.raises(UsageError, match="key 'a b'"):
        await kv.put("a b", b"")
    with pytest.raises(UsageError, match=r"key 'a\.\.b'"):
        await kv.get("a..b")
