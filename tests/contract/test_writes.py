"""Creating, updating, patching and deleting: what is stored, and how each mistake is refused."""

import asyncio

import pytest

from tests.contract.api import CORE, JSON_PATCH, MERGE, ApiServer, JsonObject

LEASES = "/apis/coordination.k8s.io/v1"
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


@pytest.fixture
async def path(api: ApiServer) -> str:
    """The ConfigMaps of a fresh namespace that holds ``a``."""
    namespace = await api.namespace()
    await api.config_map(namespace, "a", x="1")
    return f"{CORE}/namespaces/{namespace}/configmaps"


# --- create ---


async def test_a_new_object_gets_its_identity(api: ApiServer, path: str):
    created = await api.ok("POST", path, {"metadata": {"generateName": "b-", "uid": "mine", "generation": 7}, "data": {"x": "1"}})
    metadata = created["metadata"]

    assert (created["kind"], created["apiVersion"]) == ("ConfigMap", "v1")
    assert metadata["name"].startswith("b-")
    assert len(metadata["name"]) == len("b-") + 5
    assert metadata["uid"] != "mine"
    assert metadata["creationTimestamp"].endswith("Z")
    assert int(metadata["resourceVersion"]) > 0
    assert metadata.get("generation") in {None, 7}  # a ConfigMap has no generation of its own
    assert await api.ok("GET", f"{path}/{metadata['name']}") == created


async def test_a_create_that_is_refused(api: ApiServer, path: str):
    taken = await api.call("POST", path, {"metadata": {"name": "a"}})
    assert taken.refused(409, "AlreadyExists", 'configmaps "a" already exists') == {"name": "a", "kind": "configmaps"}

    nameless = await api.call("POST", path, {"data": {}})
    why = "Required value: name or generateName is required"
    details = nameless.refused(422, "Invalid", f'ConfigMap "" is invalid: metadata.name: {why}')
    cause = {"reason": "FieldValueRequired", "message": why, "field": "metadata.name"}
    assert details == {"kind": "ConfigMap", "causes": [cause]}

    illegal = await api.call("POST", path, {"metadata": {"name": "A_"}})
    illegal.refused(422, "Invalid")
    assert 'metadata.name: Invalid value: "A_": a lowercase RFC 1123 subdomain must consist of' in illegal.json["message"]

    elsewhere = await api.call("POST", path, {"metadata": {"name": "b", "namespace": "other"}})
    mismatch = "the namespace of the provided object does not match the namespace sent on the request"
    elsewhere.refused(400, "BadRequest", mismatch)

    (await api.call("POST", path, {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "b"}})).refused(400, "BadRequest")
    (await api.call("POST", path, b"{oops")).refused(400, "BadRequest")
    (await api.call("POST", path, {"metadata": {"name": "b", "labels": {"n": 1}}})).refused(400, "BadRequest")
    versioned = await api.call("POST", path, {"metadata": {"name": "b", "resourceVersion": "3"}})
    versioned.refused(500, "", "resourceVersion should not be set on objects to be created")


async def test_a_namespace_that_is_missing(api: ApiServer):
    answer = await api.call("POST", f"{CORE}/namespaces/contract-none/configmaps", {"metadata": {"name": "b"}})
    details = answer.refused(404, "NotFound", 'namespaces "contract-none" not found')
    assert details == {"name": "contract-none", "kind": "namespaces"}


async def test_secrets_are_encoded(api: ApiServer, path: str):
    secrets = path.replace("configmaps", "secrets")
    created = await api.ok("POST", secrets, {"metadata": {"name": "s"}, "stringData": {"a": "b"}})

    assert created["data"] == {"a": "Yg=="}
    assert created["type"] == "Opaque"
    assert "stringData" not in created


# --- update ---


async def test_an_update_replaces(api: ApiServer, path: str):
    before = await api.ok("GET", f"{path}/a")
    after = await api.ok("PUT", f"{path}/a", {"metadata": {"name": "a", "labels": {"l": "1"}}, "data": {"y": "2"}})

    assert after["data"] == {"y": "2"}
    assert after["metadata"]["labels"] == {"l": "1"}
    for kept in ("uid", "creationTimestamp", "namespace"):
        assert after["metadata"][kept] == before["metadata"][kept]
    assert int(after["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])


async def test_an_update_that_is_refused(api: ApiServer, path: str):
    live = await api.ok("GET", f"{path}/a")
    stale = await api.call("PUT", f"{path}/a", {"metadata": {"name": "a", "resourceVersion": "1"}})
    stale.refused(409, "Conflict", f'Operation cannot be fulfilled on configmaps "a": {MODIFIED}')
    other = await api.call("PUT", f"{path}/a", {"metadata": {"name": "a", "uid": "1"}})
    other.refused(409, "Conflict")
    assert f"UID in precondition: 1, UID in object meta: {live['metadata']['uid']}" in other.json["message"]
    name = await api.call("PUT", f"{path}/a", {"metadata": {"name": "b"}})
    name.refused(400, "BadRequest", "the name of the object (b) does not match the name on the URL (a)")
    missing = await api.call("PUT", f"{path}/none", {"metadata": {"name": "none"}})
    assert missing.refused(404, "NotFound", 'configmaps "none" not found') == {"name": "none", "kind": "configmaps"}
    assert await api.ok("GET", f"{path}/a") == live


async def test_nothing_changes_nothing(api: ApiServer, path: str):
    live = await api.ok("GET", f"{path}/a")

    assert await api.ok("PUT", f"{path}/a", live) == live
    assert await api.ok("PATCH", f"{path}/a", {"data": {"x": "1"}}, kind=MERGE) == live


async def test_of_two_writers_one_wins(api: ApiServer, path: str):
    leases = f"{LEASES}/namespaces/{path.split('/')[4]}/leases"
    lease = await api.ok("POST", leases, {"metadata": {"name": "l"}, "spec": {"holderIdentity": "nobody"}})
    claims = [lease | {"spec": {"holderIdentity": holder}} for holder in ("one", "two")]
    answers = await asyncio.gather(*(api.call("PUT", f"{leases}/l", claim) for claim in claims))

    assert sorted(answer.status for answer in answers) == [200, 409]
    winner = next(answer for answer in answers if answer.status == 200)
    assert (await api.ok("GET", f"{leases}/l"))["spec"] == winner.json["spec"]
    loser = next(answer for answer in answers if answer.status == 409)
    loser.refused(409, "Conflict", f'Operation cannot be fulfilled on leases.coordination.k8s.io "l": {MODIFIED}')


async def test_a_lease_is_updated_with_a_version_and_created_by_put(api: ApiServer, path: str):
    leases = f"{LEASES}/namespaces/{path.split('/')[4]}/leases"
    created = await api.call("PUT", f"{leases}/new", {"metadata": {"name": "new"}, "spec": {"holderIdentity": "x"}})
    assert created.status == 201
    blind = await api.call("PUT", f"{leases}/new", {"metadata": {"name": "new"}, "spec": {"holderIdentity": "y"}})
    why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
    details = blind.refused(422, "Invalid", f'leases.coordination.k8s.io "new" is invalid: {why}')
    assert (details["kind"], details["group"]) == ("leases", "coordination.k8s.io")


# --- patch ---


async def test_a_merge_patch(api: ApiServer, path: str):
    await api.ok("PATCH", f"{path}/a", {"data": {"y": "2"}, "metadata": {"annotations": {"k": "v"}}}, kind=MERGE)
    after = await api.ok("PATCH", f"{path}/a", {"data": {"x": None}, "metadata": {"annotations": None}}, kind=MERGE)

    assert after["data"] == {"y": "2"}
    assert "annotations" not in after["metadata"]


async def test_a_json_patch(api: ApiServer, path: str):
    operations = [
        {"op": "test", "path": "/data/x", "value": "1"},
        {"op": "replace", "path": "/data/x", "value": "2"},
        {"op": "add", "path": "/data/y", "value": "3"},
        {"op": "add", "path": "/metadata/labels", "value": {"a.b/c": "d"}},
        {"op": "copy", "from": "/data/y", "path": "/data/z"},
        {"op": "move", "from": "/data/y", "path": "/data/w"},
    ]
    after = await api.ok("PATCH", f"{path}/a", operations, kind=JSON_PATCH)
    assert after["data"] == {"x": "2", "z": "3", "w": "3"}

    label = "/metadata/labels/a.b~1c"
    escaped = [{"op": "test", "path": label, "value": "d"}, {"op": "remove", "path": label}]
    assert "labels" not in (await api.ok("PATCH", f"{path}/a", escaped, kind=JSON_PATCH))["metadata"]


async def test_replace_adds_a_missing_key(api: ApiServer, path: str):
    operations = [{"op": "replace", "path": "/data/new", "value": "1"}]
    assert (await api.ok("PATCH", f"{path}/a", operations, kind=JSON_PATCH))["data"] == {"x": "1", "new": "1"}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/x", "value": "other"},
        {"op": "test", "path": "/data/none", "value": "1"},
        {"op": "remove", "path": "/data/none"},
        {"op": "replace", "path": "/none/x", "value": "1"},
        {"op": "add", "path": "/none/x", "value": "1"},
        {"op": "bogus", "path": "/data/x", "value": "1"},
        {"op": "test", "path": "/none/x", "value": None},
        {"op": "test", "path": "/data/x", "value": None},
        {"op": "test", "path": "/data/x"},
        {"op": "test", "path": "/metadata/finalizers/0", "value": None},
        {"op": "test", "path": "", "value": None},
        {"op": "remove", "path": ""},
    ],
    ids=lambda operation: f"{operation['op']}-{operation['path']}-{operation.get('value', 'none')}",
)
async def test_a_json_patch_that_does_not_apply(api: ApiServer, path: str, operation: JsonObject):
    first = {"op": "replace", "path": "/data/x", "value": "half"}
    answer = await api.call("PATCH", f"{path}/a", [*([first] if operation["op"] != "test" else []), operation], kind=JSON_PATCH)

    assert answer.refused(422, "Invalid", "the server rejected our request due to an error in our request") == {}
    assert (await api.ok("GET", f"{path}/a"))["data"] == {"x": "1"}


@pytest.mark.parametrize("value", [{"value": None}, {}], ids=["null", "missing"])
async def test_testing_for_absence(api: ApiServer, path: str, value: JsonObject):
    operations = [
        {"op": "test", "path": "/data/none", **value},
        {"op": "add", "path": "/data/none", "value": "1"},
    ]
    assert (await api.ok("PATCH", f"{path}/a", operations, kind=JSON_PATCH))["data"]["none"] == "1"


async def test_a_patch_that_is_refused(api: ApiServer, path: str):
    async def patch(body: object, kind: str = MERGE, name: str = "a"):
        return await api.call("PATCH", f"{path}/{name}", body, kind=kind)

    (await patch({"op": "add"}, JSON_PATCH)).refused(400, "BadRequest")
    (await patch(b"{oops", JSON_PATCH)).refused(400, "BadRequest")
    (await patch(b"{oops")).refused(400, "BadRequest", "invalid JSON patch")
    (await patch([1])).refused(400, "BadRequest")
    (await patch(b"x", "application/x-foo")).refused(415, "UnsupportedMediaType")
    (await patch({"data": {}}, name="none")).refused(404, "NotFound", 'configmaps "none" not found')
    stale = await patch({"metadata": {"resourceVersion": "3"}})
    stale.refused(409, "Conflict", f'Operation cannot be fulfilled on configmaps "a": {MODIFIED}')
    renamed = await patch({"metadata": {"name": "b"}})
    renamed.refused(400, "BadRequest", "the name of the object (b) does not match the name on the URL (a)")
    other = await patch({"metadata": {"uid": "3"}})
    other.refused(422, "Invalid", 'ConfigMap "a" is invalid: metadata.uid: Invalid value: "3": field is immutable')


async def test_a_patch_with_the_right_version_passes(api: ApiServer, path: str):
    live = (await api.ok("GET", f"{path}/a"))["metadata"]
    guard = {"uid": live["uid"], "resourceVersion": live["resourceVersion"]}
    assert (await api.ok("PATCH", f"{path}/a", {"metadata": guard, "data": {"x": "2"}}, kind=MERGE))["data"] == {"x": "2"}


# --- dry run ---


async def test_a_dry_run_stores_nothing(api: ApiServer, path: str):
    created = await api.ok("POST", path, {"metadata": {"name": "dry"}, "data": {"x": "1"}}, dryRun="All")
    assert created["metadata"]["uid"]
    assert "resourceVersion" not in created["metadata"]
    (await api.call("GET", f"{path}/dry")).refused(404, "NotFound")

    live = await api.ok("GET", f"{path}/a")
    patched = await api.ok("PATCH", f"{path}/a", {"data": {"x": "9"}}, kind=MERGE, dryRun="All")
    assert patched["data"] == {"x": "9"}
    assert patched["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]
    replaced = await api.ok("PUT", f"{path}/a", live | {"data": {"x": "8"}}, dryRun="All")
    assert replaced["data"] == {"x": "8"}
    assert (await api.ok("DELETE", f"{path}/a", dryRun="All"))["status"] == "Success"
    assert await api.ok("GET", f"{path}/a") == live


async def test_a_dry_run_is_all_or_refused(api: ApiServer, path: str):
    why = 'dryRun: Unsupported value: ["x"]: supported values: "All"'
    create = await api.call("POST", path, {"metadata": {"name": "q"}}, dryRun="x")
    create.refused(422, "Invalid", f'CreateOptions.meta.k8s.io "" is invalid: {why}')
    delete = await api.call("DELETE", f"{path}/a", dryRun="x")
    delete.refused(422, "Invalid", f'DeleteOptions.meta.k8s.io "" is invalid: {why}')


async def test_a_dry_run_meets_the_same_refusals(api: ApiServer, path: str):
    (await api.call("POST", path, {"metadata": {"name": "a"}}, dryRun="All")).refused(409, "AlreadyExists")
    failed = [{"op": "test", "path": "/data/x", "value": "other"}]
    (await api.call("PATCH", f"{path}/a", failed, kind=JSON_PATCH, dryRun="All")).refused(422, "Invalid")


# --- delete ---


async def test_a_delete_answers_with_a_status(api: ApiServer, path: str):
    uid = (await api.ok("GET", f"{path}/a"))["metadata"]["uid"]
    answer = await api.call("DELETE", f"{path}/a")

    assert answer.status == 200
    assert answer.json == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": "a", "kind": "configmaps", "uid": uid},
    }
    (await api.call("DELETE", f"{path}/a")).refused(404, "NotFound", 'configmaps "a" not found')


@pytest.mark.parametrize(("resource", "spec"), [("services", {"ports": [{"port": 80}]}), ("serviceaccounts", None)])
async def test_some_deletes_answer_with_the_object(api: ApiServer, path: str, resource: str, spec: JsonObject | None):
    collection = path.replace("configmaps", resource)
    await api.ok("POST", collection, {"metadata": {"name": "mine"}} | ({"spec": spec} if spec else {}))
    deleted = await api.ok("DELETE", f"{collection}/mine")

    assert deleted["metadata"]["name"] == "mine"
    (await api.call("GET", f"{collection}/mine")).refused(404, "NotFound")


async def test_preconditions_of_a_delete(api: ApiServer, path: str):
    live = (await api.ok("GET", f"{path}/a"))["metadata"]
    uid = await api.call("DELETE", f"{path}/a", {"preconditions": {"uid": "1"}})
    why = f"the UID in the precondition (1) does not match the UID in record ({live['uid']})"
    message = f'Operation cannot be fulfilled on ConfigMap "a": {why}. The object might have been deleted and then recreated'
    assert uid.refused(409, "Conflict", message) == {"name": "a", "kind": "ConfigMap"}
    version = await api.call("DELETE", f"{path}/a", {"preconditions": {"resourceVersion": "1"}})
    version.refused(409, "Conflict")
    met = {"preconditions": {"uid": live["uid"], "resourceVersion": live["resourceVersion"]}}
    assert (await api.ok("DELETE", f"{path}/a", met))["status"] == "Success"


@pytest.mark.parametrize("body", [{}, {"kind": "DeleteOptions", "apiVersion": "v1"}, {"propagationPolicy": "Background"}])
@pytest.mark.parametrize("dry_run", ["All", "x"])
async def test_the_body_of_a_delete_hides_its_query(api: ApiServer, path: str, body: JsonObject, dry_run: str):
    assert (await api.ok("DELETE", f"{path}/a", body, dryRun=dry_run))["status"] == "Success"
    (await api.call("GET", f"{path}/a")).refused(404, "NotFound")


async def test_a_dry_run_of_a_delete_asked_for_in_its_body(api: ApiServer, path: str):
    await api.ok("DELETE", f"{path}/a", {"dryRun": ["All"]})
    await api.ok("GET", f"{path}/a")
    await api.ok("DELETE", path, {"dryRun": ["All"]})
    await api.ok("GET", f"{path}/a")
    await api.ok("DELETE", path, {}, dryRun="All")  # of a collection too
    (await api.call("GET", f"{path}/a")).refused(404, "NotFound")


@pytest.mark.parametrize("body", [[1], {"dryRun": "All"}, {"dryRun": 5}, {"preconditions": 5}])
async def test_delete_options_that_are_none(api: ApiServer, path: str, body: object):
    (await api.call("DELETE", f"{path}/a", body)).refused(400, "BadRequest")
    await api.ok("GET", f"{path}/a")


async def test_finalizers_hold_an_object(api: ApiServer, path: str):
    held = await api.ok("PATCH", f"{path}/a", {"metadata": {"finalizers": ["test.ipe.dev/hold"]}}, kind=MERGE)
    version = held["metadata"]["resourceVersion"]
    marked = await api.ok("DELETE", f"{path}/a")
    assert marked["metadata"]["deletionTimestamp"]
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 0
    assert (await api.ok("DELETE", f"{path}/a"))["metadata"]["resourceVersion"] == marked["metadata"]["resourceVersion"]

    async with api.watch(path, resourceVersion=version, fieldSelector="metadata.name=a") as watch:
        assert await watch.next() == ("MODIFIED", marked)
        await api.ok("PATCH", f"{path}/a", {"metadata": {"finalizers": None}}, kind=MERGE)
        kind, last = await watch.next()
    assert kind == "DELETED"
    assert last["metadata"]["deletionTimestamp"] == marked["metadata"]["deletionTimestamp"]
    (await api.call("GET", f"{path}/a")).refused(404, "NotFound")


async def test_namespaces_that_stay(api: ApiServer):
    for name in ("default", "kube-system"):
        answer = await api.call("DELETE", f"{CORE}/namespaces/{name}")
        answer.refused(403, "Forbidden", f'namespaces "{name}" is forbidden: this namespace may not be deleted')
