"""No command runs twice and none vanishes: redelivery, replay, a crash at each step, a lost answer, a killed broker."""

import asyncio

import pytest

from ipe_events.agent.claims import Claims
from ipe_events.agent.config import LeaseSettings
from ipe_events.agent.job import Postponed
from ipe_events.agent.lease import LeaseKeeper, Role
from ipe_events.bus.connection import Bus
from ipe_events.errors import KubeNotFound, KubeTimeout
from ipe_events.events.outcome import Outcome, Status
from ipe_events.kube.session import KubeSession
from ipe_events.subjects import OUTCOME
from ipe_events.testing.faults import Reset
from tests.helpers import eventually
from tests.integration.act.support import JsonObject, Rig, a_job, acting, command_body, end, job_of, make_carrier

SCALE = {"verb": "scale", "replicas": 5}
PATCH = {"verb": "patch", "operations": [{"op": "replace", "path": "/spec/replicas", "value": 5}]}
APPLY = {"verb": "apply", "manifest": {"metadata": {"labels": {"by": "ipe"}}}}
CREATE = {"verb": "create", "manifest": {"data": {"k": "v"}}}
ACTIONS: dict[str, JsonObject] = {"scale": SCALE, "patch": PATCH, "create": CREATE, "delete": {"verb": "delete"}}
CONFIGMAP = {"group": "", "resource": "configmaps", "name": "made"}


class Crash(BaseException):
    """The agent dies here: no ``except Exception`` may see it."""


class Counting:
    """A session that counts writes, and can die before or after one, or lose its answer."""

    def __init__(self, session: KubeSession, *, before: BaseException | None = None, after: BaseException | None = None) -> None:
        self._session = session
        self.name = session.name
        self.before, self.after = before, after
        self.writes = 0

    async def json(self, *args, **kwargs):
        return await self._session.json(*args, **kwargs)

    async def request(self, method, path, **kwargs):
        if self.before:
            raise self.before
        answer = await self._session.request(method, path, **kwargs)
        self.writes += 1
        if self.after:
            raise self.after
        return answer


async def published(bus: Bus, cluster: str = "c1") -> list[Outcome]:
    subject = OUTCOME.filter(cluster=cluster)
    return [Outcome.model_validate_json(delivery.body) async for delivery in bus.read(OUTCOME.stream, [subject])]


async def test_a_replayed_command_is_answered_from_the_record(place, streams):
    place.deployment()
    async with acting(place, streams) as rig:
        body = rig.command(SCALE)
        await rig.publish(body, msg_id="first")
        first = await rig.outcome(body["id"])
        await rig.publish(body, msg_id="second")  # another message id: deduplication does not see it
        after = await rig.do({"verb": "annotate", "annotations": {"a": "1"}})
        assert after.status is Status.APPLIED
        assert await rig.outcomes(body["id"]) == [first]
        assert len(rig.written) == 2


async def test_an_id_used_for_another_command_is_refused(fake_place, streams):
    fake_place.deployment()
    async with acting(fake_place, streams) as rig:
        body = rig.command(SCALE)
        await rig.publish(body, msg_id="first")
        await rig.outcome(body["id"])
        await rig.publish(body | {"action": {"verb": "scale", "replicas": 9}}, msg_id="second")
        both = await eventually(lambda: _two(rig, body["id"]))
        assert [(outcome.status, outcome.guardrail) for outcome in both] == [(Status.APPLIED, ""), (Status.REFUSED, "replay")]
        assert fake_place.get()["spec"]["replicas"] == 5


async def _two(rig: Rig, command: str) -> list[Outcome]:
    found = await rig.outcomes(command)
    return found if len(found) == 2 else []


@pytest.mark.parametrize(("verb", "target"), [("scale", {}), ("patch", {}), ("create", CONFIGMAP), ("delete", {})])
async def test_a_crash_after_the_write_is_answered_applied(place, streams, verb, target):
    """SIGKILL between write and outcome: the next agent reads back, and does not write."""
    place.deployment()
    action = ACTIONS[verb]
    job = a_job(place, action, target=target)
    dying = Counting(place.session, after=Crash())
    with pytest.raises(Crash):
        await (await make_carrier(place, streams, "c1", session=dying)).carry(job)
    assert dying.writes == 1

    survivor = Counting(place.session)
    await (await make_carrier(place, streams, "c1", session=survivor, agent="agent-2")).carry(job)
    (outcome,) = await published(streams)
    assert (outcome.status, outcome.agent, survivor.writes) == (Status.APPLIED, "agent-2", 0), outcome
    assert outcome.message.startswith("the agent that claimed it left no outcome; ")
    await (await make_carrier(place, streams, "c1", session=survivor)).carry(job)
    assert (len(await published(streams)), survivor.writes) == (1, 0)


async def test_a_crash_after_an_apply_is_answered_applied(real_place, streams):
    real_place.deployment()
    job = a_job(real_place, APPLY)
    with pytest.raises(Crash):
        await (await make_carrier(real_place, streams, "c1", session=Counting(real_place.session, after=Crash()))).carry(job)
    survivor = Counting(real_place.session)
    await (await make_carrier(real_place, streams, "c1", session=survivor)).carry(job)
    assert [(outcome.status, survivor.writes) for outcome in await published(streams)] == [(Status.APPLIED, 0)]


@pytest.mark.parametrize(("verb", "target"), [("scale", {}), ("patch", {}), ("create", CONFIGMAP), ("delete", {})])
async def test_a_crash_before_the_write_is_answered_unknown(place, streams, verb, target):
    """SIGKILL between claim and write: nobody can know that it was not sent, so it is not repeated."""
    place.deployment()
    action = ACTIONS[verb]
    job = a_job(place, action, target=target)
    with pytest.raises(Crash):
        await (await make_carrier(place, streams, "c1", session=Counting(place.session, before=Crash()))).carry(job)
    survivor = Counting(place.session)
    await (await make_carrier(place, streams, "c1", session=survivor)).carry(job)
    assert [(outcome.status, survivor.writes) for outcome in await published(streams)] == [(Status.UNKNOWN, 0)]
    assert place.get()["spec"]["replicas"] == 3


async def test_a_claim_on_a_resource_that_is_gone_is_answered_unknown(fake_place, streams, monkeypatch):
    """Its CustomResourceDefinition was removed while the agent was down: nobody will ever be able to tell."""
    fake_place.deployment()
    job = a_job(fake_place, SCALE)
    with pytest.raises(Crash):
        await (await make_carrier(fake_place, streams, "c1", session=Counting(fake_place.session, before=Crash()))).carry(job)
    survivor = await make_carrier(fake_place, streams, "c1")

    async def gone(_command):
        raise KubeNotFound("the cluster has no deployments.apps", status=404)

    async def refuses(_job):
        return survivor._wording.outcome(job, Status.FAILED, message="no such resource")

    monkeypatch.setattr(survivor._judge, "resource", gone)
    monkeypatch.setattr(survivor._judge, "judge", refuses)
    await survivor.carry(job)
    (outcome,) = await published(streams)
    assert outcome.status is Status.UNKNOWN
    assert "it cannot be read back: the cluster has no deployments.apps" in outcome.message


async def test_somebody_elses_same_value_is_no_proof(place, streams):
    place.deployment()
    job = a_job(place, SCALE)
    with pytest.raises(Crash):
        await (await make_carrier(place, streams, "c1", session=Counting(place.session, before=Crash()))).carry(job)
    path = f"/apis/apps/v1/namespaces/{place.namespace}/deployments/web"
    place.call("PATCH", path, {"spec": {"replicas": 5}})
    await (await make_carrier(place, streams, "c1")).carry(job)
    (outcome,) = await published(streams)
    assert (outcome.status, "not set by ipe-guard" in outcome.message) == (Status.UNKNOWN, True)


@pytest.mark.parametrize(("written", "status"), [(True, Status.APPLIED), (False, Status.UNKNOWN)])
async def test_a_write_without_an_answer_is_read_back(place, streams, written, status):
    place.deployment()
    silence = KubeTimeout("no answer within 10 s")
    session = Counting(place.session, after=silence) if written else Counting(place.session, before=silence)
    await (await make_carrier(place, streams, "c1", session=session)).carry(a_job(place, PATCH))
    (outcome,) = await published(streams)
    assert (outcome.status, session.writes) == (status, 1 if written else 0)
    assert outcome.message.startswith("no answer to the write: no answer within 10 s; ")


async def test_a_connection_that_breaks_in_the_answer(fake_place, streams):
    fake_place.deployment()
    fault = fake_place.faults.add(Reset(after_bytes=10, on="patch"), times=1)
    async with acting(fake_place, streams) as rig:
        outcome = await rig.do(PATCH)
        assert outcome.status is Status.APPLIED
        assert "the object carries ipe.dev/command=" in outcome.message
        assert fault.fired == 1


class DyingClaims:
    """Claims whose agent dies after one of its steps."""

    def __init__(self, claims: Claims, step: str) -> None:
        self._claims, self._step, self._updates = claims, step, 0

    async def take(self, *args):
        revision = await self._claims.take(*args)
        if self._step == "claimed":
            raise Crash
        return revision

    async def update(self, *args):
        revision = await self._claims.update(*args)
        self._updates += 1
        if self._step == ("recorded", "published")[self._updates - 1]:
            raise Crash
        return revision

    def __getattr__(self, name):
        return getattr(self._claims, name)


@pytest.mark.parametrize(
    ("step", "status", "published_before"),
    [("claimed", Status.UNKNOWN, 0), ("recorded", Status.APPLIED, 0), ("published", Status.APPLIED, 1)],
)
async def test_a_crash_at_each_step_of_the_record(fake_place, streams, step, status, published_before):
    fake_place.deployment()
    job = a_job(fake_place, SCALE)
    dying = await make_carrier(fake_place, streams, "c1", claims=DyingClaims(await Claims.open(streams, "c1"), step))
    with pytest.raises(Crash):
        await dying.carry(job)
    assert len(await published(streams)) == published_before
    survivor = Counting(fake_place.session)
    await (await make_carrier(fake_place, streams, "c1", session=survivor)).carry(job)
    assert [outcome.status for outcome in await published(streams)] == [status]
    assert survivor.writes == 0


async def test_an_outcome_is_not_told_twice_when_the_broker_has_forgotten_its_id(fake_place, nats_server, streams):
    """Crash between publishing the outcome and noting it; then the broker restarts and its deduplication is empty."""
    fake_place.deployment()
    job = a_job(fake_place, SCALE)

    class Dying(DyingClaims):
        async def update(self, *args):
            if args[1].published:
                raise Crash
            return await self._claims.update(*args)

    carrier = await make_carrier(fake_place, streams, "c1", claims=Dying(await Claims.open(streams, "c1"), ""))
    with pytest.raises(Crash):
        await carrier.carry(job)
    assert len(await published(streams)) == 1
    nats_server.kill()
    nats_server.restart()
    await streams.wait_connected()
    await (await make_carrier(fake_place, streams, "c1")).carry(job)
    assert len(await published(streams)) == 1


async def test_a_refusal_is_not_judged_again(fake_place, streams):
    """What was refused once stays refused, even when the cluster's state would let it pass on the next delivery."""
    job = a_job(fake_place, SCALE)
    await (await make_carrier(fake_place, streams, "c1")).carry(job)
    fake_place.deployment()
    await (await make_carrier(fake_place, streams, "c1")).carry(job)
    assert [(outcome.status, outcome.guardrail) for outcome in await published(streams)] == [(Status.REFUSED, "precondition")]
    assert fake_place.get()["spec"]["replicas"] == 3


async def test_commands_survive_a_killed_broker(fake_place, nats_server, streams):
    fake_place.deployment()
    async with acting(fake_place, streams) as rig:
        bodies = [rig.command({"verb": "scale", "replicas": number}) for number in range(1, 21)]
        for body in bodies[:10]:
            await rig.publish(body)
        nats_server.kill()
        nats_server.restart()
        await streams.wait_connected()
        for body in bodies[10:]:
            await rig.publish(body)
        for body in bodies:
            await rig.outcome(body["id"], timeout=40)
        found = [outcome for outcome in await published(streams) if outcome.command in {body["id"] for body in bodies}]
        assert sorted(outcome.command for outcome in found) == sorted(body["id"] for body in bodies)
        assert {outcome.status for outcome in found} <= {Status.APPLIED, Status.UNKNOWN}
        assert len(rig.written) == len({entry[1] for entry in rig.written})


async def test_without_an_api_server_a_command_waits_and_then_expires(fake_place, streams):
    fake_place.deployment()
    carrier = await make_carrier(fake_place, streams, "c1")
    body = command_body(fake_place, SCALE)
    silent = Counting(fake_place.session)
    silent.json = _unavailable  # type: ignore[method-assign]
    waiting = await make_carrier(fake_place, streams, "c1", session=silent)
    with pytest.raises(Postponed, match="the API server cannot be asked"):
        await waiting.carry(job_of(body))
    await carrier.carry(job_of(body | {"expires": body["issued"]}))
    (outcome,) = await published(streams)
    assert (outcome.status, outcome.guardrail) == (Status.EXPIRED, "expiry")


async def _unavailable(*_args, **_kwargs):
    raise KubeTimeout("no answer within 10 s")


async def test_who_does_not_hold_the_lease_leaves_no_trace(fake_place, streams):
    fake_place.deployment()
    job = a_job(fake_place, SCALE)
    standby = await make_carrier(fake_place, streams, "c1", write_seconds=lambda: 0.0)
    with pytest.raises(Postponed, match="Lease"):
        await standby.carry(job)
    await (await make_carrier(fake_place, streams, "c1")).carry(job)
    assert [outcome.status for outcome in await published(streams)] == [Status.APPLIED]


async def test_a_lease_lost_between_claim_and_write_hands_the_command_on(fake_place, streams):
    fake_place.deployment()
    job = a_job(fake_place, SCALE)
    left = iter([10.0, 0.0])
    losing = await make_carrier(fake_place, streams, "c1", write_seconds=lambda: next(left))
    with pytest.raises(Postponed, match="lost the cluster's Lease"):
        await losing.carry(job)
    assert fake_place.get()["spec"]["replicas"] == 3
    await (await make_carrier(fake_place, streams, "c1", agent="agent-2")).carry(job)
    assert [(outcome.status, outcome.agent) for outcome in await published(streams)] == [(Status.APPLIED, "agent-2")]


async def test_of_two_agents_exactly_one_writes(place, streams):
    """A rolling restart: both run, one holds the Lease; when it goes, the other takes over; each command once."""
    place.deployment()
    settings = LeaseSettings(namespace=place.namespace, name="ipe-agent", duration=2)
    sessions = [Counting(place.session), Counting(place.session)]
    keepers = [LeaseKeeper(place.session, settings, f"agent-{number}") for number in (1, 2)]
    async with (
        acting(
            place, streams, role=Role.UNKNOWN, session=sessions[0], agent="agent-1", write_seconds=keepers[0].remaining
        ) as one,
        acting(
            place, streams, role=Role.UNKNOWN, session=sessions[1], agent="agent-2", write_seconds=keepers[1].remaining
        ) as two,
    ):
        keepers[0].on_role, keepers[1].on_role = one.actuator.on_role, two.actuator.on_role
        tasks = [asyncio.create_task(keeper.run()) for keeper in keepers]
        await eventually(lambda: sorted(keeper.role for keeper in keepers) == [Role.HOLDER, Role.STANDBY])
        first = next(index for index, keeper in enumerate(keepers) if keeper.role is Role.HOLDER)
        names = [f"agent-{index + 1}" for index in (first, 1 - first)]
        before = [await one.do({"verb": "scale", "replicas": number}) for number in (1, 2, 3)]
        assert {(outcome.status, outcome.agent) for outcome in before} == {(Status.APPLIED, names[0])}
        assert sessions[1 - first].writes == 0

        await end(tasks[first])  # the holder dies without a word
        await eventually(lambda: keepers[1 - first].role is Role.HOLDER, timeout=15)
        assert keepers[first].remaining() == 0
        (one, two)[first].actuator.on_role(Role.STANDBY)
        after = [await one.do({"verb": "scale", "replicas": number}) for number in (4, 5)]
        assert {(outcome.status, outcome.agent) for outcome in after} == {(Status.APPLIED, names[1])}
        await end(tasks[1 - first])
    assert [session.writes for session in (sessions[first], sessions[1 - first])] == [3, 2]


async def test_a_claim_whose_answer_is_lost_is_recognised_as_our_own(streams):
    """The create is stored, its answer is not; the retry must not take it for somebody else's."""
    from ipe_events.agent.claims import Claim
    from ipe_events.clock import SYSTEM
    from ipe_events.errors import BusTimeout

    claims = await Claims.open(streams, "c1")
    create, lost = claims._kv.create, iter([True])

    async def losing(key: str, value: bytes) -> int:
        revision = await create(key, value)
        if next(lost, False):
            raise BusTimeout("no answer in 5 s")
        return revision

    claims._kv.create = losing  # type: ignore[method-assign,assignment]
    claim = Claim(command="x", digest="d", agent="a", token="t", time=SYSTEM.now())
    assert await claims.take("guard", claim) == (await claims.find("guard", "x")).revision  # type: ignore[union-attr]
