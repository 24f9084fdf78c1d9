"""What the agent answers: to whom, how much, and never a secret."""

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest

from ipe_events.agent.config import Answers
from ipe_events.agent.grants import GrantSet
from ipe_events.agent.guardrails import Rules
from ipe_events.agent.redaction import RedactionRules, Redactor
from ipe_events.agent.services import SNAPSHOT_END, AgentServices, View
from ipe_events.errors import ServiceError
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.discovery import Discovery
from ipe_events.kube.selection import Selection
from ipe_events.subjects import AGENT_SERVICE, SNAPSHOT
from tests.integration.act.support import ENFORCE, JsonObject, Place, command_body, make_carrier, managers

KEY = b"k" * 32


class Asking:
    """A caller's side of the services."""

    def __init__(self, bus, place: Place) -> None:
        self.bus, self.place = bus, place

    async def one(self, verb: str, question: JsonObject, caller: str = "guard") -> JsonObject:
        reply = await self.bus.request(AGENT_SERVICE.format(cluster="c1", caller=caller, verb=verb), orjson.dumps(question))
        answer: JsonObject = orjson.loads(reply.body)
        return answer

    async def pages(self, question: JsonObject, caller: str = "guard") -> list[JsonObject]:
        subject = AGENT_SERVICE.format(cluster="c1", caller=caller, verb="list")
        return [orjson.loads(reply.body) async for reply in self.bus.request_many(subject, orjson.dumps(question))]


@asynccontextmanager
async def answering(
    place, bus, *, collected=("deployments.apps", "configmaps", "pods"), grants=(ENFORCE,), selection=None, **limits
):
    discovery = Discovery()
    await discovery.load(place.session)
    refs = [ResourceRef.parse(name) for name in collected]
    services = AgentServices(
        cluster="c1",
        agent="agent-1",
        bus=bus,
        session=place.session,
        discovery=discovery,
        redactor=Redactor(RedactionRules(annotations=("secret-note",)), KEY),
        grants=GrantSet(tuple(grants)),
        carrier=await make_carrier(place, bus, "c1", rules=Rules(grants=GrantSet(tuple(grants)))),
        view=View(lambda: "uid-1", lambda: 1, lambda: refs, lambda _ref: selection or Selection(), lambda: True),
        limits=Answers(**limits),
    )
    handle = await services.start()
    try:
        yield Asking(bus, place)
    finally:
        await handle.stop()


def configmap(place: Place, name: str, size: int = 1, note: str = "") -> JsonObject:
    metadata = {"name": name, "namespace": place.namespace, "annotations": {"secret-note": note}}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": "x" * size}}
    return place.call("POST", f"/api/v1/namespaces/{place.namespace}/configmaps", body)


async def test_get(place, streams):
    place.deployment(annotations={"secret-note": "s3cr3t"})
    async with answering(place, streams) as asking:
        found = await asking.one("get", {"resource": "deployments.apps", "namespace": place.namespace, "name": "web"})
        assert (found["kind"], found["spec"]["replicas"]) == ("Deployment", 3)
        assert found["metadata"]["annotations"]["secret-note"].startswith("hmac:")
        with pytest.raises(ServiceError, match='"nope" not found') as missing:
            await asking.one("get", {"resource": "deployments.apps", "namespace": place.namespace, "name": "nope"})
        assert missing.value.code == 404


@pytest.mark.parametrize(
    ("verb", "question", "code"),
    [
        ("get", {"resource": "secrets", "namespace": "default", "name": "x"}, 403),
        ("list", {"resource": "secrets"}, 403),
        ("list", {"resource": "jobs.batch"}, 403),
        ("list", {"resource": "Deployments"}, 400),
        ("list", {"resource": "pods", "name": "x"}, 400),
        ("list", {"resource": "pods", "selector": "a in"}, 400),
        ("get", {"resource": "pods"}, 400),
        ("snapshot", {"resource": "pods", "request": "a.b"}, 400),
        ("snapshot", {"resource": "secrets", "request": "r"}, 403),
        ("metrics", {"resource": "deployments.apps"}, 400),
        ("dryrun", {"id": "x"}, 400),
    ],
)
async def test_what_is_not_answered(fake_place, streams, verb, question, code):
    async with answering(fake_place, streams) as asking:
        ask = asking.pages(question) if verb == "list" else asking.one(verb, question)
        with pytest.raises(ServiceError) as refused:
            await ask
        assert refused.value.code == code, refused.value


WEB = b'"resource": "deployments.apps", "namespace": "default", "name": "web"'


@pytest.mark.parametrize("verb", ["get", "list", "snapshot", "dryrun", "metrics"])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not JSON"),
        (b"[]", "should be an object|should be a valid"),
        (b"{%s, \xff}" % WEB, "not UTF-8"),
        (b'{"resource": "secrets", %s}' % WEB, '"resource" occurs twice'),
        (b'{%s, "extra": NaN}' % WEB, "NaN is not JSON"),
        (b'{%s, "extra": 1e999}' % WEB, "not finite"),
        (b'{%s, "extra": "\\ud800"}' % WEB, "half a surrogate"),
        (b'{"a\\r\\nNats-Service-Error-Code: 200": 1, %s}' % WEB, "unknown field"),
        (b'{"resource": 5}', "resource: value 5|unknown field"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"x": "%s"}' % (b"x" * (2 << 20)), "at most 2,097,152"),
    ],
    ids=["empty", "list", "bytes", "twice", "nan", "infinite", "surrogate", "header", "type", "deep", "big"],
)
async def test_a_hostile_question_is_refused_in_one_line_and_the_service_lives_on(fake_place, streams, verb, body, told):
    async with answering(fake_place, streams) as asking:
        with pytest.raises(ServiceError, match=told) as refused:
            await streams.request(AGENT_SERVICE.format(cluster="c1", caller="guard", verb=verb), body)
        assert refused.value.code == 400
        assert "\n" not in str(refused.value)
        assert (await asking.one("whoami", {}))["caller"] == "guard"


async def test_a_grant_adds_what_its_handler_may_read(place, streams):
    place.call(
        "POST",
        f"/api/v1/namespaces/{place.namespace}/secrets",
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s", "namespace": place.namespace},
            "data": {"p": "czNjcjN0"},
        },
    )
    reader = ENFORCE.model_copy(update={"read": ("secrets",), "namespaces": (place.namespace,)})
    async with answering(place, streams, grants=(reader,)) as asking:
        question = {"resource": "secrets", "namespace": place.namespace, "name": "s"}
        found = await asking.one("get", question)
        assert found["data"]["p"].startswith("hmac:")
        assert "czNjcjN0" not in orjson.dumps(found).decode()
        pages = await asking.pages({"resource": "secrets"})
        assert {item["metadata"]["namespace"] for page in pages for item in page["items"]} == {place.namespace}
        assert "czNjcjN0" not in orjson.dumps(pages).decode()
        with pytest.raises(ServiceError, match="may not read secrets"):
            await asking.one("get", question, caller="other")
        with pytest.raises(ServiceError, match="namespace 'kube-system' is not collected"):
            await asking.one("get", {**question, "namespace": "kube-system"})


async def test_a_list_is_paged_by_rows_and_bytes_and_loses_nothing(place, streams):
    for number in range(7):
        configmap(place, f"c{number}")
    configmap(place, "large", size=40_000)
    async with answering(place, streams, rows=3, bytes=16_384) as asking:
        pages = await asking.pages({"resource": "configmaps", "namespace": place.namespace})
        items = [item for page in pages for item in page["items"] if item["metadata"]["name"] != "kube-root-ca.crt"]
        assert [item["metadata"]["name"] for item in items] == [*(f"c{number}" for number in range(7)), "large"]
        assert max(len(page["items"]) for page in pages) <= 3
        assert items[-1]["ipeStub"]["bytes"] > 40_000
        assert "data" not in items[-1]
        assert [bool(page["resource_version"]) for page in pages] == [False] * (len(pages) - 1) + [True]
        assert {(item["kind"], item["apiVersion"]) for item in items} == {("ConfigMap", "v1")}


async def test_namespaces_that_are_not_collected_stay_unseen(fake_place, streams):
    configmap(fake_place, "here")
    async with answering(fake_place, streams, selection=Selection(namespaces=("kube-*",))) as asking:
        assert [page["items"] for page in await asking.pages({"resource": "configmaps"})] == [[]]
        with pytest.raises(ServiceError, match="namespace 'default' is not collected"):
            await asking.one("get", {"resource": "configmaps", "namespace": "default", "name": "here"})


async def test_a_snapshot_is_published_to_its_caller_and_ends_with_a_marker(place, streams):
    await streams.js_api("STREAM.CREATE.IPE_SNAP", {"name": "IPE_SNAP", "subjects": ["ipe.snap.>"], "allow_direct": True})
    made = {configmap(place, f"c{number}", note="s3cr3t")["metadata"]["uid"] for number in range(5)}
    async with answering(place, streams, rows=2) as asking:
        question = {"resource": "configmaps", "namespace": place.namespace, "request": "r-1"}
        first = await asking.one("snapshot", question)
        subject = SNAPSHOT.format(handler="guard", request="r-1", cluster="c1", group="", resource="configmaps")
        got = [delivery async for delivery in streams.read("IPE_SNAP", [subject])]
        *items, end = got
        assert (end.headers["ce-type"], orjson.loads(end.body)) == (SNAPSHOT_END, first)
        assert first["items"] == len(items) >= 5
        assert int(first["resource_version"]) > 0
        for item in items:
            body = orjson.loads(item.body)
            uid, rv = body["metadata"]["uid"], body["metadata"]["resourceVersion"]
            assert item.headers["ce-id"] == f"uid-1/1//configmaps/{uid}/{rv}/added"
            assert item.headers["Nats-Msg-Id"] == f"r-1/{item.headers['ce-id']}"
            assert body["kind"] == "ConfigMap"
            assert b"s3cr3t" not in item.body
        assert made <= {orjson.loads(item.body)["metadata"]["uid"] for item in items}
        assert (await asking.one("snapshot", question | {"request": "r-2"}))["items"] == first["items"]


async def test_a_dry_run_tells_and_writes_nothing(place, streams):
    place.deployment()
    async with answering(place, streams) as asking:
        outcome = Outcome.model_validate(await asking.one("dryrun", command_body(place, {"verb": "scale", "replicas": 9})))
        assert outcome.status is Status.DRY_RUN
        assert outcome.result is not None
        assert outcome.result["spec"]["replicas"] == 9
        forged = await asking.one("dryrun", command_body(place, {"verb": "scale", "replicas": 9}), caller="mallory")
        assert Outcome.model_validate(forged).guardrail == "identity"
        assert "ipe-guard" not in managers(place.get())
        assert await (await streams.kv("ipe_claims")).keys() == []


async def test_metrics(fake_place, streams, request):
    async with answering(fake_place, streams) as asking:
        assert (await asking.one("metrics", {"resource": "pods"}))["items"] == []
        with pytest.raises(ServiceError, match="may not read nodes"):
            await asking.one("metrics", {"resource": "nodes"})


async def test_whoami_tells_a_caller_what_it_may(fake_place, streams):
    async with answering(fake_place, streams) as asking:
        me, nobody = await asyncio.gather(asking.one("whoami", {}), asking.one("whoami", {}, caller="nobody"))
        assert (me["caller"], me["cluster"], me["cluster_uid"], me["writes"]) == ("guard", "c1", "uid-1", True)
        assert me["grants"][0]["mode"] == "enforce"
        assert me["grants"][0]["source"] == "agent.yaml:3"
        assert me["reads"] == ["configmaps", "deployments.apps", "pods"]
        assert nobody["grants"] == []
