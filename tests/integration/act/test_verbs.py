"""Each verb, on the simulated and on the real API server: what is written, by whom, and what is answered."""

import pytest

from ipe_events.events.outcome import Status
from tests.integration.act.support import JsonObject, Place, acting, managers

BATCH = "/apis/batch/v1"
CORE = "/api/v1"


def cron_job(place: Place) -> JsonObject:
    pod = {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}
    spec = {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": pod}}}
    body = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "nightly", "namespace": place.namespace},
        "spec": spec,
    }
    return place.call("POST", f"{BATCH}/namespaces/{place.namespace}/cronjobs", body)


def patch(*operations: tuple[str, str, object]) -> JsonObject:
    return {"verb": "patch", "operations": [{"op": op, "path": path, "value": value} for op, path, value in operations]}


async def test_patch(place, streams):
    before = place.deployment()
    async with acting(place, streams) as rig:
        outcome = await rig.do(
            patch(("replace", "/spec/replicas", 5)),
            precondition={"uid": before["metadata"]["uid"], "values": {"/spec/replicas": 3}},
        )
        assert outcome.status is Status.APPLIED, outcome
        now = place.get()
        assert now["spec"]["replicas"] == 5
        assert outcome.uid == now["metadata"]["uid"]
        assert (
            int(before["metadata"]["resourceVersion"]) < int(outcome.resource_version) <= int(now["metadata"]["resourceVersion"])
        )
        assert now["metadata"]["annotations"]["ipe.dev/command"] == outcome.command
        assert "ipe-guard" in managers(now)
        assert rig.written[0][:2] == (outcome.uid, outcome.resource_version)


async def test_the_mark_joins_annotations_that_are_there(place, streams):
    place.deployment(annotations={"a": "1"})
    async with acting(place, streams) as rig:
        outcome = await rig.do(patch(("replace", "/spec/replicas", 5)))
        annotations = place.get()["metadata"]["annotations"]
        assert (annotations["a"], annotations["ipe.dev/command"]) == ("1", outcome.command)


@pytest.mark.parametrize("replicas", [0, 7])
async def test_scale(place, streams, replicas):
    before = place.deployment()
    async with acting(place, streams) as rig:
        outcome = await rig.do({"verb": "scale", "replicas": replicas}, precondition={"values": {"/spec/replicas": 3}})
        assert outcome.status is Status.APPLIED, outcome
        now = place.get()
        assert now["spec"]["replicas"] == replicas
        assert outcome.uid == now["metadata"]["uid"]
        assert (
            int(before["metadata"]["resourceVersion"]) < int(outcome.resource_version) <= int(now["metadata"]["resourceVersion"])
        )
        back = await rig.do({"verb": "scale", "replicas": 3}, precondition={"values": {"/spec/replicas": replicas}})
        assert (back.status, place.get()["spec"]["replicas"]) == (Status.APPLIED, 3), back


async def test_suspend_and_resume(place, streams):
    cron_job(place)
    target = {"group": "batch", "resource": "cronjobs", "name": "nightly"}
    async with acting(place, streams) as rig:
        for suspended in (True, False):
            outcome = await rig.do({"verb": "suspend", "suspended": suspended}, target=target)
            assert outcome.status is Status.APPLIED, outcome
            assert place.get("nightly", "cronjobs", BATCH)["spec"]["suspend"] is suspended


async def test_annotate(place, streams):
    place.deployment()
    async with acting(place, streams) as rig:
        first = await rig.do({"verb": "annotate", "annotations": {"x/y": "1", "gone": None}})
        assert (first.status, place.get()["metadata"]["annotations"]["x/y"]) == (Status.APPLIED, "1"), first
        second = await rig.do({"verb": "annotate", "annotations": {"x/y": None, "z": "2"}})
        annotations = place.get()["metadata"]["annotations"]
        assert (second.status, annotations.get("z"), "x/y" in annotations) == (Status.APPLIED, "2", False), second


async def test_create_and_delete(place, streams):
    target = {"group": "", "resource": "configmaps", "name": "made"}
    async with acting(place, streams) as rig:
        created = await rig.do({"verb": "create", "manifest": {"data": {"k": "v"}}}, target=target)
        assert created.status is Status.APPLIED, created
        made = place.get("made", "configmaps", CORE)
        assert (made["data"], made["metadata"]["uid"]) == ({"k": "v"}, created.uid)

        again = await rig.do({"verb": "create", "manifest": {"data": {"k": "w"}}}, target=target)
        assert (again.status, again.reason) == (Status.FAILED, "AlreadyExists")

        deleted = await rig.do({"verb": "delete"}, target=target, precondition={"uid": created.uid, "values": {"/data/k": "v"}})
        assert (deleted.status, deleted.uid) == (Status.APPLIED, created.uid), deleted
        with pytest.raises(Exception, match="not found"):
            place.get("made", "configmaps", CORE)


async def test_apply_sets_the_full_set_of_a_handler(real_place, streams):
    """Server-side apply: what the handler no longer names goes away, what others own stays, a conflict is told."""
    place = real_place
    place.call(
        "POST",
        f"{CORE}/namespaces/{place.namespace}/configmaps",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"theirs": "1"}},
    )
    target = {"group": "", "resource": "configmaps", "name": "shared"}
    async with acting(place, streams) as rig:
        first = await rig.do({"verb": "apply", "manifest": {"data": {"a": "1", "b": "1"}}}, target=target)
        assert first.status is Status.APPLIED, first
        second = await rig.do({"verb": "apply", "manifest": {"data": {"a": "2"}}}, target=target)
        assert second.status is Status.APPLIED, second
        assert place.get("shared", "configmaps", CORE)["data"] == {"theirs": "1", "a": "2"}

        conflict = await rig.do({"verb": "apply", "manifest": {"data": {"theirs": "2"}}}, target=target)
        assert (conflict.status, conflict.reason) == (Status.FAILED, "Conflict")
        assert "conflict" in conflict.message
        forced = await rig.do({"verb": "apply", "manifest": {"data": {"theirs": "2"}}, "force": True}, target=target)
        assert (forced.status, place.get("shared", "configmaps", CORE)["data"]) == (Status.APPLIED, {"theirs": "2"})


async def test_apply_is_refused_where_the_cluster_cannot_do_it(fake_place, streams):
    fake_place.deployment()
    async with acting(fake_place, streams) as rig:
        outcome = await rig.do({"verb": "apply", "manifest": {"spec": {"replicas": 1}}})
        assert outcome.status is Status.FAILED
        assert "server-side apply" in outcome.message


async def test_a_misspelt_field_is_refused_and_not_dropped(real_place, streams):
    real_place.deployment()
    async with acting(real_place, streams) as rig:
        outcome = await rig.do(patch(("add", "/spec/replics", 5)))
        assert outcome.status is Status.FAILED
        assert "replics" in outcome.message


@pytest.mark.parametrize(
    "action",
    [
        {"verb": "scale", "replicas": 0},
        patch(("replace", "/spec/replicas", 0)),
        {"verb": "delete"},
        {"verb": "annotate", "annotations": {"a": "1"}},
    ],
    ids=lambda action: action["verb"],
)
async def test_a_dry_run_writes_nothing(place, streams, action):
    place.deployment()
    async with acting(place, streams) as rig:
        outcome = await rig.do(action, dry_run=True)
        assert (outcome.status, outcome.message) == (Status.DRY_RUN, "")
        if action["verb"] in ("scale", "patch"):
            assert outcome.result is not None
            assert outcome.result["spec"].get("replicas", 0) == 0
        now = place.get()
        assert (now["spec"]["replicas"], "ipe-guard" in managers(now)) == (3, False)
        assert not rig.written
