"""SIGKILL around effects: a handler between what it publishes and its acknowledgement, an agent around a write.

The death comes from inside: the handler's file and the agent's starter hold a trap that ends their own process with SIGKILL at
one exact step, the first time only. What the parent then starts again is the plain program.
"""

import sys
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import yaml

from ipe_events.bus.connection import Bus
from ipe_events.clock import SYSTEM
from ipe_events.errors import BusError
from ipe_events.events.codec import decode, encode
from ipe_events.events.command import Command, Patch, PatchOperation
from ipe_events.events.headers import header
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.refs import ObjectRef
from ipe_events.subjects import COMMAND
from ipe_events.testing.fake.cluster import FakeCluster
from tests.chaos.stage import CLUSTER_NAME, IPE, SETTLE_SECONDS, Stage
from tests.helpers import eventually

HANDLER = '''
"""Caps replicas, and says so."""

import os
import signal

from ipe_events import Change, Commands, Event, handler
from ipe_events.bus.delivery import Delivery
from ipe_events.events import Finding, Severity
from ipe_events.runtime import consumption

consumption.ACK_WAIT = 2.0  # what a dead handler held comes again this soon
TRAP = {trap!r}


class Capped(Finding):
    """A cap."""


def die_once(*_):
    if not os.path.exists(TRAP):
        open(TRAP, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)


{arm}


@handler(on="deployments.apps", start="all")
async def guard(event: Event[Change], commands: Commands) -> Capped | None:
    if event.payload.object["spec"]["replicas"] <= 50:
        return None
    await commands.patch(event.payload, {{"/spec/replicas": 50}}, reason="cap 50", expires="10m")
    {between}
    return Capped(
        cluster=event.payload.cluster,
        subject=event.payload.ref,
        severity=Severity.INFO,
        message="capped",
        evidence=(event.meta.id,),
    )
'''
DEATHS = {
    "before the acknowledgement": ("ack = Delivery.ack\nDelivery.ack = lambda self: (die_once(), ack(self))", "pass"),
    "between two outputs": ("", "die_once()"),
}
AGENT = '''
"""``ipe``, with or without a trap."""

import os
import signal

from ipe_events.agent import actuator
from ipe_events.agent.claims import Claims
from ipe_events.cli.main import main
from ipe_events.kube import write


actuator.ACK_WAIT = 1.0  # what a dead agent held comes again this soon


async def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

{arm}

main()
'''
STEPS = {
    # the step at which the agent dies → (trap, statuses that are true afterwards, writes that must have happened)
    "between claim and write": ("write.send = die", {Status.UNKNOWN}, 0),
    "between write and outcome": ("Claims.update = die", {Status.APPLIED}, 1),
}


def deployment(replicas: int) -> dict[str, Any]:
    """A Deployment ``web``."""
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec}


def config(stage: Stage, **more: Any) -> str:
    """An agent that may do what the handler ``guard`` asks for."""
    grant = {"handler": "guard", "mode": "enforce", "verbs": ["patch"], "resources": ["deployments.apps"]}
    document = {
        "apiVersion": "ipe.dev/v1alpha1",
        "kind": "AgentConfig",
        "clusters": {"name": stage.cluster, "kubeconfig": str(stage.kubeconfig)},
        "collect": {"always": ["deployments.apps", "configmaps"]},
        "grants": [grant],
        "act": {"writes": True},
        "lease": {"namespace": "default", "duration": "1s"},
        **more,
    }
    path = stage.folder / "agent.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


async def ids(bus: Bus, stream: str, subject: str) -> Counter[str]:
    """How often each id is in a stream."""
    return Counter([header(each.header_bytes, b"ce-id") async for each in bus.read(stream, [subject])])


async def commands(bus: Bus) -> list[Command]:
    """Every command in its stream."""
    return [decode(Command, each.body) async for each in bus.read("IPE_CMD", [COMMAND.wildcard])]


async def outcomes(bus: Bus) -> list[Outcome]:
    """Every outcome in its stream."""
    return [decode(Outcome, each.body) async for each in bus.read("IPE_GOV", ["ipe.outcome.>"])]


async def gone(child: Any) -> None:
    """Wait until a process has died in its trap."""
    await eventually(lambda: not child.running, timeout=SETTLE_SECONDS, interval=0.05)


@pytest.fixture
def environment(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line needs to find the bus."""
    monkeypatch.setenv("IPE_NATS_URL", stage.nats.url)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("death", "broker_too"),
    [("before the acknowledgement", False), ("before the acknowledgement", True), ("between two outputs", False)],
    ids=["acknowledgement", "acknowledgement and broker", "outputs"],
)
async def test_a_handler_killed_around_its_outputs_publishes_them_once(
    stage: Stage, bus: Bus, cluster: FakeCluster, death: str, *, broker_too: bool
) -> None:
    """The same event comes again and derives the same ids; the agent then writes once and answers once."""
    arm, between = DEATHS[death]
    file = stage.folder / "guard.py"
    file.write_text(HANDLER.format(trap=str(stage.folder / "died"), arm=arm, between=between))
    agent = stage.child("agent", IPE, "agent", "run", "--config", config(stage))
    first = stage.child("handler", IPE, "handlers", "run", str(file))
    with stage.running(agent), stage.running(first):
        cluster.create(deployment(80))
        await gone(first)
        assert (stage.folder / "died").exists()
        if broker_too:
            stage.nats.kill()
            stage.nats.start()
        with stage.running(stage.child("handler", IPE, "handlers", "run", str(file))):
            await eventually(lambda: _quiet(stage), timeout=45, interval=0.2)
    asked, answered = await commands(bus), await outcomes(bus)
    assert len(asked) == 1, "the command must be there once"
    assert list((await ids(bus, "IPE_GOV", "ipe.finding.>")).values()) == [1]
    assert [(each.command, each.status) for each in answered] == [(asked[0].id, Status.APPLIED)]
    assert cluster.get("deployments.apps", "web")["spec"]["replicas"] == 50
    assert cluster.get("deployments.apps", "web")["metadata"]["generation"] == 2, "one write"


async def _quiet(stage: Stage) -> bool:
    """Whether everything that must come has come, and nothing is left to be handled."""
    with suppress(BusError):
        done = await ids(stage.bus, "IPE_GOV", "ipe.finding.>") and await outcomes(stage.bus)
        info = await stage.bus.js_api("CONSUMER.INFO.IPE_K8S.guard")
        return bool(done) and await stage.messages() >= 2 and not info["num_ack_pending"] and not info["num_pending"]
    return False


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("step", STEPS)
async def test_an_agent_killed_around_a_write_writes_once_at_most(
    stage: Stage, bus: Bus, cluster: FakeCluster, step: str
) -> None:
    """The next agent reads back and answers once; it never writes."""
    arm, statuses, writes = STEPS[step]
    made = cluster.create(deployment(80))
    trapped, plain = stage.folder / "trapped.py", stage.folder / "plain.py"
    trapped.write_text(AGENT.format(arm=arm))
    plain.write_text(AGENT.format(arm=""))
    now = SYSTEM.now()
    command = Command(
        id="cap-web",
        handler="guard",
        cluster=stage.cluster,
        target=ObjectRef(group="apps", resource="deployments", namespace="default", name="web", uid=made["metadata"]["uid"]),
        action=Patch(operations=(PatchOperation(op="replace", path="/spec/replicas", value=50),)),
        reason="cap 50",
        issued=now,
        expires=now + timedelta(minutes=5),
    )
    await bus.publish(COMMAND.format(cluster=stage.cluster, handler="guard", verb="patch"), encode(command), id=command.id)
    dying = stage.child("agent", sys.executable, str(trapped), "agent", "run", "--config", config(stage))
    with stage.running(dying):
        await gone(dying)
    assert not await outcomes(bus)
    with stage.running(stage.child("agent", sys.executable, str(plain), "agent", "run", "--config", config(stage))):
        await eventually(lambda: outcomes(bus), timeout=45, interval=0.1)
        await eventually(lambda: _acknowledged(bus), timeout=SETTLE_SECONDS, interval=0.1)
    (outcome,) = await outcomes(bus)
    assert (outcome.command, {outcome.status}) == (command.id, statuses), outcome
    assert cluster.get("deployments.apps", "web")["metadata"]["generation"] == 1 + writes


async def _acknowledged(bus: Bus) -> bool:
    info = await bus.js_api(f"CONSUMER.INFO.IPE_CMD.act-{CLUSTER_NAME}")
    return not info["num_ack_pending"] and not info["num_pending"]
