"""Who may: authentication, authorization, and reviews of oneself."""

from tests.contract.api import APPS, CORE, ApiServer
from tests.helpers import eventually

SSAR = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = [
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": ["get", "patch"]},
]


async def _user(api: ApiServer) -> tuple[str, str, str]:
    """(namespace, user name, token) of somebody who has ``RULES`` there, once the server knows."""
    namespace = await api.namespace()
    token = await api.make_user(namespace, "reader", RULES)

    async def effective() -> bool:
        answer = await api.call("GET", f"{CORE}/namespaces/{namespace}/configmaps", token=token)
        return answer.status == 200

    await eventually(effective)
    return namespace, f"system:serviceaccount:{namespace}:reader", token


async def test_an_unknown_token_is_unauthorized(api: ApiServer):
    for path in (f"{CORE}/pods", "/apis"):
        answer = await api.call("GET", path, token="wrong")
        answer.refused(401, "Unauthorized", "Unauthorized")
        assert "details" not in answer.json


async def test_what_is_not_granted_is_forbidden(api: ApiServer):
    namespace, user, token = await _user(api)
    home, apps = f"{CORE}/namespaces/{namespace}", f"{APPS}/namespaces/{namespace}"
    here, everywhere = f'in the namespace "{namespace}"', "at the cluster scope"
    status = 'get resource "deployments/status" in API group "apps"'
    cases = [
        ("GET", f"{home}/pods", "pods", 'list resource "pods" in API group ""', here),
        ("GET", f"{home}/secrets/s", 'secrets "s"', 'get resource "secrets" in API group ""', here),
        ("GET", f"{CORE}/configmaps", "configmaps", 'list resource "configmaps" in API group ""', everywhere),
        ("GET", f"{CORE}/nodes", "nodes", 'list resource "nodes" in API group ""', everywhere),
        ("DELETE", f"{apps}/deployments/d", 'deployments.apps "d"', 'delete resource "deployments" in API group "apps"', here),
        ("GET", f"{apps}/deployments/d/status", 'deployments.apps "d"', status, here),
    ]
    for method, path, what, doing, where in cases:
        message = f'{what} is forbidden: User "{user}" cannot {doing} {where}'
        (await api.call(method, path, token=token)).refused(403, "Forbidden", message)
    watch = await api.call("GET", f"{home}/pods", token=token, watch="1")
    watch.refused(403, "Forbidden")
    assert "cannot watch resource" in watch.json["message"]
    named = await api.call("GET", f"{home}/secrets/s", token=token)
    assert named.refused(403, "Forbidden") == {"name": "s", "kind": "secrets"}


async def test_what_is_granted_passes(api: ApiServer):
    namespace, _, token = await _user(api)
    await api.config_map(namespace, "a", x="1")
    assert (await api.ok("GET", f"{CORE}/namespaces/{namespace}/configmaps/a", token=token))["data"] == {"x": "1"}
    missing = await api.call("GET", f"{APPS}/namespaces/{namespace}/deployments/d/scale", token=token)
    missing.refused(404, "NotFound")
    for path in ("/version", "/apis"):
        assert (await api.call("GET", path, token=token)).status == 200


async def test_asking_what_one_may(api: ApiServer):
    namespace, _, token = await _user(api)

    async def may(**attributes: str) -> bool:
        answer = await api.call("POST", SSAR, {"spec": {"resourceAttributes": attributes}}, token=token)
        assert answer.status == 201
        assert answer.json["spec"]["resourceAttributes"] == attributes
        return bool(answer.json["status"]["allowed"])

    assert await may(verb="list", resource="configmaps", namespace=namespace)
    assert not await may(verb="list", resource="configmaps")
    assert not await may(verb="delete", resource="configmaps", namespace=namespace)
    assert await may(verb="patch", group="apps", resource="deployments", subresource="scale", namespace=namespace)
    assert not await may(verb="patch", group="apps", resource="deployments", subresource="status", namespace=namespace)
    assert not await may(verb="patch", resource="deployments", namespace=namespace)


async def test_a_review_of_nothing_is_invalid(api: ApiServer):
    answer = await api.call("POST", SSAR, {"spec": {}})
    details = answer.refused(422, "Invalid")
    assert details["causes"][0]["field"] == "spec"
    assert "exactly one of nonResourceAttributes or resourceAttributes must be specified" in answer.json["message"]


async def test_asking_who_one_is(api: ApiServer):
    _, user, token = await _user(api)
    answer = await api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, token=token)
    assert answer.status == 201
    assert answer.json["status"]["userInfo"]["username"] == user
