"""Each fault does what it says, to the requests that it names, as often as it was told."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ipe_events.errors import UsageError
from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.faults import (
    ExpiredToken,
    FailPage,
    Gone,
    HalfLine,
    InternalError,
    Latency,
    Reset,
    Stall,
    TooLargeResourceVersion,
    TooManyRequests,
)

PODS = "/api/v1/pods"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster("faulty", token="old") as cluster:
        for number in range(6):
            cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}, "spec": {"containers": []}})
        yield cluster


@pytest.fixture
async def session(cluster: FakeCluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cluster.url, headers={"Authorization": "Bearer old"}) as session:
        yield session


async def _get(session: aiohttp.ClientSession, path: str = PODS, **query: Any) -> tuple[int, dict[str, Any]]:
    async with session.get(path, params=query) as response:
        return response.status, await response.json()


async def _lines(session: aiohttp.ClientSession, received: list[bytes]) -> None:
    async with session.get(PODS, params={"watch": "1", "timeoutSeconds": "20"}) as response:
        async for line in response.content:
            received.append(line)  # noqa: PERF401 - what came before the failure counts


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        (Gone(on="list"), 410, "Expired"),
        (TooManyRequests(on="list", retry_after=7), 429, "TooManyRequests"),
        (InternalError(on="list"), 500, "InternalError"),
        (TooLargeResourceVersion(on="list"), 504, "Timeout"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, (int, str)) else "",
)
async def test_answers_in_the_servers_place(cluster, session, fault, code, reason):
    cluster.faults.add(fault)
    status, body = await _get(session)

    assert (status, body["code"], body["reason"]) == (code, code, reason)
    assert fault.fired == 1
    assert (await _get(session))[0] == 200


async def test_retry_after_is_a_header(cluster, session):
    cluster.faults.add(TooManyRequests(retry_after=7))
    async with session.get(PODS) as response:
        assert response.headers["Retry-After"] == "7"


async def test_only_the_named_requests_are_hit(cluster, session):
    fault = cluster.faults.add(InternalError(on="list", resource="pods", namespace="", skip=1), times=2)

    assert (await _get(session, "/api/v1/namespaces"))[0] == 200
    assert (await _get(session, "/api/v1/namespaces/default/pods"))[0] == 200
    assert (await _get(session, "/api/v1/namespaces/default/pods/p0"))[0] == 200
    assert [(await _get(session))[0] for _ in range(4)] == [200, 500, 500, 200]
    assert fault.fired == 2


async def test_a_fault_can_stay_until_removed(cluster, session):
    fault = cluster.faults.add(InternalError(), times=None)
    assert [(await _get(session))[0] for _ in range(3)] == [500, 500, 500]
    cluster.faults.remove(fault)
    assert (await _get(session))[0] == 200


def test_arming_for_no_request_is_a_mistake():
    with pytest.raises(UsageError, match="times=0 arms nothing"):
        FakeCluster().faults.add(Latency(seconds=1), times=0)


async def test_latency_delays(cluster, session):
    loop = asyncio.get_running_loop()
    cluster.faults.add(Latency(seconds=0.15))
    began = loop.time()
    assert (await _get(session))[0] == 200
    assert loop.time() - began >= 0.15


async def test_a_list_fails_on_its_third_page(cluster, session):
    cluster.faults.add(FailPage(resource="pods"))
    first = (await _get(session, limit="1"))[1]
    second = (await _get(session, limit="1", **{"continue": first["metadata"]["continue"]}))[1]
    again = {"limit": "1", "continue": second["metadata"]["continue"]}

    assert (await _get(session, **again))[0] == 500
    assert (await _get(session, **again))[0] == 200


async def test_an_expired_token_until_it_is_refreshed(cluster, session):
    cluster.add_token("new", "kubernetes-admin")
    cluster.faults.add(ExpiredToken(token="old"), times=None)

    assert (await _get(session))[0] == 401
    async with session.get(PODS, headers={"Authorization": "Bearer new"}) as response:
        assert response.status == 200


async def test_gone_as_an_event(cluster, session):
    cluster.faults.add(Gone(on="watch", as_event=True))
    received: list[bytes] = []
    await _lines(session, received)
    event = json.loads(received[0])

    assert len(received) == 1
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


async def test_a_reset_in_the_middle_of_a_line(cluster, session):
    fault = cluster.faults.add(Reset(after_bytes=500, on="watch"))
    received: list[bytes] = []
    with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError, aiohttp.ClientOSError)):
        await _lines(session, received)

    await fault.wait()
    assert sum(map(len, received)) <= 500
    assert all(json.loads(line) for line in received if line.endswith(b"\n"))


async def test_half_a_line_and_then_the_end(cluster, session):
    cluster.faults.add(HalfLine(after_lines=2, on="watch"))
    received: list[bytes] = []
    with pytest.raises(aiohttp.ClientPayloadError):
        await _lines(session, received)

    assert [line.endswith(b"\n") for line in received[:2]] == [True, True]
    assert all(not line.endswith(b"\n") for line in received[2:])


async def test_a_damaged_list(cluster, session):
    cluster.faults.add(Reset(after_bytes=40, on="list"))
    with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError, aiohttp.ClientOSError)):
        await _get(session)


async def test_a_stall_is_silent(cluster, session):
    fault = cluster.faults.add(Stall(after_bytes=100, on="watch"))
    received: list[bytes] = []
    reading = asyncio.create_task(_lines(session, received))
    await fault.wait()
    cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "unheard"}, "spec": {}})

    done, _ = await asyncio.wait([reading], timeout=0.2)
    assert not done
    assert sum(map(len, received)) <= 100
    reading.cancel()
    await asyncio.wait([reading])


async def test_waiting_for_a_fault_that_does_not_come(cluster):
    fault = cluster.faults.add(Latency(seconds=0))
    with pytest.raises(TimeoutError):
        await fault.wait(timeout=0.05)
