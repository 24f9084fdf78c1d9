"""Timers and services of a running process."""

import asyncio

import orjson
import pytest

from ipe_events import Reject, State, every, handler, service
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.declaration import Declared, declaration_of
from ipe_events.errors import ServiceError, UsageError
from ipe_events.events import Payload
from ipe_events.events.codec import decode, encode
from ipe_events.runtime.app import HandlerApp
from ipe_events.subjects import SERVICE


class Tick(Payload):
    number: int


class Question(Payload):
    limit: int


def declared(*functions: object) -> list[Declared]:
    return [one for one in map(declaration_of, functions) if one is not None]


async def test_a_timer_goes_on_after_a_failure_and_its_call_is_finished_at_the_end(nats_server, bus: Bus):
    await topology.ensure(bus)
    started, gate, calls = asyncio.Event(), asyncio.Event(), 0

    @every(0.02)
    async def beat() -> Tick:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("once")
        started.set()
        await gate.wait()
        return Tick(number=calls)

    app = HandlerApp(declared(beat), nats_server.settings)
    await app.start()
    await started.wait()
    stopping = asyncio.create_task(app.stop())
    gate.set()
    await stopping
    ticks = [decode(Tick, delivery.body) async for delivery in bus.read("IPE_GOV", ["ipe.event.beat.tick"])]
    assert ticks[0].number == 2


async def test_services_answer_stream_and_refuse(nats_server, bus: Bus):
    await topology.ensure(bus)

    @service("count", name="counter")
    async def count(question: Question, state: State):
        if question.limit > 3:
            raise Reject("too many")
        for number in range(question.limit):
            yield Tick(number=number)

    @service("one", name="counter", scope="team-a")
    async def one(question: Question) -> Tick:
        return Tick(number=question.limit)

    async with HandlerApp(declared(count, one), nats_server.settings):
        subject = SERVICE.format(service="counter", scope="anyone", verb="count")
        replies = [reply async for reply in bus.request_many(subject, encode(Question(limit=3)))]
        assert [decode(Tick, reply.body).number for reply in replies] == [0, 1, 2]
        with pytest.raises(ServiceError, match="too many"):
            [reply async for reply in bus.request_many(subject, encode(Question(limit=9)))]
        subject = SERVICE.format(service="counter", scope="team-a", verb="one")
        assert decode(Tick, (await bus.request(subject, encode(Question(limit=7)))).body).number == 7
        with pytest.raises(ServiceError) as caught:
            await bus.request(subject, b'{"limit": "many"}')
        assert caught.value.code == 400
        with pytest.raises(ServiceError) as caught:
            await bus.request(SERVICE.format(service="counter", scope="team-b", verb="one"), encode(Question(limit=7)))
        assert caught.value.code == 503
        found = orjson.loads((await bus.request("$SRV.INFO.counter", b"")).body)
        assert [(each["name"], each["subject"]) for each in found["endpoints"]] == [
            ("count", "ipe.svc.counter.*.count"),
            ("one-team-a", "ipe.svc.counter.team-a.one"),
        ], "one service with an endpoint per function"


async def test_an_id_belongs_to_one_function(nats_server):
    @handler(id="same")
    async def first(tick: Tick) -> None: ...

    @handler(id="same")
    async def second(tick: Tick) -> None: ...

    with pytest.raises(UsageError, match="taken twice"):
        HandlerApp(declared(first, second), nats_server.settings)
    with pytest.raises(UsageError, match="no handler"):
        HandlerApp([], nats_server.settings)
