"""Micro services: several at a time, in pages, with errors, and as other NATS tools see them."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from ipe_events.bus.connection import Bus, Reply
from ipe_events.bus.services import END_HEADER, Endpoint, Request
from ipe_events.errors import BusError, BusPermissionDenied, ServiceError, UsageError
from tests.helpers import eventually


async def echo(request: Request) -> Reply:
    return Reply(request.body, headers={"Asked-As": request.headers.get("Who", "")})


async def test_one_question_one_answer(bus: Bus):
    handle = await bus.serve("demo", "1.0.0", [Endpoint("echo", "svc.echo", echo)])
    reply = await bus.request("svc.echo", b"hi", headers={"Who": "ada"})
    assert (reply.body, dict(reply.headers or {})) == (b"hi", {"Asked-As": "ada"})
    await handle.stop()
    with pytest.raises(ServiceError, match=r"svc\.echo: nobody serves") as caught:
        await bus.request("svc.echo")
    assert caught.value.code == 503


async def test_requests_run_at_once_up_to_the_limit(bus: Bus):
    running, most, gate = 0, 0, asyncio.Event()

    async def slow(request: Request) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return Reply(request.body)

    handle = await bus.serve("demo", "1.0.0", [Endpoint("slow", "svc.slow", slow, concurrency=4)])
    asked = [asyncio.create_task(bus.request("svc.slow", str(n).encode(), timeout=20)) for n in range(20)]
    await eventually(lambda: running == 4)
    await bus.flush()
    assert most == 4
    gate.set()
    assert [(await task).body for task in asked] == [str(n).encode() for n in range(20)]
    assert most == 4
    await handle.stop()


async def test_a_streamed_answer_is_complete_or_an_error(bus: Bus):
    async def count(request: Request) -> AsyncIterator[Reply]:
        for number in range(int(request.body)):
            if number == 500:
                raise ServiceError("page 500 is gone", code=410)
            yield Reply(str(number).encode())

    async def short(_request: Request) -> Reply:
        return Reply(headers={END_HEADER: "3"})

    handle = await bus.serve("demo", "1.0.0", [Endpoint("count", "svc.count", count), Endpoint("short", "svc.short", short)])
    assert [int(reply.body) async for reply in bus.request_many("svc.count", b"400")] == list(range(400))
    assert [reply async for reply in bus.request_many("svc.count", b"0")] == []
    got: list[int] = []

    async def take() -> None:
        async for reply in bus.request_many("svc.count", b"600"):
            got.append(int(reply.body))  # noqa: PERF401 - what came before the error counts

    with pytest.raises(ServiceError, match="page 500 is gone") as caught:
        await take()
    assert (got, caught.value.code) == (list(range(500)), 410)
    with pytest.raises(BusError, match="sent 3 replies, 0 arrived"):
        _ = [reply async for reply in bus.request_many("svc.short")]
    first = [reply.body async for reply in bus.request_many("svc.count", b"10", until=lambda reply: reply.body == b"2")]
    assert first == [b"0", b"1", b"2"]
    await handle.stop()


async def test_large_streams_do_not_fill_the_memory_of_the_service(bus: Bus):
    most = 0

    async def blocks(_request: Request) -> AsyncIterator[Reply]:
        nonlocal most
        for _ in range(200):
            yield Reply(b"x" * (1 << 18))
            most = max(most, bus.client.buffered)

    handle = await bus.serve("demo", "1.0.0", [Endpoint("blocks", "svc.blocks", blocks)])
    assert sum([len(reply.body) async for reply in bus.request_many("svc.blocks")]) == 200 << 18
    assert most < 8 << 20
    await handle.stop()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ServiceError("no such pod", code=404), 404, "no such pod"),
        (UsageError("bad cursor", fix="start over"), 400, "bad cursor (fix: start over)"),
        (BusPermissionDenied("not yours"), 403, "not yours"),
        (RuntimeError("secret inside"), 500, "internal error (RuntimeError)"),
    ],
)
async def test_errors_reach_the_caller_with_a_status(bus: Bus, error: Exception, code: int, text: str):
    async def fail(_request: Request) -> Reply:
        raise error

    handle = await bus.serve("demo", "1.0.0", [Endpoint("fail", "svc.fail", fail)])
    with pytest.raises(ServiceError) as caught:
        await bus.request("svc.fail")
    assert caught.value.code == code
    assert caught.value.message.startswith(text)
    assert "secret" not in str(caught.value)
    await handle.stop()


async def test_slow_and_oversized_answers(bus: Bus):
    async def never(_request: Request) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    async def huge(_request: Request) -> Reply:
        return Reply(b"x" * (bus.max_payload + 1))

    endpoints = [Endpoint("never", "svc.never", never, timeout=0.05), Endpoint("huge", "svc.huge", huge)]
    handle = await bus.serve("demo", "1.0.0", endpoints)
    for subject, code in (("svc.never", 504), ("svc.huge", 413)):
        with pytest.raises(ServiceError) as caught:
            await bus.request(subject)
        assert caught.value.code == code
    assert bus.connected
    await handle.stop()


async def test_more_than_can_wait_is_refused(bus: Bus):
    gate = asyncio.Event()

    async def slow(_request: Request) -> Reply:
        await gate.wait()
        return Reply(b"done")

    handle = await bus.serve("demo", "1.0.0", [Endpoint("slow", "svc.slow", slow, concurrency=1)])
    asked = [asyncio.create_task(bus.request("svc.slow", timeout=20)) for _ in range(1 + 1024 + 5)]
    await eventually(lambda: sum(task.done() for task in asked) == 5)
    gate.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    assert [error.code for error in refused] == [503] * 5
    assert sum(isinstance(outcome, Reply) for outcome in outcomes) == 1025
    await handle.stop()


async def test_stop_lets_what_runs_finish(bus: Bus):
    gate = asyncio.Event()

    async def slow(_request: Request) -> Reply:
        await gate.wait()
        return Reply(b"done")

    handle = await bus.serve("demo", "1.0.0", [Endpoint("slow", "svc.slow", slow)])
    asked = asyncio.create_task(bus.request("svc.slow"))
    await eventually(lambda: handle.running == 1)
    stopping = asyncio.create_task(handle.stop())
    gate.set()
    assert (await asked).body == b"done"
    await stopping


async def test_ping_info_and_stats_answer_as_every_micro_service(bus: Bus):
    handle = await bus.serve("demo", "1.2.3", [Endpoint("echo", "svc.echo", echo)], description="Says it again.")
    await bus.request("svc.echo", b"hi")
    for subject in ("$SRV.PING", "$SRV.PING.demo", f"$SRV.PING.demo.{handle.id}"):
        assert json.loads((await bus.request(subject)).body)["type"] == "io.nats.micro.v1.ping_response"
    info = json.loads((await bus.request("$SRV.INFO.demo")).body)
    assert (info["version"], info["description"], info["endpoints"][0]["subject"]) == ("1.2.3", "Says it again.", "svc.echo")
    stats = json.loads((await bus.request("$SRV.STATS.demo")).body)
    assert (stats["endpoints"][0]["num_requests"], stats["endpoints"][0]["num_errors"]) == (1, 0)
    await handle.stop()
    with pytest.raises(UsageError, match=r"service 'a b' '1'"):
        await bus.serve("a b", "1", [])
