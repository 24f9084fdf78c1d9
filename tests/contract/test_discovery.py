"""Discovery, health, and the shape of paths that are not served."""

import re

import pytest

from tests.contract.api import CORE, ApiServer, JsonObject

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
SERVED = [
    ("", "pods"), ("", "namespaces"), ("", "nodes"), ("", "services"), ("", "configmaps"), ("", "secrets"),
    ("", "serviceaccounts"), ("", "resourcequotas"), ("", "limitranges"), ("", "events"), ("", "endpoints"),
    ("", "persistentvolumeclaims"), ("", "replicationcontrollers"), ("apps", "deployments"), ("apps", "replicasets"),
    ("apps", "statefulsets"), ("apps", "daemonsets"), ("batch", "jobs"), ("batch", "cronjobs"),
    ("autoscaling", "horizontalpodautoscalers"), ("networking.k8s.io", "ingresses"), ("networking.k8s.io", "networkpolicies"),
    ("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"), ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("policy", "poddisruptionbudgets"), ("coordination.k8s.io", "leases"),
    ("apiextensions.k8s.io", "customresourcedefinitions"), ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
]  # fmt: skip
TRAITS = ("scope", "singularResource", "responseKind", "verbs", "shortNames")


async def _resources(api: ApiServer) -> dict[tuple[str, str], JsonObject]:
    found = {}
    for path in ("/api", "/apis"):
        body = await api.ok("GET", path, accept=AGGREGATED)
        assert (body["kind"], body["apiVersion"]) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io/v2")
        for group in body["items"]:
            for resource in group["versions"][0]["resources"]:
                found[group["metadata"].get("name", ""), resource["resource"]] = resource
    return found


async def test_every_resource_is_described_alike(api: ApiServer):
    found = await _resources(api)
    deployments, pods = found["apps", "deployments"], found["", "pods"]

    assert [key for key in SERVED if key not in found] == []
    assert pods["scope"] == "Namespaced"
    assert pods["verbs"] == VERBS
    assert pods["shortNames"] == ["po"]
    # group and version are empty: those of the list that the resource stands in
    assert pods["responseKind"] == {"group": "", "version": "", "kind": "Pod"}
    assert found["", "nodes"]["scope"] == "Cluster"
    assert {sub["subresource"]: sub["responseKind"] for sub in deployments["subresources"]} == {
        "scale": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
        "status": {"group": "", "version": "", "kind": "Deployment"},
    }


async def test_the_fake_describes_what_it_serves_as_the_real_server_does(api: ApiServer):
    """Pinned traits; running this on both sides keeps the table honest."""
    found = await _resources(api)
    short = {"deployments": ["deploy"], "statefulsets": ["sts"], "daemonsets": ["ds"], "replicasets": ["rs"],
             "cronjobs": ["cj"], "horizontalpodautoscalers": ["hpa"], "resourcequotas": ["quota"], "limitranges": ["limits"],
             "persistentvolumeclaims": ["pvc"], "configmaps": ["cm"], "serviceaccounts": ["sa"], "services": ["svc"],
             "namespaces": ["ns"], "nodes": ["no"], "events": ["ev"], "endpoints": ["ep"], "ingresses": ["ing"],
             "networkpolicies": ["netpol"], "poddisruptionbudgets": ["pdb"], "customresourcedefinitions": ["crd", "crds"],
             "replicationcontrollers": ["rc"], "pods": ["po"]}  # fmt: skip
    for group, resource in SERVED:
        described = found[group, resource]
        assert described.get("shortNames", []) == short.get(resource, []), resource
        assert described["singularResource"] == described["responseKind"]["kind"].lower()
        assert set(described["verbs"]) <= set(VERBS), resource
    statuses = {r for g, r in SERVED if any(s["subresource"] == "status" for s in found[g, r].get("subresources", []))}
    scales = {r for g, r in SERVED if any(s["subresource"] == "scale" for s in found[g, r].get("subresources", []))}
    assert scales == {"deployments", "replicasets", "statefulsets", "replicationcontrollers"}
    assert statuses == {
        "pods", "namespaces", "nodes", "services", "resourcequotas", "persistentvolumeclaims", "replicationcontrollers",
        "deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs", "horizontalpodautoscalers",
        "ingresses", "poddisruptionbudgets", "customresourcedefinitions",
    }  # fmt: skip


async def test_the_classic_documents(api: ApiServer):
    assert (await api.ok("GET", "/api"))["versions"] == ["v1"]
    groups = {group["name"]: group for group in (await api.ok("GET", "/apis"))["groups"]}
    assert groups["apps"]["preferredVersion"] == {"groupVersion": "apps/v1", "version": "v1"}
    assert (await api.ok("GET", "/apis/apps"))["versions"] == [{"groupVersion": "apps/v1", "version": "v1"}]
    resources = {resource["name"]: resource for resource in (await api.ok("GET", "/apis/apps/v1"))["resources"]}
    assert resources["deployments"]["namespaced"] is True
    assert resources["deployments/scale"] == {
        "name": "deployments/scale",
        "singularName": "",
        "namespaced": True,
        "group": "autoscaling",
        "version": "v1",
        "kind": "Scale",
        "verbs": ["get", "patch", "update"],
    }


async def test_version_and_health(api: ApiServer):
    version = await api.ok("GET", "/version")
    assert re.fullmatch(r"v1\.\d+\.\d+.*", version["gitVersion"])
    assert (version["major"], version["platform"]) == ("1", "linux/amd64")
    for probe in ("/readyz", "/livez", "/healthz"):
        assert (await api.call("GET", probe)).text == "ok"


@pytest.mark.parametrize("path", ["/apis/nope", "/apis/nope/v1", "/apis/nope/v1/things", "/nope"])
async def test_an_unknown_group_is_a_plain_404(api: ApiServer, path: str):
    answer = await api.call("GET", path)
    assert (answer.status, answer.text) == (404, "404 page not found\n")


@pytest.mark.parametrize("path", ["/api/v1/things", "/apis/apps/v1/things", "/apis/apps/v9/things", "/apis/apps/v9"])
async def test_an_unknown_resource_is_a_status(api: ApiServer, path: str):
    details = (await api.call("GET", path)).refused(404, "NotFound", "the server could not find the requested resource")
    assert details == {}


async def test_methods_that_do_not_fit(api: ApiServer):
    message = "the server does not allow this method on the requested resource"
    for method, path in (("PUT", f"{CORE}/namespaces/default/configmaps"), ("POST", f"{CORE}/pods")):
        (await api.call(method, path, {"metadata": {"name": "x"}})).refused(405, "MethodNotAllowed", message)


async def test_a_subresource_that_is_not_there(api: ApiServer):
    answer = await api.call("GET", f"{CORE}/namespaces/default/configmaps/x/status")
    answer.refused(404, "NotFound", "the server could not find the requested resource")


async def test_the_clusters_identity(api: ApiServer):
    async def uid() -> str:
        return str((await api.ok("GET", f"{CORE}/namespaces/kube-system"))["metadata"]["uid"])

    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", await uid())
    assert await uid() == await uid()
