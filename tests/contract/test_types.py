"""Bodies whose fields are of other types than their kind's: each is refused with a Status that names the field."""

import pytest

from tests.contract.api import APPS, CORE, JSON_PATCH, MERGE, ApiServer, JsonObject

QUANTITIES = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
CONTAINERS = [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]
DEPLOYMENT = {
    "metadata": {"name": "d"},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": CONTAINERS}},
    },
}


def field(what: str, where: str, kind: str) -> str:
    return f"json: cannot unmarshal {what} into Go struct field {where} of type {kind}"


def container(**fields: object) -> JsonObject:
    return {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i", **fields}]}}


def named(**fields: object) -> JsonObject:
    return {"metadata": {"name": "x"}, **fields}


@pytest.fixture
async def namespace(api: ApiServer) -> str:
    """A namespace with a quota, which looks into every pod."""
    namespace = await api.namespace()
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "10", "pods": "10"}}}
    await api.ok("POST", f"{CORE}/namespaces/{namespace}/resourcequotas", quota)
    return namespace


@pytest.mark.parametrize(
    ("resource", "body", "why"),
    [
        ("pods", named(spec=5), field("number", "Pod.spec", "v1.PodSpec")),
        ("pods", named(spec={"containers": 5}), field("number", "PodSpec.spec.containers", "[]v1.Container")),
        ("pods", named(spec={"containers": {"a": 1}}), field("object", "PodSpec.spec.containers", "[]v1.Container")),
        ("pods", named(spec={"containers": ["c"]}), field("string", "PodSpec.spec.containers", "v1.Container")),
        ("pods", named(spec={"initContainers": True}), field("bool", "PodSpec.spec.initContainers", "[]v1.Container")),
        ("pods", container(name=5), field("number", "Container.spec.containers.name", "string")),
        ("pods", container(resources=[]), field("array", "Container.spec.containers.resources", "v1.ResourceRequirements")),
        (
            "pods",
            container(resources={"requests": 5}),
            field("number", "ResourceRequirements.spec.containers.resources.requests", "v1.ResourceList"),
        ),
        ("pods", container(resources={"requests": {"cpu": []}}), QUANTITIES),
        ("pods", container(resources={"limits": {"cpu": "much"}}), QUANTITIES),
        ("pods", {"metadata": 5}, field("number", "Pod.metadata", "v1.ObjectMeta")),
        ("pods", {"metadata": {"name": 5}}, field("number", "ObjectMeta.metadata.name", "string")),
        ("pods", {"metadata": {"generateName": 5}}, field("number", "ObjectMeta.metadata.generateName", "string")),
        ("pods", {"metadata": {"name": "p", "labels": 5}}, field("number", "ObjectMeta.metadata.labels", "map[string]string")),
        ("pods", {"metadata": {"name": "p", "labels": {"a": 5}}}, field("number", "ObjectMeta.metadata.labels", "string")),
        ("pods", {"metadata": {"name": "p", "finalizers": "f"}}, field("string", "ObjectMeta.metadata.finalizers", "[]string")),
        (
            "pods",
            {"metadata": {"name": "p", "ownerReferences": [5]}},
            field("number", "ObjectMeta.metadata.ownerReferences", "v1.OwnerReference"),
        ),
        ("secrets", named(stringData=5), field("number", "Secret.stringData", "map[string]string")),
        ("secrets", named(stringData={"a": 5}), field("number", "Secret.stringData", "string")),
        ("secrets", named(data=5, stringData={"a": "b"}), field("number", "Secret.data", "map[string][]uint8")),
        ("configmaps", named(data=["a"]), field("array", "ConfigMap.data", "map[string]string")),
        (
            "persistentvolumeclaims",
            named(spec={"resources": {"requests": 5}}),
            field("number", "VolumeResourceRequirements.spec.resources.requests", "v1.ResourceList"),
        ),
        ("resourcequotas", named(spec={"hard": 5}), field("number", "ResourceQuotaSpec.spec.hard", "v1.ResourceList")),
        ("resourcequotas", named(spec={"hard": {"pods": "x"}}), QUANTITIES),
        (
            "resourcequotas",
            named(spec={"scopes": 5}),
            field("number", "ResourceQuotaSpec.spec.scopes", "[]v1.ResourceQuotaScope"),
        ),
    ],
)
async def test_a_create(api: ApiServer, namespace: str, resource: str, body: JsonObject, why: str):
    answer = await api.call("POST", f"{CORE}/namespaces/{namespace}/{resource}", body)
    answer.refused(400, "BadRequest")
    kind, _, told = answer.json["message"].partition(' in version "v1" cannot be handled as a ')
    assert told == f"{kind}: {why}"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"selector": 5}, field("number", "DeploymentSpec.spec.selector", "v1.LabelSelector")),
        ({"selector": {"matchLabels": 5}}, field("number", "LabelSelector.spec.selector.matchLabels", "map[string]string")),
        (
            {"selector": {"matchExpressions": [5]}},
            field("number", "LabelSelector.spec.selector.matchExpressions", "v1.LabelSelectorRequirement"),
        ),
        ({"template": 5}, field("number", "DeploymentSpec.spec.template", "v1.PodTemplateSpec")),
        ({"template": {"metadata": 5}}, field("number", "PodTemplateSpec.spec.template.metadata", "v1.ObjectMeta")),
        ({"template": {"spec": {"containers": 5}}}, field("number", "PodSpec.spec.template.spec.containers", "[]v1.Container")),
        ({"replicas": "x"}, field("string", "DeploymentSpec.spec.replicas", "int32")),
        ({"replicas": 1.5}, field("number 1.5", "DeploymentSpec.spec.replicas", "int32")),
        ({"replicas": 1 << 40}, field(f"number {1 << 40}", "DeploymentSpec.spec.replicas", "int32")),
    ],
)
async def test_a_workload_by_every_way(api: ApiServer, namespace: str, spec: JsonObject, why: str):
    path = f"{APPS}/namespaces/{namespace}/deployments"
    (await api.call("POST", path, named(spec=spec))).refused(400, "BadRequest")
    live = await api.ok("POST", path, DEPLOYMENT)

    replaced = await api.call("PUT", f"{path}/d", live | {"spec": live["spec"] | spec})
    replaced.refused(400, "BadRequest", f'Deployment in version "v1" cannot be handled as a Deployment: {why}')
    (name, value), *_ = spec.items()
    operation = {"op": "replace", "path": f"/spec/{name}", "value": value}
    for patch, kind in (({"spec": spec}, MERGE), ([operation], JSON_PATCH)):
        patched = await api.call("PATCH", f"{path}/d", patch, kind=kind)
        (cause,) = patched.refused(422, "Invalid")["causes"]
        assert (cause["reason"], cause["field"]) == ("FieldValueInvalid", "patch")
        assert why in patched.json["message"]
    assert (await api.ok("GET", f"{path}/d"))["spec"] == live["spec"]


async def test_null_is_a_field_that_is_not_set(api: ApiServer, namespace: str):
    path = f"{CORE}/namespaces/{namespace}"
    secret = await api.ok("POST", f"{path}/secrets", named(data=None, stringData={"a": "b", "c": None}))
    assert secret["data"] == {"a": "Yg==", "c": ""}
    bare = await api.ok("POST", f"{path}/configmaps", {"metadata": {"name": "c", "labels": None}, "data": None})
    assert ("data" in bare, "labels" in bare["metadata"]) == (False, False)


async def test_a_scale(api: ApiServer, namespace: str):
    path = f"{APPS}/namespaces/{namespace}/deployments"
    await api.ok("POST", path, DEPLOYMENT)
    for body, where, kind in (
        ({"metadata": {"name": "d"}, "spec": 5}, "Scale.spec", "v1.ScaleSpec"),
        ({"metadata": 5}, "Scale.metadata", "v1.ObjectMeta"),
        ({"metadata": {"name": 5}}, "ObjectMeta.metadata.name", "string"),
    ):
        refused = await api.call("PUT", f"{path}/d/scale", body)
        refused.refused(400, "BadRequest", f'Scale in version "v1" cannot be handled as a Scale: {field("number", where, kind)}')


@pytest.mark.parametrize("spec", [5, {"resourceAttributes": 5}, {"resourceAttributes": {"verb": 5}}])
async def test_a_review(api: ApiServer, spec: object):
    (await api.call("POST", REVIEWS, {"spec": spec})).refused(400, "BadRequest")
