"""managedFields, generation, status and scale: who wrote what, and what each path may write."""

import pytest

from tests.contract.api import APPS, CORE, JSON_PATCH, MERGE, ApiServer, JsonObject, fields_of

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
TEMPLATE = {
    "metadata": {"labels": {"app": "d"}},
    "spec": {
        "containers": [
            {
                "name": "x",
                "image": "i",
                "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "E", "value": "1"}],
                "resources": {"requests": {"cpu": "1m"}},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
    },
}
"""A pod template that leaves the server nothing to default."""
SPEC = {
    "replicas": 2,
    "paused": True,
    "selector": {"matchLabels": {"app": "d"}},
    "template": TEMPLATE,
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
    "revisionHistoryLimit": 10,
    "progressDeadlineSeconds": 600,
}


@pytest.fixture
async def path(api: ApiServer) -> str:
    """A paused Deployment in a fresh namespace."""
    collection = f"{APPS}/namespaces/{await api.namespace()}/deployments"
    await api.ok("POST", collection, {"metadata": {"name": "d", "labels": {"app": "d"}}, "spec": SPEC}, fieldManager="creator")
    return f"{collection}/d"


async def _config_map(api: ApiServer) -> str:
    namespace = await api.namespace()
    await api.config_map(namespace, "a", {"l": "1"}, x="1", y="1")
    return f"{CORE}/namespaces/{namespace}/configmaps/a"


# --- managedFields ---


async def test_the_manager_is_named_by_the_client(api: ApiServer):
    config_map = await api.ok("GET", await _config_map(api))
    entry = config_map["metadata"]["managedFields"][0]

    assert entry["manager"] == "contract"  # the User-Agent's first segment
    assert (entry["operation"], entry["apiVersion"], entry["fieldsType"]) == ("Update", "v1", "FieldsV1")
    assert entry["time"].endswith("Z")
    assert entry["fieldsV1"] == {
        "f:data": {".": {}, "f:x": {}, "f:y": {}},
        "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
    }


async def test_who_changes_a_field_owns_it(api: ApiServer):
    path = await _config_map(api)
    patch = {"data": {"x": "2", "z": "1"}, "metadata": {"labels": {"m": "1"}}}
    after = await api.ok("PATCH", path, patch, kind=MERGE, fieldManager="second")

    assert fields_of(after, "second") == {"f:data": {"f:x": {}, "f:z": {}}, "f:metadata": {"f:labels": {"f:m": {}}}}
    assert fields_of(after, "contract") == {
        "f:data": {".": {}, "f:y": {}},
        "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
    }


async def test_a_field_that_goes_is_nobodys(api: ApiServer):
    path = await _config_map(api)
    await api.ok("PATCH", path, {"data": {"z": "1"}}, kind=MERGE, fieldManager="second")
    after = await api.ok("PATCH", path, {"data": {"z": None, "y": None}}, kind=MERGE, fieldManager="third")

    assert fields_of(after, "second") is None
    assert fields_of(after, "third") is None
    assert fields_of(after, "contract") == {
        "f:data": {".": {}, "f:x": {}},
        "f:metadata": {"f:labels": {".": {}, "f:l": {}}},
    }


async def test_fields_of_a_created_deployment(api: ApiServer, path: str):
    container: JsonObject = {
        ".": {},
        "f:env": {".": {}, 'k:{"name":"E"}': {".": {}, "f:name": {}, "f:value": {}}},
        "f:image": {},
        "f:imagePullPolicy": {},
        "f:name": {},
        "f:ports": {".": {}, 'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}, "f:protocol": {}}},
        "f:resources": {".": {}, "f:requests": {".": {}, "f:cpu": {}}},
        "f:terminationMessagePath": {},
        "f:terminationMessagePolicy": {},
    }
    assert fields_of(await api.ok("GET", path), "creator") == {
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:paused": {},
            "f:progressDeadlineSeconds": {},
            "f:replicas": {},
            "f:revisionHistoryLimit": {},
            "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:containers": {'k:{"name":"x"}': container},
                    "f:dnsPolicy": {},
                    "f:restartPolicy": {},
                    "f:schedulerName": {},
                    "f:securityContext": {},
                    "f:terminationGracePeriodSeconds": {},
                },
            },
        },
    }


async def test_a_keyed_list_is_owned_item_by_item(api: ApiServer, path: str):
    operations = [
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "j"},
        {"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": {"name": "F", "value": "2"}},
    ]
    after = await api.ok("PATCH", path, operations, kind=JSON_PATCH, fieldManager="second")

    added: JsonObject = {'k:{"name":"F"}': {".": {}, "f:name": {}, "f:value": {}}}
    containers = {'k:{"name":"x"}': {"f:env": added, "f:image": {}}}
    assert fields_of(after, "second") == {"f:spec": {"f:template": {"f:spec": {"f:containers": containers}}}}
    creator = fields_of(after, "creator")
    assert creator is not None
    assert "f:image" not in creator["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"x"}']


# --- generation ---


async def test_generation_counts_what_is_wanted(api: ApiServer, path: str):
    async def generation(patch: JsonObject, target: str = path) -> int:
        await api.ok("PATCH", target, patch, kind=MERGE)
        return int((await api.ok("GET", path))["metadata"]["generation"])

    assert (await api.ok("GET", path))["metadata"]["generation"] == 1
    assert await generation({"metadata": {"labels": {"more": "1"}}}) == 1
    assert await generation({"spec": {"replicas": 3}}) == 2
    assert await generation({"spec": {"replicas": 3}}) == 2
    assert await generation({"status": {"replicas": 3}}, f"{path}/status") == 2
    assert await generation({"metadata": {"annotations": {"a": "1"}}}) == 3  # of Deployments alone
    assert await generation({"spec": {"replicas": 4}}, f"{path}/scale") == 4


async def test_marking_as_deleted_counts_too(api: ApiServer, path: str):
    await api.ok("PATCH", path, {"metadata": {"finalizers": ["test.ipe.dev/hold"]}}, kind=MERGE)
    marked = await api.ok("DELETE", path)
    assert marked["metadata"]["generation"] == 2
    await api.ok("PATCH", path, {"metadata": {"finalizers": None}}, kind=MERGE)


# --- status ---


async def test_status_and_the_rest_are_written_apart(api: ApiServer, path: str):
    both = {"spec": {"replicas": 9}, "status": {"replicas": 3}, "metadata": {"labels": {"new": "1"}, "annotations": {"a": "1"}}}
    by_status = await api.ok("PATCH", f"{path}/status", both, kind=MERGE, fieldManager="status")

    assert by_status["status"]["replicas"] == 3
    assert by_status["spec"]["replicas"] == 2
    assert "new" not in by_status["metadata"]["labels"]
    assert by_status["metadata"]["annotations"]["a"] == "1"
    assert fields_of(by_status, "status", "status") == {
        "f:metadata": {"f:annotations": {".": {}, "f:a": {}}},
        "f:status": {"f:replicas": {}},
    }

    by_main = await api.ok("PATCH", path, {"spec": {"replicas": 5}, "status": {"replicas": 77}}, kind=MERGE)
    assert by_main["spec"]["replicas"] == 5
    assert by_main["status"].get("replicas") != 77  # 3, or what a controller has written since


async def test_status_is_dropped_on_create(api: ApiServer, path: str):
    collection = path.rpartition("/")[0]
    created = await api.ok("POST", collection, {"metadata": {"name": "e"}, "spec": SPEC, "status": {"replicas": 7}})
    assert created["status"] == {}


async def test_status_can_be_read(api: ApiServer, path: str):
    assert (await api.ok("GET", f"{path}/status"))["metadata"]["name"] == "d"


async def test_conflicts_on_status(api: ApiServer, path: str):
    live = await api.ok("GET", path)
    await api.ok("PATCH", path, {"metadata": {"labels": {"moved": "on"}}}, kind=MERGE)
    answer = await api.call("PUT", f"{path}/status", live | {"status": {"replicas": 1}})
    answer.refused(409, "Conflict", f'Operation cannot be fulfilled on deployments.apps "d": {MODIFIED}')


# --- scale ---


async def test_scale(api: ApiServer, path: str):
    live = (await api.ok("GET", path))["metadata"]
    scale = await api.ok("GET", f"{path}/scale")
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 0, "selector": "app=d"})
    assert set(scale["metadata"]) == {"name", "namespace", "uid", "resourceVersion", "creationTimestamp"}
    assert (scale["metadata"]["uid"], scale["metadata"]["name"]) == (live["uid"], "d")

    patched = await api.ok("PATCH", f"{path}/scale", {"spec": {"replicas": 3}}, kind=MERGE, fieldManager="scaler")
    assert patched["spec"] == {"replicas": 3}
    del patched["metadata"]["resourceVersion"]  # a controller may have written the status meanwhile
    put = await api.ok("PUT", f"{path}/scale", patched | {"spec": {"replicas": 4}}, fieldManager="scaler")
    assert put["spec"] == {"replicas": 4}
    guarded = [{"op": "test", "path": "/spec/replicas", "value": 4}, {"op": "replace", "path": "/spec/replicas", "value": 5}]
    patched = await api.ok("PATCH", f"{path}/scale", guarded, kind=JSON_PATCH, fieldManager="scaler")
    assert patched["spec"] == {"replicas": 5}

    deployment = await api.ok("GET", path)
    assert deployment["spec"]["replicas"] == 5
    assert fields_of(deployment, "scaler", "scale") == {"f:spec": {"f:replicas": {}}}
    creator = fields_of(deployment, "creator")
    assert creator is not None
    assert "f:replicas" not in creator["f:spec"]


async def test_zero_replicas_belong_to_nobody(api: ApiServer, path: str):
    async def owners() -> list[str]:
        entries = (await api.ok("GET", path))["metadata"]["managedFields"]
        return [entry["manager"] for entry in entries if "f:replicas" in entry["fieldsV1"].get("f:spec", {})]

    async def scale(replicas: int, manager: str) -> list[str]:
        await api.ok("PATCH", f"{path}/scale", {"spec": {"replicas": replicas}}, kind=MERGE, fieldManager=manager)
        return await owners()

    assert await owners() == ["creator"]
    assert await scale(3, "one") == ["one"]
    assert await scale(4, "two") == ["two"]
    assert await scale(0, "sleeper") == []
    assert (await api.ok("GET", f"{path}/scale"))["spec"] == {}
    assert await scale(2, "waker") == []
    await api.ok("PATCH", path, {"spec": {"replicas": 5}}, kind=MERGE, fieldManager="main")
    assert await owners() == ["main"]
    assert await scale(6, "one") == ["one"]


async def test_a_scale_that_is_refused(api: ApiServer, path: str):
    metadata = {"name": "d", "namespace": path.split("/")[5]}
    negative = await api.call("PUT", f"{path}/scale", {"metadata": metadata, "spec": {"replicas": -1}})
    why = "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    details = negative.refused(422, "Invalid", f'Scale.autoscaling "d" is invalid: {why}')
    assert (details["group"], details["kind"]) == ("autoscaling", "Scale")
    stale = await api.call("PUT", f"{path}/scale", {"metadata": metadata | {"resourceVersion": "1"}, "spec": {"replicas": 1}})
    stale.refused(409, "Conflict", f'Operation cannot be fulfilled on deployments.apps "d": {MODIFIED}')
    text = await api.call("PUT", f"{path}/scale", {"metadata": metadata, "spec": {"replicas": "x"}})
    text.refused(400, "BadRequest")
    guarded = [{"op": "test", "path": "/spec/replicas", "value": 9}]
    (await api.call("PATCH", f"{path}/scale", guarded, kind=JSON_PATCH)).refused(422, "Invalid")
    missing = await api.call("GET", path.replace("deployments/d", "deployments/none/scale"))
    missing.refused(404, "NotFound", 'deployments.apps "none" not found')
    unscalable = await api.call("GET", path.replace("deployments/d", "daemonsets/d/scale"))
    unscalable.refused(404, "NotFound", "the server could not find the requested resource")


async def test_a_dry_run_of_scale(api: ApiServer, path: str):
    assert (await api.ok("PATCH", f"{path}/scale", {"spec": {"replicas": 7}}, kind=MERGE, dryRun="All"))["spec"] == {
        "replicas": 7
    }
    assert (await api.ok("GET", path))["spec"]["replicas"] == 2


# --- immutable fields ---


async def test_a_selector_is_immutable(api: ApiServer, path: str):
    labels = {"app": "other"}
    patch = {"spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}}
    answer = await api.call("PATCH", path, patch, kind=MERGE)
    details = answer.refused(422, "Invalid")
    assert 'Deployment.apps "d" is invalid: spec.selector: Invalid value:' in answer.json["message"]
    assert answer.json["message"].endswith("field is immutable")
    assert details["causes"][0]["field"] == "spec.selector"


async def test_a_pods_spec_is_nearly_immutable(api: ApiServer):
    namespace = await api.namespace()
    if not api.simulated:
        await api.call("POST", f"{CORE}/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})
    pods = f"{CORE}/namespaces/{namespace}/pods"
    # no scheduler takes it, so nothing but this test writes its status
    spec = {"schedulerName": "nobody", "containers": [{"name": "x", "image": "i"}]}
    pod = {"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Running"}}
    created = await api.ok("POST", pods, pod)
    assert created["status"]["phase"] == "Pending"
    assert created["metadata"]["generation"] == 1

    answer = await api.call("PATCH", f"{pods}/p", {"spec": {"hostname": "q"}}, kind=MERGE)
    details = answer.refused(422, "Invalid")
    assert 'Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than' in answer.json["message"]
    assert details["causes"][0]["field"] == "spec"
    image = [{"op": "replace", "path": "/spec/containers/0/image", "value": "j"}]
    assert (await api.ok("PATCH", f"{pods}/p", image, kind=JSON_PATCH))["spec"]["containers"][0]["image"] == "j"
    await api.ok("PATCH", f"{pods}/p/status", {"status": {"phase": "Failed"}}, kind=MERGE)
    failed = await api.ok("GET", pods, fieldSelector="status.phase=Failed")
    assert [item["metadata"]["name"] for item in failed["items"]] == ["p"]
