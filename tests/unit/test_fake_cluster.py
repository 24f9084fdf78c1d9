"""What FakeCluster is beyond the contract with the real server: helpers, history, controllers, metrics, refusals of its own."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import yaml

from ipe_events.errors import UsageError
from ipe_events.testing.fake import FakeCluster, StatusError
from tests.helpers import eventually


def _config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _deployment(replicas: int) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "x", "image": "i"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster("unit") as cluster:
        yield cluster


@pytest.fixture
async def session(cluster: FakeCluster) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cluster.url) as session:
        yield session


async def _events(session: aiohttp.ClientSession, path: str, count: int, **query: str) -> list[tuple[str, dict[str, Any]]]:
    async with session.get(path, params={"watch": "1", "timeoutSeconds": "10"} | query) as response:
        lines = [await response.content.readline() for _ in range(count)]
    return [(event["type"], event["object"]) for event in map(json.loads, lines)]


def test_helpers_need_no_server():
    cluster = FakeCluster("offline")
    cluster.create(_config_map("a", x="1"))
    cluster.apply(_config_map("a", y="2"))
    cluster.patch("configmaps", "a", [{"op": "test", "path": "/data/x", "value": "1"}, {"op": "remove", "path": "/data/x"}])

    assert cluster.get("configmaps", "a")["data"] == {"y": "2"}
    cluster.get("configmaps", "a")["data"]["y"] = "mine"
    assert cluster.list("configmaps")[0]["data"] == {"y": "2"}
    cluster.delete("configmaps", "a")
    with pytest.raises(StatusError, match='configmaps "a" not found') as refusal:
        cluster.get("configmaps", "a")
    assert (refusal.value.status, refusal.value.reason) == (404, "NotFound")


def test_mistakes_are_named():
    cluster = FakeCluster("offline")
    with pytest.raises(UsageError, match="no resource 'widgets'"):
        cluster.list("widgets")
    with pytest.raises(UsageError, match=r"no resource for ipe\.dev/v1 Widget"):
        cluster.create({"apiVersion": "ipe.dev/v1", "kind": "Widget", "metadata": {"name": "w"}})
    with pytest.raises(UsageError, match="does not listen yet"):
        _ = cluster.url


def test_helpers_may_write_status_with_the_rest():
    cluster = FakeCluster("offline")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Running"}}
    before = cluster.resource_version
    assert cluster.create(pod)["status"] == {"phase": "Running"}
    assert cluster.resource_version == before + 1


def test_the_same_seed_gives_the_same_cluster():
    first, again, other = (FakeCluster("same", seed=seed) for seed in (1, 1, 2))
    assert first.uid == again.uid != other.uid


async def test_server_side_apply_and_strategic_merge_are_refused(cluster, session):
    cluster.create(_config_map("a"))
    for kind, what in (("apply-patch+yaml", "server-side apply"), ("strategic-merge-patch+json", "strategic merge patch")):
        headers = {"Content-Type": f"application/{kind}"}
        async with session.patch("/api/v1/namespaces/default/configmaps/a", data=b"{}", headers=headers) as response:
            body = await response.json()
        assert (response.status, body["reason"]) == (415, "UnsupportedMediaType")
        assert what in body["message"]


async def test_history_is_bounded(session):
    async with FakeCluster("short", history=3) as cluster, aiohttp.ClientSession(cluster.url) as session:
        start = cluster.create(_config_map("a"))["metadata"]["resourceVersion"]
        for number in range(5):
            cluster.patch("configmaps", "a", {"data": {"n": str(number)}})
        ((kind, obj),) = await _events(session, "/api/v1/configmaps", 1, resourceVersion=start)
    assert (kind, obj["code"]) == ("ERROR", 410)


async def test_a_restored_backup_goes_back(cluster, session):
    cluster.create(_config_map("kept"))
    backup = cluster.snapshot()
    uid = cluster.uid
    lost = cluster.create(_config_map("lost"))
    async with session.get("/api/v1/configmaps", params={"watch": "1", "fieldSelector": "metadata.name=lost"}) as watch:
        assert json.loads(await watch.content.readline())["object"] == lost
        cluster.restore(backup)
        assert await watch.content.readline() == b""

    assert [obj["metadata"]["name"] for obj in cluster.list("configmaps")] == ["kept"]
    assert cluster.uid == uid
    again = cluster.create(_config_map("again"))
    assert again["metadata"]["resourceVersion"] == lost["metadata"]["resourceVersion"]


async def test_a_slow_watcher_is_closed_and_can_resume():
    async with FakeCluster("slow", watch_buffer=10) as cluster, aiohttp.ClientSession(cluster.url) as session:
        start = str(cluster.resource_version)
        async with session.get("/api/v1/configmaps", params={"watch": "1", "resourceVersion": start}) as watch:
            for number in range(50):  # without a pause: nothing is sent meanwhile
                cluster.create(_config_map(f"c{number}"))
            with pytest.raises(aiohttp.ClientPayloadError):
                await watch.read()
        events = await _events(session, "/api/v1/configmaps", 50, resourceVersion=start)
    assert [obj["metadata"]["name"] for _, obj in events] == [f"c{number}" for number in range(50)]


async def test_bookmarks_come_at_the_chosen_interval():
    async with FakeCluster("marks", bookmark_interval=0.05) as cluster, aiohttp.ClientSession(cluster.url) as session:
        rv = str(cluster.resource_version)
        events = await _events(session, "/api/v1/pods", 3, resourceVersion=rv, allowWatchBookmarks="true")
    assert [(kind, obj["metadata"]) for kind, obj in events] == [("BOOKMARK", {"resourceVersion": rv})] * 3


async def test_a_server_that_comes_back_has_its_objects_and_its_port():
    cluster = FakeCluster("phoenix")
    await cluster.start()
    url = cluster.url
    cluster.create(_config_map("a"))
    await cluster.stop()
    async with aiohttp.ClientSession(url) as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("/readyz")
        await cluster.start()
        async with session.get("/api/v1/namespaces/default/configmaps/a") as response:
            assert response.status == 200
    assert cluster.url == url
    await cluster.stop()


async def test_starting_twice_is_a_mistake(cluster):
    with pytest.raises(UsageError, match="runs already"):
        await cluster.start()


async def test_the_kubeconfig_names_cluster_and_token(tmp_path):
    async with FakeCluster("prod-eu", token="secret") as cluster:
        path = cluster.kubeconfig(tmp_path / "config")
        config = yaml.safe_load(path.read_text())
        assert config["current-context"] == "prod-eu"
        assert config["clusters"][0]["cluster"]["server"] == cluster.url
        assert config["users"][0]["user"] == {"token": "secret"}
        assert path.stat().st_mode & 0o077 == 0


async def test_metrics_are_what_the_test_says(cluster, session):
    cluster.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "a"}}, "spec": {}})
    cluster.set_pod_metrics("p", {"x": {"cpu": "10m", "memory": "20Mi"}})
    cluster.set_node_metrics("n", {"cpu": "1", "memory": "2Gi"})
    base = "/apis/metrics.k8s.io/v1beta1"
    async with session.get(f"{base}/namespaces/default/pods", params={"labelSelector": "app=a"}) as response:
        listed = await response.json()
    async with session.get(f"{base}/nodes/n") as response:
        node = await response.json()

    assert (listed["kind"], len(listed["items"])) == ("PodMetricsList", 1)
    assert listed["items"][0]["containers"] == [{"name": "x", "usage": {"cpu": "10m", "memory": "20Mi"}}]
    assert (node["kind"], node["usage"]) == ("NodeMetrics", {"cpu": "1", "memory": "2Gi"})
    cluster.delete("pods", "p")
    async with session.get(f"{base}/pods") as response:
        assert (await response.json())["items"] == []


async def test_controllers_keep_deployments_running():
    async with FakeCluster("alive", controllers=True) as cluster:
        cluster.create(_deployment(3))

        def running(count: int) -> bool:
            return [pod["status"]["phase"] for pod in cluster.list("pods")] == ["Running"] * count

        await eventually(lambda: running(3) and cluster.get("deployments", "d")["status"].get("readyReplicas") == 3)
        first = cluster.list("pods")[0]
        assert first["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"
        cluster.delete("pods", first["metadata"]["name"])
        await eventually(lambda: running(3))
        cluster.patch("deployments", "d", {"spec": {"replicas": 1}})
        await eventually(lambda: running(1))
        image = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "j"}]
        cluster.patch("deployments", "d", image)
        await eventually(lambda: [pod["spec"]["containers"][0]["image"] for pod in cluster.list("pods")] == ["j"])
        cluster.delete("deployments", "d")
        await eventually(lambda: not cluster.list("pods") and not cluster.list("replicasets"))


async def test_controllers_wait_for_room_in_a_quota():
    async with FakeCluster("tight", controllers=True) as cluster:
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}}
        cluster.create(quota)
        cluster.create(_deployment(3))
        await eventually(lambda: cluster.get("resourcequotas", "q")["status"]["used"] == {"pods": "2"})
        assert len(cluster.list("pods")) == 2
        cluster.patch("resourcequotas", "q", {"spec": {"hard": {"pods": "5"}}})
        await eventually(lambda: len(cluster.list("pods")) == 3)


async def test_a_quota_with_scopes_is_refused_not_ignored(cluster):
    spec = {"hard": {"pods": "1"}, "scopes": ["BestEffort"]}
    with pytest.raises(StatusError, match="does not support quota scopes"):
        cluster.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": spec})


async def test_many_watchers_share_one_rendering(cluster, session):
    start = str(cluster.resource_version)
    readers = [asyncio.create_task(_events(session, "/api/v1/configmaps", 20, resourceVersion=start)) for _ in range(5)]
    for number in range(20):
        cluster.create(_config_map(f"c{number:02d}"))
        await asyncio.sleep(0)
    results = await asyncio.gather(*readers)
    assert all(result == results[0] for result in results)
    assert [obj["metadata"]["name"] for _, obj in results[0]] == [f"c{number:02d}" for number in range(20)]


def test_an_amount_that_is_none_is_refused():
    cluster = FakeCluster("offline")
    with pytest.raises(StatusError, match="cannot be handled as a ResourceQuota") as refusal:
        cluster.create(
            {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "many"}}}
        )
    assert refusal.value.status == 400
