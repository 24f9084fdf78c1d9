"""What stands between a command and the cluster: refusals, preconditions in the request, limits, freezes, hostile input."""

import orjson
import pytest

from ipe_events.agent.carrier import FREEZE_BUCKET
from ipe_events.agent.grants import GrantSet, Limits, Mode
from ipe_events.agent.guardrails import Rules
from ipe_events.agent.job import Postponed
from ipe_events.clock import SYSTEM
from ipe_events.events.freeze import FREEZE_KEY, Freeze, FreezeState
from ipe_events.events.outcome import Status
from ipe_events.kube.session import ClusterSource, KubeSession
from tests.controlplane.cluster import write_kubeconfig
from tests.integration.act.support import ENFORCE, JsonObject, a_job, acting, make_carrier, managers

SCALE = {"verb": "scale", "replicas": 5}


def rules(**changes) -> Rules:
    return Rules(grants=GrantSet((ENFORCE.model_copy(update=changes),)))


async def test_observe_refuses_and_tells_what_would_have_been(place, streams):
    place.deployment()
    async with acting(place, streams, rules=rules(mode=Mode.OBSERVE)) as rig:
        outcome = await rig.do(SCALE)
        assert (outcome.status, outcome.guardrail) == (Status.REFUSED, "mode")
        assert outcome.message == "agent.yaml:3 lets 'guard' observe only; dry run: it would succeed"
        assert outcome.result is not None
        assert outcome.result["spec"]["replicas"] == 5
        assert "ipe-guard" not in managers(place.get())


async def test_nothing_is_granted_by_default(place, streams):
    place.deployment()
    async with acting(place, streams, rules=Rules(grants=GrantSet())) as rig:
        outcome = await rig.do(SCALE)
        assert (outcome.status, outcome.guardrail, outcome.result) == (Status.REFUSED, "grant", None)
        assert place.get()["spec"]["replicas"] == 3


async def test_a_stale_view_is_refused_by_name_of_what_changed(place, streams):
    place.deployment()
    async with acting(place, streams) as rig:
        outcome = await rig.do(SCALE, precondition={"values": {"/spec/replicas": 4}})
        assert (outcome.status, outcome.guardrail) == (Status.REFUSED, "precondition")
        assert "/spec/replicas" in outcome.message


class Meddler:
    """A session that changes the object between the agent's look and its write."""

    def __init__(self, session: KubeSession, meddle) -> None:
        self._session = session
        self.name = session.name
        self.meddle = meddle

    async def json(self, *args, **kwargs):
        return await self._session.json(*args, **kwargs)

    async def request(self, method, path, **kwargs):
        if method in ("PATCH", "DELETE") and self.meddle:
            meddle, self.meddle = self.meddle, None
            meddle()
        return await self._session.request(method, path, **kwargs)


@pytest.mark.parametrize("verb", ["scale", "patch", "delete"])
async def test_a_precondition_that_changes_between_read_and_write(place, streams, verb):
    place.deployment()
    path = f"/apis/apps/v1/namespaces/{place.namespace}/deployments/web"
    actions: dict[str, JsonObject] = {
        "scale": SCALE,
        "patch": {"verb": "patch", "operations": [{"op": "replace", "path": "/spec/replicas", "value": 5}]},
        "delete": {"verb": "delete"},
    }
    session = Meddler(place.session, lambda: place.call("PATCH", path, {"spec": {"replicas": 9}}))
    async with acting(place, streams, session=session) as rig:
        outcome = await rig.do(actions[verb], precondition={"values": {"/spec/replicas": 3}})
        assert (outcome.status, outcome.guardrail) == (Status.REFUSED, "precondition"), outcome
        assert place.get()["spec"]["replicas"] == 9


async def test_a_change_elsewhere_in_the_object_does_not_stop_a_command(place, streams):
    """The absent field is guarded by the resourceVersion; when that alone moved, the agent looks again."""
    place.deployment()
    path = f"/apis/apps/v1/namespaces/{place.namespace}/deployments/web"
    session = Meddler(place.session, lambda: place.call("PATCH", path, {"metadata": {"labels": {"x": "y"}}}))
    async with acting(place, streams, session=session) as rig:
        outcome = await rig.do(SCALE, precondition={"values": {"/spec/replicas": 3, "/spec/paused": None}})
        assert outcome.status is Status.APPLIED, outcome
        assert place.get()["spec"]["replicas"] == 5


async def test_an_agent_without_the_right_says_so_and_does_not_retry(real_place, real_cluster, streams, tmp_path):
    real_place.deployment()
    reader = [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}]
    token = real_cluster.service_account(real_place.namespace, "reader", reader)
    source = ClusterSource("c1", kubeconfig=str(write_kubeconfig(tmp_path / "reader.yaml", real_cluster, token=token)))
    async with await KubeSession.open(source) as session, acting(real_place, streams, session=session) as rig:
        outcome = await rig.do(SCALE)
        assert (outcome.status, outcome.reason) == (Status.FAILED, "Forbidden")
        assert 'cannot patch resource "deployments/scale"' in outcome.message
        hidden = await rig.do(SCALE, target={"group": "", "resource": "pods", "name": "x"})
        assert (hidden.status, hidden.reason) == (Status.FAILED, "Forbidden")


async def test_a_target_that_the_cluster_does_not_have(place, streams):
    async with acting(place, streams) as rig:
        missing = await rig.do(SCALE)
        assert (missing.status, missing.guardrail) == (Status.REFUSED, "precondition")
        alien = await rig.do(SCALE, target={"group": "x.y", "resource": "widgets"})
        assert alien.status is Status.FAILED
        assert "no resource widgets.x.y" in alien.message
        scoped = await rig.do(SCALE, target={"namespace": ""})
        assert scoped.status in (Status.FAILED, Status.REFUSED)


async def test_limits_hold_and_survive_a_restart(fake_place, streams):
    for name in ("a", "b", "c"):
        fake_place.deployment(name)
    limited = rules(limits=Limits(per_minute=2))
    async with acting(fake_place, streams, rules=limited) as rig:
        first = [await rig.do(SCALE, target={"name": name}) for name in ("a", "b", "c")]
        assert [outcome.status for outcome in first] == [Status.APPLIED, Status.APPLIED, Status.REFUSED]
        assert first[2].guardrail == "rate"
    async with acting(fake_place, streams, rules=limited) as rig:
        again = await rig.do(SCALE, target={"name": "c"})
        assert again.guardrail == "rate"


async def test_only_a_share_of_a_namespace_is_touched(place, streams):
    for number in range(4):
        place.deployment(f"w{number}")
    async with acting(place, streams, rules=rules(limits=Limits(namespace_share=0.5))) as rig:
        outcomes = [await rig.do(SCALE, target={"name": f"w{number}"}) for number in (0, 1, 0, 2)]
        assert [outcome.status for outcome in outcomes] == [Status.APPLIED] * 3 + [Status.REFUSED]
        assert outcomes[3].guardrail == "blast-radius"
        assert "2 of 4" in outcomes[3].message


async def test_a_freeze_stops_and_a_thaw_lets_go_on(fake_place, streams):
    fake_place.deployment()
    freezes = await streams.kv(FREEZE_BUCKET)
    async with acting(fake_place, streams) as rig:
        state = FreezeState(freezes=(Freeze(user="ada", reason="incident 7", time=SYSTEM.now()),))
        await freezes.put(FREEZE_KEY, state.model_dump_json().encode())
        outcome = await rig.do(SCALE)
        assert (outcome.guardrail, outcome.message) == ("freeze", "frozen by ada: incident 7")
        await freezes.put(FREEZE_KEY, FreezeState().model_dump_json().encode())
        assert (await rig.do(SCALE)).status is Status.APPLIED


async def test_who_cannot_read_the_stop_sign_stops(fake_place, streams):
    fake_place.deployment()
    freezes = await streams.kv(FREEZE_BUCKET)
    await freezes.put(FREEZE_KEY, b'{"freezes": "?"}')
    carrier = await make_carrier(fake_place, streams, "c1")
    with pytest.raises(Postponed, match="freeze state cannot be read"):
        await carrier.carry(a_job(fake_place, SCALE))
    assert fake_place.get()["spec"]["replicas"] == 3
    assert await (await streams.kv("ipe_claims")).keys() == []


async def test_fields_under_a_lease_belong_to_their_handler(fake_place, streams):
    fake_place.deployment()
    both = Rules(grants=GrantSet((ENFORCE, ENFORCE.model_copy(update={"handler": "sleep"}))))
    async with acting(fake_place, streams, rules=both) as rig:
        until = rig.command(SCALE)["expires"]
        asleep = await rig.do({"verb": "scale", "replicas": 0}, handler="sleep", lease=until)
        assert asleep.status is Status.APPLIED
        foreign = await rig.do(SCALE)
        assert (foreign.status, foreign.guardrail) == (Status.REFUSED, "ledger")
        assert "/spec/replicas belongs to 'sleep' until" in foreign.message
        elsewhere = await rig.do({"verb": "annotate", "annotations": {"a": "b"}})
        assert elsewhere.status is Status.APPLIED
        awake = await rig.do({"verb": "scale", "replicas": 3}, handler="sleep")
        assert awake.status is Status.APPLIED
        assert (await rig.do(SCALE)).status is Status.APPLIED


async def test_a_write_that_fails_takes_no_ownership(fake_place, streams):
    fake_place.deployment()
    both = Rules(grants=GrantSet((ENFORCE, ENFORCE.model_copy(update={"handler": "other"}))))
    async with acting(fake_place, streams, rules=both) as rig:
        until = rig.command(SCALE)["expires"]
        bad = {"verb": "patch", "operations": [{"op": "remove", "path": "/spec/nothing"}]}
        assert (await rig.do(bad, handler="other", lease=until)).status is Status.FAILED
        assert (await rig.do(SCALE)).status is Status.APPLIED


async def test_a_loop_is_seen_even_when_its_author_does_not_count(fake_place, streams):
    """The cause of each command is the change that the one before made; none of them says so in its hops."""
    fake_place.deployment()
    async with acting(fake_place, streams, rules=Rules(grants=GrantSet((ENFORCE,)), max_hops=3)) as rig:
        cause, seen = "", []
        for replicas in range(10, 15):
            outcome = await rig.do({"verb": "scale", "replicas": replicas}, cause=cause)
            seen.append((outcome.status, outcome.hops))
            cause = f"cluster-uid/1/apps/deployments/{outcome.uid}/{outcome.resource_version}/modified"
            if outcome.status is not Status.APPLIED:
                break
        assert seen == [(Status.APPLIED, 1), (Status.APPLIED, 2), (Status.APPLIED, 3), (Status.REFUSED, 4)]
        assert outcome.guardrail == "loop"


@pytest.mark.parametrize(
    ("change", "place_of_fault"),
    [
        ({"surprise": 1}, "surprise"),
        ({"action": {"verb": "scale", "replicas": 5, "force": True}}, "action.force"),
        ({"action": {"verb": "exec"}}, "action"),
        ({"precondition": {"uuid": "x"}}, "precondition.uuid"),
        ({"schema_version": 2}, "schema_version"),
        ({"reason": ""}, "reason"),
        ({"expires": "2026-01-01T00:00:00"}, "expires"),
    ],
)
async def test_what_is_no_command_is_refused_by_schema(fake_place, streams, change, place_of_fault):
    fake_place.deployment()
    async with acting(fake_place, streams) as rig:
        body = rig.command(SCALE) | change
        await rig.publish(body, verb="scale")
        outcome = await rig.outcome(body["id"])
        assert (outcome.status, outcome.guardrail, outcome.handler) == (Status.REFUSED, "schema", "guard")
        assert f"{place_of_fault}:" in outcome.message
        assert (await rig.do(SCALE)).status is Status.APPLIED


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b"null", b'{"id": "../x"}', b"{" * 5_000])
async def test_hostile_bytes_do_not_stop_the_loop(fake_place, streams, body):
    fake_place.deployment()
    async with acting(fake_place, streams) as rig:
        await rig.publish(body, verb="scale", msg_id="m-1")
        await streams.publish("ipe.cmd.c1.guard.scale.more", body)
        await streams.publish("ipe.cmd.c1.=GG.scale", body)
        assert (await rig.do(SCALE)).status is Status.APPLIED
        outcome = await rig.outcome("m-1")
        assert (outcome.guardrail, outcome.verb) == ("schema", "scale")


async def test_a_command_for_another_subject_than_its_body_says(fake_place, streams):
    fake_place.deployment()
    async with acting(fake_place, streams) as rig:
        body = rig.command(SCALE, handler="guard")
        await rig.publish(body, handler="mallory")
        outcome = await rig.outcome(body["id"])
        assert (outcome.guardrail, outcome.handler) == ("identity", "mallory")
        assert fake_place.get()["spec"]["replicas"] == 3


async def test_what_the_api_says_is_redacted(fake_place, streams):
    fake_place.deployment(annotations={"note": "s3cr3t"})
    async with acting(fake_place, streams) as rig:
        shown = await rig.do(SCALE, dry_run=True)
        assert shown.result is not None
        assert "s3cr3t" not in orjson.dumps(shown.result).decode()
        target = {"group": "", "resource": "configmaps", "name": "made"}
        failed = await rig.do({"verb": "create", "manifest": {"kind": "s3cr3t"}}, target=target)
        assert failed.status is Status.FAILED
        assert "hmac:k1:" in failed.message
        assert "s3cr3t" not in failed.message


async def test_commands_for_one_object_keep_their_order(fake_place, streams):
    fake_place.deployment()
    async with acting(fake_place, streams, rules=rules(limits=Limits(per_minute=1000))) as rig:
        bodies = [rig.command({"verb": "scale", "replicas": number}) for number in range(1, 31)]
        for body in bodies:
            await rig.publish(body)
        assert (await rig.outcome(bodies[-1]["id"])).status is Status.APPLIED
        assert fake_place.get()["spec"]["replicas"] == 30
        versions = [int((await rig.outcome(body["id"])).resource_version) for body in bodies]
        assert versions == sorted(versions)
