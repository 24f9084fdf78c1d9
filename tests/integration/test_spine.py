"""The spine, end to end: the agent as a process of its own on a real API server and a real bus.

A change arrives on the bus; a handler's command passes the cluster's grant; the object changes; the outcome comes back; and the
change that it caused joins the outcome by (uid, resourceVersion) and carries the command's id.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from ipe_events.bus.connection import Bus
from ipe_events.bus.consumer import Delivery
from ipe_events.bus.topology import TopologySettings, apply, desired, plan
from ipe_events.clock import SYSTEM
from ipe_events.events.codec import encode
from ipe_events.events.command import Command
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.registry import AgentStatus, HandlerDeclaration
from ipe_events.subjects import CHANGE, CLUSTER, COMMAND, OUTCOME
from tests.helpers import eventually

HANDLER = """
from ipe_events import Change, Commands, Event, handler


@handler(on="deployments.apps")
async def guard(event: Event[Change], commands: Commands) -> None:
    if event.payload.verb != "deleted" and event.payload.object["spec"].get("replicas", 1) > 50:
        await commands.patch(event.payload, {"/spec/replicas": 50}, reason="cap 50", expires="10m")
"""
IPE = str(Path(sys.executable).with_name("ipe"))
APPS = "/apis/apps/v1"


def deployment(name: str, replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def agent_config(path: Path, cluster: Any, namespace: str, **changes: Any) -> Path:
    document = {
        "apiVersion": "ipe.dev/v1alpha1",
        "kind": "AgentConfig",
        "clusters": {"name": "prod-eu", "kubeconfig": str(cluster.kubeconfig), "contexts": [cluster.name]},
        "collect": {"resources": ["deployments.apps"], "namespaces": [namespace]},
        "grants": [
            {
                "handler": "guard",
                "mode": "enforce",
                "verbs": ["patch", "scale"],
                "resources": ["deployments.apps"],
                "namespaces": ["test-*"],
            }
        ],
        "act": {"writes": True},
        "lease": {"namespace": namespace, "duration": "3s"},
        "heartbeat": "1s",
        "healthPort": 0,
    }
    path.write_text(yaml.safe_dump(document | changes))
    return path


@contextmanager
def process(url: str, log: Path, *command: str, ends_with: int = 0) -> "Iterator[subprocess.Popen[bytes]]":
    """A process on the bus; ended by SIGTERM, which must end it in good order."""
    environment = {**os.environ, "IPE_NATS_URL": url, "IPE_LOG_FORMAT": "json"}
    with log.open("wb") as output:
        running = subprocess.Popen(command, env=environment, stderr=output)
        try:
            yield running
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=20) == ends_with, log.read_text()
        finally:
            if running.poll() is None:
                running.kill()
                running.wait()


async def prepare(bus: Bus) -> None:
    await apply(bus, await plan(bus, desired(TopologySettings())))


async def status(bus: Bus, cluster: str) -> AgentStatus | None:
    entry = await (await bus.kv("ipe_agents")).get(cluster)
    return AgentStatus.model_validate_json(entry.value) if entry else None


async def state(bus: Bus, cluster: str, wanted: str) -> AgentStatus | None:
    found = await status(bus, cluster)
    return found if found and found.state == wanted and all("watching" in each for each in found.resources.values()) else None


async def first(bus: Bus, stream: str, subject: str, matches: Any) -> Delivery:
    async with asyncio.timeout(20):
        async for delivery in bus.read(stream, [subject], follow=True):
            if matches(delivery):
                return delivery
    raise AssertionError("the stream ended")


def changes(cluster: str = "prod-eu") -> str:
    return CHANGE.filter(cluster=cluster, group="apps", resource="deployments")


def replicas(delivery: Delivery) -> int:
    return int(orjson.loads(delivery.body)["spec"]["replicas"])


@pytest.mark.timeout(90)
async def test_from_change_to_command_to_change(real_cluster, real_namespace, nats_server, bus, tmp_path):
    await prepare(bus)
    config = agent_config(tmp_path / "agent.yaml", real_cluster, real_namespace)
    (tmp_path / "guard.py").write_text(HANDLER)
    with (
        process(nats_server.url, tmp_path / "agent.log", IPE, "agent", "run", "--config", str(config)),
        process(nats_server.url, tmp_path / "handlers.log", IPE, "handlers", "run", str(tmp_path / "guard.py")),
    ):
        await eventually(lambda: _watches(bus, "deployments.apps"), timeout=30)
        made = real_cluster.api.create(f"{APPS}/namespaces/{real_namespace}/deployments", deployment("web", 80))
        uid = made["metadata"]["uid"]

        seen = await first(bus, "IPE_K8S", changes(), lambda each: replicas(each) == 80)
        asked = await first(bus, "IPE_CMD", COMMAND.filter(cluster="prod-eu"), lambda each: True)
        answered = await first(bus, "IPE_GOV", OUTCOME.filter(cluster="prod-eu"), lambda each: True)
        caused = await first(bus, "IPE_K8S", changes(), lambda each: replicas(each) == 50)

    command = Command.model_validate_json(asked.body)
    outcome = Outcome.model_validate_json(answered.body)
    after = real_cluster.api.get(f"{APPS}/namespaces/{real_namespace}/deployments/web")
    assert command.cause == seen.headers["ce-id"]
    assert (outcome.status, outcome.command, outcome.uid) == (Status.APPLIED, command.id, uid)
    assert after["spec"]["replicas"] == 50
    assert caused.headers["ce-id"].split("/")[4:6] == [outcome.uid, outcome.resource_version]
    traces = {each.headers["traceparent"].split("-")[1] for each in (seen, asked, answered)}
    assert len(traces) == 1


async def _watches(bus: Bus, resource: str) -> bool:
    found = await state(bus, "prod-eu", "connected")
    return found is not None and found.resources.get(resource) == "watching" and found.writes


def command_for(uid: str, namespace: str, **changes: Any) -> Command:
    now = SYSTEM.now()
    body = {
        "id": "by-hand-1",
        "handler": "guard",
        "cluster": "prod-eu",
        "target": {"group": "apps", "resource": "deployments", "namespace": namespace, "name": "web", "uid": uid},
        "action": {"verb": "scale", "replicas": 5},
        "reason": "by hand",
        "issued": now,
        "expires": now + timedelta(minutes=1),
    }
    return Command.model_validate(body | changes)


@pytest.mark.timeout(90)
async def test_an_agent_that_is_killed_leaves_a_command_to_the_next(real_cluster, real_namespace, nats_server, bus, tmp_path):
    """SIGKILL with a command waiting: the next agent gets the Lease when it runs out, answers, and nothing ran twice."""
    await prepare(bus)
    config = agent_config(tmp_path / "agent.yaml", real_cluster, real_namespace)
    declaration = HandlerDeclaration(handler="guard", resources=("deployments.apps",), time=SYSTEM.now())
    await (await bus.kv("ipe_handlers")).put("guard", encode(declaration))
    made = real_cluster.api.create(f"{APPS}/namespaces/{real_namespace}/deployments", deployment("web", 3))
    arguments = (IPE, "agent", "run", "--config", str(config))
    with process(nats_server.url, tmp_path / "one.log", *arguments, ends_with=-signal.SIGKILL) as one:
        await eventually(lambda: _watches(bus, "deployments.apps"), timeout=30)
        one.kill()
    command = command_for(made["metadata"]["uid"], real_namespace)
    subject = COMMAND.format(cluster="prod-eu", handler="guard", verb="scale")
    await bus.publish(subject, encode(command), id=command.id)
    with process(nats_server.url, tmp_path / "two.log", *arguments):
        answered = await first(bus, "IPE_GOV", OUTCOME.filter(cluster="prod-eu"), lambda each: True)
        assert Outcome.model_validate_json(answered.body).status is Status.APPLIED
        caused = await first(bus, "IPE_K8S", changes(), lambda each: replicas(each) == 5)
        assert caused.headers["ce-name"] == "web"
    farewell = await status(bus, "prod-eu")
    assert farewell is not None
    assert (farewell.state, farewell.writes) == ("disconnected", False)
    lease = real_cluster.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{real_namespace}/leases/ipe-agent")
    assert lease["spec"].get("holderIdentity", "") == ""


@pytest.mark.timeout(90)
async def test_from_a_kubeconfig_the_agent_only_reads_unless_told(real_cluster, real_namespace, nats_server, bus, tmp_path):
    await prepare(bus)
    config = agent_config(tmp_path / "agent.yaml", real_cluster, real_namespace, act={})
    made = real_cluster.api.create(f"{APPS}/namespaces/{real_namespace}/deployments", deployment("web", 3))
    arguments = (IPE, "agent", "run", "--config", str(config), "--collect", "deployments.apps")
    with process(nats_server.url, tmp_path / "agent.log", *arguments):
        connected = await first(bus, "IPE_GOV", CLUSTER.filter(cluster="prod-eu", state="connected"), lambda each: True)
        assert orjson.loads(connected.body)["resources"] == ["deployments.apps"]
        command = command_for(made["metadata"]["uid"], real_namespace)
        await bus.publish(COMMAND.format(cluster="prod-eu", handler="guard", verb="scale"), encode(command), id=command.id)
        answered = await first(bus, "IPE_GOV", OUTCOME.filter(cluster="prod-eu"), lambda each: True)
    outcome = Outcome.model_validate_json(answered.body)
    assert (outcome.status, outcome.guardrail) == (Status.REFUSED, "read-only")
    assert outcome.result is not None
    assert outcome.result["spec"]["replicas"] == 5
    assert real_cluster.api.get(f"{APPS}/namespaces/{real_namespace}/deployments/web")["spec"]["replicas"] == 3
