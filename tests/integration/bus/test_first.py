import pytest

from ipe_events.bus.connection import Bus, Reply
from ipe_events.bus.consumer import Consumer, ConsumerSpec, Delivery
from ipe_events.bus.services import Endpoint, Request
from ipe_events.errors import BusConflict, BusError, PayloadTooLarge, ServiceError
from tests.helpers import eventually
from tests.nats import NatsServer


async def stream(bus: Bus, name: str, *subjects: str, **extra):
    config = {"name": name, "subjects": list(subjects), "storage": "file", "allow_direct": True, **extra}
    await bus.js_api(f"STREAM.CREATE.{name}", config)


async def test_publish_is_acknowledged_and_deduplicated(bus: Bus):
    await stream(bus, "S", "s.>")
    first = await bus.publish("s.a", b"1", id="x", headers={"ce-id": "x"})
    again = await bus.publish("s.a", b"1", id="x")
    assert (first.seq, first.duplicate) == (1, False)
    assert (again.seq, again.duplicate) == (1, True)
    with pytest.raises(BusError, match="no stream keeps this subject"):
        await bus.publish("nobody.home", b"", timeout=0.5)
    with pytest.raises(PayloadTooLarge):
        await bus.publish("s.a", b"x" * (bus.max_payload + 1))
    assert (await bus.publish("s.a", b"2")).seq == 2


async def test_consumer_sees_all_over_a_kill(bus: Bus, nats_server: NatsServer):
    await stream(bus, "S", "s.>")
    seen: set[str] = set()

    def take(delivery: Delivery) -> None:
        seen.add(delivery.headers["Nats-Msg-Id"])
        delivery.ack()

    consumer = await Consumer.start(bus, ConsumerSpec("S", "c", start="all"), take)
    wanted = set()
    for n in range(600):
        await bus.publish(f"s.{n % 7}", b"x", id=str(n), timeout=20)
        wanted.add(str(n))
        if n == 300:
            nats_server.kill()
            nats_server.restart()
    await eventually(lambda: seen == wanted, timeout=20)
    await consumer.stop()


async def test_kv(bus: Bus):
    kv = await bus.kv("b", create=True)
    assert await kv.get("k") is None
    revision = await kv.create("k", b"1")
    with pytest.raises(BusConflict):
        await kv.create("k", b"2")
    revision = await kv.update("k", b"2", revision)
    with pytest.raises(BusConflict):
        await kv.update("k", b"3", revision - 1)
    entry = await kv.get("k")
    assert entry and entry.value == b"2" and entry.revision == revision
    assert await kv.keys() == ["k"]
    watch = kv.watch()
    assert (await anext(watch)).value == b"2"
    assert await anext(watch) is None
    await kv.delete("k")
    assert (await anext(watch)).deleted
    await watch.aclose()
    await kv.create("k", b"4")


async def test_services(bus: Bus):
    async def echo(request: Request) -> Reply:
        if request.body == b"bad":
            raise ServiceError("no such thing", code=404)
        return Reply(request.body)

    async def count(request: Request):
        for n in range(int(request.body)):
            yield Reply(str(n).encode())

    handle = await bus.serve("demo", "1.0.0", [Endpoint("echo", "svc.echo", echo), Endpoint("count", "svc.count", count)])
    assert (await bus.request("svc.echo", b"hi")).body == b"hi"
    with pytest.raises(ServiceError, match="no such thing") as caught:
        await bus.request("svc.echo", b"bad")
    assert caught.value.code == 404
    assert [int(reply.body) async for reply in bus.request_many("svc.count", b"1000")] == list(range(1000))
    with pytest.raises(ServiceError, match="nobody serves"):
        await bus.request("svc.none")
    await handle.stop()


async def test_read(bus: Bus):
    await stream(bus, "S", "s.>")
    for n in range(1000):
        bus.send(f"s.{n % 3}", str(n).encode())
    assert [int(d.body) async for d in bus.read("S", ["s.1", "s.2"])] == [n for n in range(1000) if n % 3]
    assert [d.seq async for d in bus.read("S", start=990, limit=3)] == [990, 991, 992]
    assert [d async for d in bus.read("S", start="new")] == []
