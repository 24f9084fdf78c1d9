"""The record on a real stream: list, show, tail, trace, commands, dead letters, clusters, doctor."""

import asyncio
import json
import os
from datetime import timedelta
from typing import Literal

import pytest

from ipe_events.bus import topology
from ipe_events.bus.cloudevents import headers_for
from ipe_events.bus.consumer import Consumer, ConsumerSpec
from ipe_events.clock import SYSTEM
from ipe_events.events import Command, ObjectRef, Outcome, Status
from ipe_events.events.command import Patch, PatchOperation
from ipe_events.events.registry import NO_SUCH_RESOURCE, AgentStatus, HandlerDeclaration
from ipe_events.subjects import CHANGE, DLQ, topic_of
from tests.helpers import eventually

NOW = SYSTEM.now()
PAYMENTS = ObjectRef(group="apps", version="v1", resource="deployments", namespace="shop", name="payments", uid="u-1")
SUBJECT = CHANGE.format(cluster="prod-eu", group="apps", resource="deployments", namespace="shop", verb="modified", partition=4)


def change_id(rv: int) -> str:
    return f"c-1/1/apps/deployments/u-1/{rv}/modified"


async def publish_change(bus, rv: int) -> None:
    headers = {"ce-id": change_id(rv), "ce-kind": "Deployment", "ce-name": "payments", "ce-type": "dev.ipe.k8s.modified.v1"}
    body = {"kind": "Deployment", "metadata": {"name": "payments", "resourceVersion": str(rv)}}
    await bus.publish(SUBJECT, json.dumps(body).encode(), id=change_id(rv), headers=headers)


async def publish(bus, payload, identity: str, cause: str) -> None:
    values = {"cluster": "prod-eu", "handler": "scale-guard", "verb": "patch"}
    headers = headers_for(payload, id=identity, source="/handlers/scale-guard", time=NOW, extensions={"cause": cause})
    await bus.publish(
        payload.topic.format(**values), payload.model_dump_json(by_alias=True).encode(), id=identity, headers=headers
    )


def command(identity: str = "c0ffee1234", rv: int = 7) -> Command:
    pairs: tuple[tuple[Literal["test", "replace"], int], ...] = (("test", 80), ("replace", 50))
    operations = tuple(PatchOperation(op=op, path="/spec/replicas", value=value) for op, value in pairs)
    return Command(
        id=identity, handler="scale-guard", cluster="prod-eu", target=PAYMENTS,
        action=Patch(operations=operations), reason="cap 50", cause=change_id(rv), issued=NOW,
        expires=NOW + timedelta(minutes=10),
    )  # fmt: skip


def outcome(identity: str, of: str, status: Status, **more: str) -> Outcome:
    return Outcome(
        id=identity, command=of, handler="scale-guard", cluster="prod-eu", verb="patch", status=status, object_ref=PAYMENTS,
        cause=of, time=NOW, **more,
    )  # fmt: skip


@pytest.fixture
async def told(bus):
    """A bus on which one story has happened: change, command, outcome, the change it caused; and one refusal."""
    await topology.ensure(bus)
    await publish_change(bus, 7)
    await publish(bus, command(), "c0ffee1234", change_id(7))
    await publish(bus, outcome("out-1", "c0ffee1234", Status.APPLIED, uid="u-1", resource_version="8"), "out-1", "c0ffee1234")
    await publish_change(bus, 8)
    await publish(bus, command("decaf56789", 8), "decaf56789", change_id(8))
    await publish(
        bus, outcome("out-2", "decaf56789", Status.REFUSED, guardrail="mode", message="observes"), "out-2", "decaf56789"
    )
    return bus


async def test_list_merges_the_streams_in_order_of_time(told, ipe):
    done = await ipe("events", "list", "-o", "json")
    assert [item["ref"] for item in done.items] == [
        "IPE_K8S:1", "IPE_CMD:1", "IPE_GOV:1", "IPE_K8S:2", "IPE_CMD:2", "IPE_GOV:2",
    ]  # fmt: skip
    table = (await ipe("events", "list")).out.splitlines()
    assert table[0].split() == ["TIME", "TOPIC", "CLUSTER", "WHAT", "OBJECT", "SUMMARY", "REF"]
    assert "shop/deployments.apps/payments" in table[1]


async def test_filters_and_limits_are_honoured_and_said(told, ipe):
    changes = await ipe("events", "list", "--topic", "change", "--cluster", "prod-*", "-n", "shop", "-o", "name")
    assert changes.out.split() == ["IPE_K8S:1", "IPE_K8S:2"]
    assert (await ipe("events", "list", "--resource", "pods", "-o", "json")).items == []
    last = await ipe("events", "list", "--limit", "2", "-o", "name")
    assert last.out.split() == ["IPE_CMD:2", "IPE_GOV:2"]
    assert last.err == "the newest 2 of 6; --limit 0 shows all\n"
    unknown = await ipe("events", "list", "--topic", "chang")
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("event", ["IPE_K8S:1", change_id(7), "c0ffee", "out-1", "IPE_K8S:2"])
async def test_trace_tells_one_story_from_any_of_its_events(told, ipe, event):
    done = await ipe("events", "trace", event, "-o", "json")
    assert [(item["ref"], item["depth"]) for item in done.items] == [
        ("IPE_K8S:1", 0), ("IPE_CMD:1", 1), ("IPE_GOV:1", 2), ("IPE_K8S:2", 3), ("IPE_CMD:2", 4), ("IPE_GOV:2", 5),
    ]  # fmt: skip
    assert done.items[3]["join"] == "uid and resourceVersion"


async def test_an_unknown_event_is_one_line(told, ipe):
    for event in ("IPE_K8S:99", "no-such-id", "c-1/1/apps/deployments/u-1/99/modified"):
        done = await ipe("events", "trace", event)
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("error: events: ")


async def test_show_prints_headers_and_body(told, ipe):
    done = await ipe("events", "show", "IPE_K8S:1")
    assert done.out.startswith(SUBJECT)
    assert f"ce-id: {change_id(7)}" in done.out
    assert '"resourceVersion": "7"' in done.out
    assert (await ipe("events", "show", "c0ffee1234", "-o", "json")).items[0]["body"]["reason"] == "cap 50"


async def test_tail_prints_what_comes_and_ends_with_130(told, ipe):
    process = await ipe.start("events", "tail", "--since", "1h", "--topic", "change", "-o", "json")
    assert process.stdout is not None
    first = [json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["ref"] for _ in range(2)]
    await publish_change(told, 9)
    third = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["ref"]
    assert [*first, third] == ["IPE_K8S:1", "IPE_K8S:2", "IPE_K8S:3"]
    process.send_signal(2)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err


async def test_commands_are_joined_with_their_outcomes(told, ipe):
    done = await ipe("commands", "list", "-o", "json")
    assert [(item["id"], item["status"]) for item in done.items] == [("c0ffee1234", "applied"), ("decaf56789", "refused")]
    refused = await ipe("commands", "list", "--status", "refused")
    assert "mode: observes" in refused.out
    shown = await ipe("commands", "show", "decaf")
    assert "Status:" in shown.out
    assert "refused" in shown.out
    assert (await ipe("commands", "show", "nope")).code == 3


async def test_a_dead_letter_is_shown_and_replayed_on_the_record(told, ipe):
    headers = {
        "ce-id": change_id(7), "ce-name": "payments", "ipe-dlq-subject": SUBJECT, "ipe-dlq-error": "ValueError",
        "ipe-dlq-message": "no%20replicas", "ipe-dlq-attempts": "5",
        "ipe-dlq-stream": "IPE_K8S", "ipe-dlq-consumer": "scale-guard",
    }  # fmt: skip
    await told.publish(DLQ.format(handler="scale-guard"), b'{"kind": "Deployment"}', id="dead-1", headers=headers)
    listed = await ipe("dlq", "list")
    assert "no replicas" in listed.out
    assert (await ipe("dlq", "show", "IPE_DLQ:1")).out.count("ce-id") == 1
    nobody = await ipe("dlq", "replay", "IPE_DLQ:1")
    assert (nobody.code, nobody.err.count("\n")) == (3, 1)
    assert "consumes nothing of IPE_K8S" in nobody.err, "a replay that nobody would receive is refused"
    await Consumer.start(told, ConsumerSpec(stream="IPE_K8S", name="scale-guard"), lambda _delivery: None)
    done = await ipe("dlq", "replay", "IPE_DLQ:1", "--reason", "fixed")
    assert done.code == 0, done.err
    stored = await told.get_message("IPE_K8S", seq=3)
    assert (stored.subject, stored.headers["ce-id"], stored.headers["ipe-replay-of"]) == (SUBJECT, change_id(7), "IPE_DLQ:1")
    assert stored.headers["ipe-replay-handler"] == "scale-guard"
    assert not any(name.startswith("ipe-dlq-") for name in stored.headers)
    act = (await ipe("events", "list", "--topic", "act", "-o", "json")).items[0]
    assert "replay IPE_DLQ:1 fixed" in act["summary"]
    assert topic_of(act["subject"]).name == "act"
    for ref in ("IPE_K8S:1", "x"):
        assert (await ipe("dlq", "replay", ref)).code == 2
    assert (await ipe("dlq", "replay", "IPE_DLQ:9")).code == 3


async def test_a_tail_whose_reader_has_seen_enough_ends_in_silence(told, ipe):
    reader, writer = os.pipe()
    try:
        tail = await ipe.start("events", "tail", "--since", "1h", "-o", "json", stdout=writer)
    finally:
        os.close(writer)
    with os.fdopen(reader) as head:
        assert "ref" in json.loads(await asyncio.to_thread(head.readline))
    await publish_change(told, 90)
    async with asyncio.timeout(20):
        assert (await tail.communicate())[1] == b""
    assert tail.returncode == 141


async def put_status(bus, cluster: str, *, age: float = 0, **more: object) -> None:
    bucket = await bus.kv("ipe_agents")
    status = AgentStatus(cluster=cluster, time=SYSTEM.now() - timedelta(seconds=age), **more)
    await bucket.put(cluster, status.model_dump_json().encode())


async def test_clusters_are_listed_and_silence_is_seen(told, ipe):
    await put_status(told, "prod-eu", state="connected", resources={"pods": "watching"}, objects={"pods": 3}, writes=True)
    await put_status(told, "prod-us", age=600, state="connected")
    listed = await ipe("clusters", "list", "-o", "json")
    assert [(item["cluster"], item["state"]) for item in listed.items] == [("prod-eu", "connected"), ("prod-us", "silent")]
    assert "watching, 3 objects" in (await ipe("clusters", "show", "prod-eu")).out
    unknown = await ipe("clusters", "show", "prod")
    assert (unknown.code, unknown.err) == (
        2,
        "error: clusters: no agent serves a cluster 'prod' (fix: known: prod-eu, prod-us)\n",
    )


async def test_a_cluster_that_is_gone_for_good_is_forgotten(told, ipe):
    await put_status(told, "prod-eu", state="connected")
    await put_status(told, "prod-us", age=600)
    lives = await ipe("clusters", "remove", "prod-eu")
    assert lives.code == 3
    assert "stop its agent first" in lives.err
    assert (await ipe("clusters", "remove", "prod-u")).code == 2
    assert (await ipe("clusters", "remove", "prod-us", "--reason", "sold")).code == 0
    assert (await ipe("clusters", "list", "-o", "name")).out.split() == ["prod-eu"]
    (act,) = (await ipe("events", "list", "--topic", "act", "-o", "json")).items
    assert "remove cluster prod-us sold" in act["summary"]


async def test_doctor_finds_nothing_wrong_on_a_healthy_bus(told, ipe):
    await put_status(told, "prod-eu", state="connected", resources={"pods": "watching"})
    done = await ipe("doctor", "-o", "json")
    assert {item["status"] for item in done.items} == {"ok"}, done.items
    assert done.code == 0
    assert [item["number"] for item in done.items] == list(range(1, len(done.items) + 1))


async def test_doctor_names_each_trouble_with_a_fix(told, ipe):
    await put_status(told, "prod-eu", state="connected", resources={"pods": "refused: pods is forbidden"})
    await put_status(told, "prod-us", age=600)
    await put_status(told, "prod-as", state="disconnected")
    handlers = await told.kv("ipe_handlers")
    elsewhere = HandlerDeclaration(handler="elsewhere", resources=("pods",), clusters=("lab-*",), time=NOW)
    await handlers.put("elsewhere", elsewhere.model_dump_json().encode())
    declared = HandlerDeclaration(handler="sleepy", resources=("cronjobs.batch",), time=NOW)
    await handlers.put("sleepy", declared.model_dump_json().encode())
    await told.publish(DLQ.format(handler="sleepy"), b"x", id="dead")
    await told.js_api("STREAM.DELETE.IPE_METRICS")
    done = await ipe("doctor", "-o", "json")
    assert done.code == 1
    troubles = {item["check"]: item for item in done.items if item["status"] != "ok"}
    assert set(troubles) == {
        "streams and buckets", "agent of prod-eu", "agent of prod-us", "agent of prod-as", "handler sleepy", "handler elsewhere",
        "dead letters",
    }  # fmt: skip
    assert "its agent was stopped, or" in troubles["agent of prod-as"]["detail"]
    assert "no agent serves clusters=lab-*" in troubles["handler elsewhere"]["detail"]
    assert all(item["fix"] for item in troubles.values())
    assert "cronjobs.batch" in troubles["handler sleepy"]["detail"]
    text = await ipe("doctor")
    assert text.code == 1
    assert "fix: `ipe bus plan`, then `ipe bus apply`" in text.out


async def test_doctor_tells_a_mistyped_resource_from_a_refused_one(told, ipe):
    states = {"deployments.apps": "watching", "deploymnts.apps": f"refused: {NO_SUCH_RESOURCE}"}
    await put_status(told, "prod-eu", state="connected", resources=states)
    declared = HandlerDeclaration(handler="sleepy", resources=("deploymnts.apps",), time=NOW)
    await (await told.kv("ipe_handlers")).put("sleepy", declared.model_dump_json().encode())
    done = await ipe("doctor", "-o", "json")
    assert done.code == 1
    troubles = {item["check"]: item for item in done.items if item["status"] != "ok"}
    assert set(troubles) == {"agent of prod-eu", "handler sleepy"}
    assert "rbac" not in troubles["agent of prod-eu"]["fix"]
    assert "no resource deploymnts.apps exists in prod-eu" in troubles["handler sleepy"]["detail"]
    assert "did you mean deployments.apps?" in troubles["handler sleepy"]["fix"]


async def test_doctor_without_a_bus_fails_and_skips_the_rest(lonely_ipe):
    done = await lonely_ipe("doctor", "-o", "json")
    assert done.code == 1
    assert [item["status"] for item in done.items] == ["failed", *["skipped"] * 7]


async def test_doctor_checks_a_cluster_and_its_rights(told, ipe, tmp_path):
    from ipe_events.testing.fake import FakeCluster, Rule

    async with FakeCluster(name="mine", token="root") as cluster:
        cluster.add_token("weak", "weak", rules=[Rule(groups=("",), resources=("pods",), verbs=("get", "list", "watch"))])
        weak = await ipe("doctor", "--kubeconfig", str(cluster.kubeconfig(tmp_path / "weak", token="weak")), "-o", "json")
        strong = await ipe("doctor", "--kubeconfig", str(cluster.kubeconfig(tmp_path / "strong")), "-o", "json")
        wrong = await ipe("doctor", "--kubeconfig", str(cluster.kubeconfig(tmp_path / "wrong", token="wrong")), "-o", "json")
    (unknown,) = [item for item in wrong.items if item["check"] == "cluster"]
    assert "Unauthorized" in unknown["detail"]
    assert "not accepted" in unknown["fix"]
    refused = [item for item in weak.items if item["check"] == "cluster rights" and item["status"] == "failed"]
    assert any("deployments.apps" in item["detail"] for item in refused)
    assert not any(item["detail"].startswith("pods:") for item in refused)
    assert weak.code == 1
    assert not [item for item in strong.items if item["check"].startswith("cluster") and item["status"] == "failed"]


async def test_a_malformed_kubeconfig_is_a_finding_with_its_place(told, ipe, tmp_path):
    broken = tmp_path / "kubeconfig"
    broken.write_text("apiVersion: [")
    done = await ipe("doctor", "--kubeconfig", str(broken), "-o", "json")
    found = [item for item in done.items if item["check"] == "cluster"]
    assert found[0]["status"] == "failed"
    assert str(broken) in found[0]["detail"]


async def test_the_bus_may_die_during_a_tail(told, ipe, nats_server):
    process = await ipe.start("events", "tail", "--since", "1h", "--topic", "change", "-o", "name")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"IPE_K8S:1\n"
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"IPE_K8S:2\n"
    nats_server.kill()
    nats_server.restart()
    await eventually(lambda: told.connected)
    await publish_change(told, 10)
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"IPE_K8S:3\n"
    process.send_signal(2)
    await process.communicate()


async def test_a_search_through_too_much_is_refused_not_endless(told, ipe, monkeypatch):
    monkeypatch.setattr("ipe_events.cli.reading.MAX_ENTRIES", 2)
    done = await ipe("events", "trace", "c0ffee")
    assert done.code == 2
    assert "more than 2 events in that time (fix: read less far back" in done.err
