"""The two clusters that the same tests run on."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from ipe_events.bus.connection import Bus
from ipe_events.kube.session import ClusterSource, KubeSession
from ipe_events.testing.fake import FakeCluster
from tests.integration.act.support import JsonObject, Place, make_streams


@pytest_asyncio.fixture
async def fake_place(tmp_path) -> AsyncIterator[Place]:
    async with FakeCluster() as cluster:
        source = ClusterSource("c1", kubeconfig=str(cluster.kubeconfig(tmp_path / "fake.yaml")))
        async with await KubeSession.open(source) as session:

            def call(method: str, path: str, body: JsonObject | None = None) -> JsonObject:
                resource, _, rest = path.partition("/namespaces/")[2].partition("/")[2].partition("/")
                group = path.split("/")[2] if path.startswith("/apis/") else ""
                namespace = path.partition("/namespaces/")[2].partition("/")[0]
                plural = f"{resource}.{group}" if group else resource
                if method == "POST":
                    return cluster.create(body or {}, manager="test")
                if method == "PATCH":
                    return cluster.patch(plural, rest, body or {}, namespace=namespace, manager="test")
                if method == "DELETE":
                    cluster.delete(plural, rest, namespace=namespace)
                    return {}
                return cluster.get(plural, rest, namespace=namespace)

            yield Place("fake", session, "default", call, cluster.faults)


@pytest_asyncio.fixture
async def real_place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    cluster = request.getfixturevalue("real_cluster")
    namespace = request.getfixturevalue("real_namespace")
    source = ClusterSource("c1", kubeconfig=str(cluster.kubeconfig))
    async with await KubeSession.open(source) as session:

        def call(method: str, path: str, body: Any = None) -> JsonObject:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            answer: JsonObject = cluster.api.call(method, path, body, content_type=kind)
            return answer

        yield Place("real", session, namespace, call)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real_k8s)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest_asyncio.fixture
async def streams(bus: Bus) -> Bus:
    await make_streams(bus)
    return bus
