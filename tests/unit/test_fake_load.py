"""Generated load: deterministic, of realistic weight, and a bench server that resumes exactly."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.fake.bench import BenchServer
from ipe_events.testing.load import FIRST_RV, SENT_ANNOTATION, LoadGenerator, churn


def test_the_same_seed_gives_the_same_pods():
    assert [LoadGenerator(7).pod_json(number) for number in range(70)] == [
        LoadGenerator(7).pod_json(number) for number in range(70)
    ]
    assert LoadGenerator(7).pod_json(3) != LoadGenerator(8).pod_json(3)


def test_pods_weigh_what_real_ones_do():
    generator = LoadGenerator(1)
    sizes = [len(generator.pod_json(number)) for number in range(200)]
    managed = [len(json.dumps(generator.pod(number)["metadata"]["managedFields"], separators=(",", ":"))) for number in (0, 63)]

    assert 8_600 < sum(sizes) / len(sizes) < 9_200
    assert all(2_900 < size < 3_300 for size in managed)


def test_every_pod_is_another():
    generator = LoadGenerator(1)
    pods = [generator.pod(number, rv=number + 1)["metadata"] for number in range(500)]
    assert len({pod["uid"] for pod in pods}) == len({(pod["namespace"], pod["name"]) for pod in pods}) == 500
    assert [int(pod["resourceVersion"]) for pod in pods] == list(range(1, 501))


def test_the_stream_has_every_event_once():
    lines = b"".join(bytes(block) for block in LoadGenerator(1).stream(1_000, pods=64)).splitlines()
    events = [json.loads(line) for line in lines]

    assert [int(event["object"]["metadata"]["resourceVersion"]) for event in events] == [FIRST_RV + n for n in range(1, 1_001)]
    assert {event["type"] for event in events} == {"MODIFIED"}
    assert len({event["object"]["metadata"]["uid"] for event in events}) == 64


def test_populating_a_cluster():
    cluster, generator = FakeCluster("full"), LoadGenerator(3)
    generator.populate(cluster, pods=50, deployments=5, nodes=2)

    assert len(cluster.list("pods")) == 50
    assert cluster.list("pods", namespace=generator.namespace(0))
    assert len(cluster.list("deployments")) == 5
    assert len(cluster.list("nodes")) == 2


async def test_churn_dates_each_change():
    generator = LoadGenerator(3)
    async with FakeCluster("busy") as cluster:
        generator.populate(cluster, pods=5)
        start = cluster.resource_version
        await churn(cluster, generator, pods=5, rate=2_000, events=20)
        sent = [int(pod["metadata"]["annotations"][SENT_ANNOTATION]) for pod in cluster.list("pods")]
        assert cluster.resource_version == start + 20
        assert len(set(sent)) == 5


@pytest.fixture
def bench() -> Iterator[BenchServer]:
    with BenchServer(1_000, objects=250) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def _watch(url: str, count: int, **query: str) -> list[dict[str, Any]]:
    async with (
        aiohttp.ClientSession(url, read_bufsize=1 << 20) as session,
        session.get("/api/v1/pods", params={"watch": "1"} | query) as response,
    ):
        return [json.loads(await response.content.readline()) for _ in range(count)]


async def test_the_bench_server_resumes_where_the_client_stopped(bench: BenchServer):
    first = await _watch(bench.url, 1_000, resourceVersion="1")
    rest = await _watch(bench.url, 400, resourceVersion=first[599]["object"]["metadata"]["resourceVersion"])

    assert rest == first[600:]
    assert all(
        int(a["object"]["metadata"]["resourceVersion"]) + 1 == int(b["object"]["metadata"]["resourceVersion"])
        for a, b in pairwise(first)
    )


async def test_the_bench_server_lists_in_pages(bench: BenchServer):
    names: list[str] = []
    query: dict[str, str] = {"limit": "100"}
    async with aiohttp.ClientSession(bench.url) as session:
        while True:
            async with session.get("/api/v1/pods", params=query) as response:
                body = await response.json()
            assert all("kind" not in item for item in body["items"])
            names += [item["metadata"]["name"] for item in body["items"]]
            if "continue" not in body["metadata"]:
                break
            query["continue"] = body["metadata"]["continue"]
        async with session.get("/api/v1/namespaces/kube-system") as response:
            assert (await response.json())["metadata"]["uid"]
    assert len(set(names)) == 250


async def test_the_bench_server_sends_initial_events(bench: BenchServer):
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    events = await _watch(bench.url, 252, **options)

    assert [event["type"] for event in events] == ["ADDED"] * 250 + ["BOOKMARK", "MODIFIED"]
    assert events[250]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_the_command_runs_a_cluster_until_it_is_told_to_stop(tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("secret\n")
    arguments = ["--name", "own", "--pods", "3", "--token-file", str(token_file), "--kubeconfig", str(tmp_path / "config")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ipe_events.testing.fake", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with (
        aiohttp.ClientSession(url) as session,
        session.get("/api/v1/pods", headers={"Authorization": "Bearer secret"}) as response,
    ):
        assert len((await response.json())["items"]) == 3
    assert (tmp_path / "config").exists()
    process.terminate()
    assert await process.wait() == 0
