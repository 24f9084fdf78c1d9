"""Quotas and namespaces, on a cluster whose controllers run, and custom resources."""

import uuid

from tests.contract.api import CORE, MERGE, ApiServer, JsonObject, fields_of
from tests.helpers import eventually

EXTENSIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def _pod(name: str, cpu: str | None = "100m") -> JsonObject:
    container = {"name": "x", "image": "i"} | ({"resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}} if cpu else {})
    return {"metadata": {"name": name}, "spec": {"containers": [container]}}


async def _quota(api: ApiServer, **hard: str) -> tuple[str, str]:
    """(namespace's path, quota's path), once the quota is in force and pods can be created."""
    home = f"{CORE}/namespaces/{await api.namespace()}"
    if not api.simulated:
        await eventually(lambda: _there(api, f"{home}/serviceaccounts/default"))
    path = f"{home}/resourcequotas"
    written = {name.replace("__", "/").replace("_", "."): amount for name, amount in hard.items()}
    await api.ok("POST", path, {"metadata": {"name": "q"}, "spec": {"hard": written}})

    async def in_force() -> bool:
        return bool((await api.ok("GET", f"{path}/q")).get("status", {}).get("hard") == written)

    await eventually(in_force)
    return home, f"{path}/q"


async def _there(api: ApiServer, path: str) -> bool:
    return (await api.call("GET", path)).status == 200


async def _used(api: ApiServer, quota: str, expected: dict[str, str]) -> None:
    async def counted() -> bool:
        return bool((await api.ok("GET", quota))["status"]["used"] == expected)

    await eventually(counted)


async def test_a_quota_refuses_what_does_not_fit(live_api: ApiServer):
    home, quota = await _quota(live_api, pods="2", requests_cpu="300m", requests_memory="1Gi")
    await live_api.ok("POST", f"{home}/pods", _pod("a"))
    await _used(live_api, quota, {"pods": "1", "requests.cpu": "100m", "requests.memory": "64Mi"})

    large = await live_api.call("POST", f"{home}/pods", _pod("b", "250m"))
    why = "exceeded quota: q, requested: requests.cpu=250m, used: requests.cpu=100m, limited: requests.cpu=300m"
    assert large.refused(403, "Forbidden", f'pods "b" is forbidden: {why}') == {"name": "b", "kind": "pods"}

    vague = await live_api.call("POST", f"{home}/pods", _pod("b", None))
    why = "failed quota: q: must specify requests.cpu for: x; requests.memory for: x"
    vague.refused(403, "Forbidden", f'pods "b" is forbidden: {why}')

    await live_api.ok("POST", f"{home}/pods", _pod("b"), dryRun="All")
    await live_api.ok("POST", f"{home}/pods", _pod("b"))
    await _used(live_api, quota, {"pods": "2", "requests.cpu": "200m", "requests.memory": "128Mi"})
    third = await live_api.call("POST", f"{home}/pods", _pod("c", "1m"))
    why = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
    third.refused(403, "Forbidden", f'pods "c" is forbidden: {why}')


async def test_a_quota_counts_objects(live_api: ApiServer):
    home, quota = await _quota(live_api, count__secrets="1", secrets="5", count__deployments_apps="3")
    await _used(live_api, quota, {"count/secrets": "0", "secrets": "0", "count/deployments.apps": "0"})
    await live_api.ok("POST", f"{home}/secrets", {"metadata": {"name": "one"}})
    await _used(live_api, quota, {"count/secrets": "1", "secrets": "1", "count/deployments.apps": "0"})

    second = await live_api.call("POST", f"{home}/secrets", {"metadata": {"name": "two"}})
    why = "exceeded quota: q, requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1"
    second.refused(403, "Forbidden", f'secrets "two" is forbidden: {why}')
    await live_api.ok("DELETE", f"{home}/secrets/one")
    await _used(live_api, quota, {"count/secrets": "0", "secrets": "0", "count/deployments.apps": "0"})
    await live_api.ok("POST", f"{home}/secrets", {"metadata": {"name": "two"}})


async def test_a_raised_quota_makes_room(live_api: ApiServer):
    home, quota = await _quota(live_api, count__secrets="0")
    (await live_api.call("POST", f"{home}/secrets", {"metadata": {"name": "one"}})).refused(403, "Forbidden")
    await live_api.ok("PATCH", quota, {"spec": {"hard": {"count/secrets": "1"}}}, kind=MERGE)

    async def fits() -> bool:
        return (await live_api.call("POST", f"{home}/secrets", {"metadata": {"name": "one"}})).status == 201

    await eventually(fits)


async def test_a_namespace_takes_its_content_along(live_api: ApiServer):
    namespace = await live_api.namespace()
    home = f"{CORE}/namespaces/{namespace}"
    live = await live_api.ok("GET", home)
    assert live["status"] == {"phase": "Active"}
    assert live["spec"] == {"finalizers": ["kubernetes"]}
    assert live["metadata"]["labels"] == {"kubernetes.io/metadata.name": namespace}
    held = {"metadata": {"name": "held", "finalizers": ["test.ipe.dev/hold"]}}
    await live_api.ok("POST", f"{home}/configmaps", held)
    await live_api.config_map(namespace, "free", x="1")

    assert (await live_api.ok("DELETE", home))["status"]["phase"] == "Terminating"
    refused = await live_api.call("POST", f"{home}/secrets", {"metadata": {"name": "late"}})
    why = f"unable to create new content in namespace {namespace} because it is being terminated"
    details = refused.refused(403, "Forbidden", f'secrets "late" is forbidden: {why}')
    assert details["causes"] == [
        {
            "reason": "NamespaceTerminating",
            "message": f"namespace {namespace} is being terminated",
            "field": "metadata.namespace",
        }
    ]

    async def only_held() -> bool:
        items = (await live_api.ok("GET", f"{home}/configmaps"))["items"]
        return [(item["metadata"]["name"], "deletionTimestamp" in item["metadata"]) for item in items] == [("held", True)]

    await eventually(only_held, timeout=20)
    await live_api.ok("PATCH", f"{home}/configmaps/held", {"metadata": {"finalizers": None}}, kind=MERGE)

    async def gone() -> bool:
        return (await live_api.call("GET", home)).status == 404

    await eventually(gone, timeout=40)


async def test_custom_resources(api: ApiServer):
    group = f"g{uuid.uuid4().hex[:8]}.ipe.dev"
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList", "shortNames": ["wd"]}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    await api.ok("POST", EXTENSIONS, {"metadata": {"name": f"widgets.{group}"}, "spec": spec})
    namespace = await api.namespace()
    widgets = f"/apis/{group}/v1/namespaces/{namespace}/widgets"
    await eventually(lambda: _there(api, widgets), timeout=20)

    widget = {
        "apiVersion": f"{group}/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": {"parts": [{"name": "a"}], "size": 1},
    }
    created = await api.ok("POST", widgets, widget | {"status": {"ready": True}})
    assert "status" not in created
    assert created["metadata"]["generation"] == 1
    assert fields_of(created, "contract") == {"f:spec": {".": {}, "f:parts": {}, "f:size": {}}}

    listed = await api.ok("GET", widgets)
    assert (listed["kind"], listed["apiVersion"]) == ("WidgetList", f"{group}/v1")
    assert (listed["items"][0]["kind"], listed["items"][0]["apiVersion"]) == ("Widget", f"{group}/v1")

    both = {"spec": {"size": 9}, "status": {"ready": True}, "metadata": {"annotations": {"a": "1"}}}
    by_status = await api.ok("PATCH", f"{widgets}/w/status", both, kind=MERGE)
    assert (by_status["spec"]["size"], by_status["status"]) == (1, {"ready": True})
    assert "annotations" not in by_status["metadata"]
    assert by_status["metadata"]["generation"] == 1
    assert (await api.ok("PATCH", f"{widgets}/w", {"spec": {"size": 2}}, kind=MERGE))["metadata"]["generation"] == 2
    blind = await api.call("PUT", f"{widgets}/w", widget)
    blind.refused(422, "Invalid")
    assert "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in blind.json["message"]
    strategic = await api.call("PATCH", f"{widgets}/w", {}, kind="application/strategic-merge-patch+json")
    strategic.refused(415, "UnsupportedMediaType")

    await api.ok("DELETE", f"{EXTENSIONS}/widgets.{group}")

    async def unserved() -> bool:
        return (await api.call("GET", widgets)).status == 404

    await eventually(unserved, timeout=30)
