"""What tests of the acting side need: a cluster (simulated or real), the streams and buckets, and an actuator between them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson

from ipe_events.agent.actuator import Actuator
from ipe_events.agent.carrier import FREEZE_BUCKET, Carrier
from ipe_events.agent.claims import Claims, digest
from ipe_events.agent.grants import Grant, GrantSet, Mode
from ipe_events.agent.guardrails import Addressee, Rules
from ipe_events.agent.job import Job
from ipe_events.agent.lease import Role
from ipe_events.agent.ledger import LedgerKeeper
from ipe_events.bus.connection import Bus
from ipe_events.clock import SYSTEM
from ipe_events.events.command import Command
from ipe_events.events.outcome import Outcome
from ipe_events.kube.discovery import Discovery
from ipe_events.kube.session import KubeSession
from ipe_events.subjects import COMMAND, OUTCOME
from ipe_events.telemetry.trace import new_trace
from tests.helpers import eventually

JsonObject = dict[str, Any]
APPS = "/apis/apps/v1"
DEPLOYMENT = {"group": "apps", "resource": "deployments"}

_ids = itertools.count(1)


@dataclass
class Place:
    """A cluster under test, reached as a test reaches it: not through the code that it tests.

    Attributes:
        kind: ``fake`` or ``real``.
        session: what the agent uses.
        namespace: to work in.
        call: ``(method, path, body) -> object`` as administrator.
    """

    kind: str
    session: KubeSession
    namespace: str
    call: Callable[..., JsonObject]
    faults: Any = None

    def deployment(self, name: str = "web", **metadata: Any) -> JsonObject:
        labels = {"app": name}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": self.namespace, **metadata},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        }
        return self.call("POST", f"{APPS}/namespaces/{self.namespace}/deployments", body)

    def get(self, name: str = "web", resource: str = "deployments", api: str = APPS) -> JsonObject:
        return self.call("GET", f"{api}/namespaces/{self.namespace}/{resource}/{name}")


def managers(obj: JsonObject) -> set[str]:
    """Who wrote to an object. Controllers may write to it at any time, so its resourceVersion proves nothing."""
    return {entry["manager"] for entry in obj["metadata"].get("managedFields", ())}


class Redactor:
    """Masks one sentinel, so that tests see where redaction is applied."""

    def redact_object(self, obj: JsonObject) -> JsonObject:
        masked: JsonObject = orjson.loads(orjson.dumps(obj).replace(b"s3cr3t", b"hmac:k1:0123456789abcdef"))
        return masked

    def redact_text(self, text: str) -> str:
        return text.replace("s3cr3t", "hmac:k1:0123456789abcdef")


ENFORCE = Grant(
    handler="guard",
    mode=Mode.ENFORCE,
    verbs=("patch", "scale", "suspend", "annotate", "create", "delete", "apply"),
    resources=("*",),
).standing_at("agent.yaml:3")


@dataclass
class Rig:
    """An actuator at work, and the bus on which a test plays the handler."""

    place: Place
    bus: Bus
    cluster: str
    carrier: Carrier
    actuator: Actuator
    written: list[tuple[Any, ...]] = field(default_factory=list)

    def command(self, action: JsonObject, **more: Any) -> JsonObject:
        return command_body(self.place, action, cluster=self.cluster, **more)

    async def publish(self, body: JsonObject | bytes, *, verb: str = "", msg_id: str | None = None, handler: str = "") -> None:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        if isinstance(body, dict):
            verb = verb or body["action"]["verb"]
            handler = handler or body["handler"]
        subject = COMMAND.format(cluster=self.cluster, handler=handler or "guard", verb=verb)
        await self.bus.publish(subject, raw, id=msg_id)

    async def outcomes(self, command: str) -> list[Outcome]:
        found = [
            Outcome.model_validate_json(delivery.body)
            async for delivery in self.bus.read(OUTCOME.stream, [OUTCOME.filter(cluster=self.cluster)])
        ]
        return [outcome for outcome in found if outcome.command == command]

    async def outcome(self, command: str, timeout: float = 15.0) -> Outcome:
        """The outcome of one command, as a handler would wait for it."""
        async with asyncio.timeout(timeout):
            async for delivery in self.bus.read(OUTCOME.stream, [OUTCOME.filter(cluster=self.cluster)], follow=True):
                outcome = Outcome.model_validate_json(delivery.body)
                if outcome.command == command:
                    return outcome
        raise AssertionError("the stream ended")

    async def do(self, action: JsonObject, **more: Any) -> Outcome:
        body = self.command(action, **more)
        await self.publish(body)
        return await self.outcome(body["id"])


def command_body(
    place: Place,
    action: JsonObject,
    *,
    cluster: str = "c1",
    handler: str = "guard",
    target: JsonObject | None = None,
    **more: Any,
) -> JsonObject:
    """A command for the Deployment ``web`` that expires in a minute."""
    now = SYSTEM.now()
    return {
        "id": f"cmd-{next(_ids)}",
        "handler": handler,
        "cluster": cluster,
        "target": {"namespace": place.namespace, "name": "web", **DEPLOYMENT, **(target or {})},
        "action": action,
        "reason": "a test wants it",
        "issued": now.isoformat(),
        "expires": (now + timedelta(minutes=1)).isoformat(),
        **more,
    }


def a_job(place: Place, action: JsonObject, **more: Any) -> Job:
    """The same as a job for a ``Carrier``."""
    return job_of(command_body(place, action, **more))


def job_of(body: JsonObject) -> Job:
    command = Command.model_validate(body)
    addressee = Addressee(command.cluster, command.handler, command.action.verb)
    return Job(command, addressee, digest(orjson.dumps(body)), SYSTEM.monotonic(), new_trace())


async def make_streams(bus: Bus) -> None:
    """The streams and buckets of the design that an agent's acting side needs."""
    for name, subjects in (("IPE_CMD", ["ipe.cmd.>"]), ("IPE_GOV", ["ipe.outcome.>", "ipe.cluster.>"])):
        await bus.js_api(f"STREAM.CREATE.{name}", {"name": name, "subjects": subjects, "storage": "file", "allow_direct": True})
    for bucket in ("ipe_claims", "ipe_ledger", FREEZE_BUCKET, "ipe_handlers", "ipe_agents", "ipe_checkpoints"):
        await bus.kv(bucket, create=True)


async def make_carrier(
    place: Place, bus: Bus, cluster: str, *, rules: Rules | None = None, agent: str = "agent-1", **more: Any
) -> Carrier:
    discovery = Discovery()
    await discovery.load(place.session)
    return Carrier(
        cluster=cluster,
        agent=agent,
        rules=rules or Rules(grants=GrantSet((ENFORCE,))),
        session=more.pop("session", place.session),
        discovery=discovery,
        bus=bus,
        claims=more.pop("claims", None) or await Claims.open(bus, cluster),
        ledger=await LedgerKeeper.open(bus),
        freezes=await bus.kv(FREEZE_BUCKET),
        redactor=Redactor(),
        **({"write_seconds": lambda: 10.0} | more),
    )


@asynccontextmanager
async def acting(
    place: Place, bus: Bus, *, cluster: str = "c1", rules: Rules | None = None, role: Role = Role.HOLDER, **more: Any
) -> AsyncIterator[Rig]:
    """An actuator that answers commands for ``cluster`` until the block ends."""
    written: list[tuple[Any, ...]] = []
    carrier = await make_carrier(place, bus, cluster, rules=rules, on_written=lambda *args: written.append(args), **more)
    actuator = Actuator(cluster, bus, carrier, carrier.outcomes)
    actuator.on_role(role)
    async with AsyncExitStack() as stack:
        task = asyncio.create_task(actuator.run())
        stack.push_async_callback(end, task)
        if role in (Role.HOLDER, Role.VACANT):
            # an outage that a test brings about next must not hit the start
            await eventually(lambda: task.done() or actuator._consumer is not None)
        yield Rig(place, bus, cluster, carrier, actuator, written)


async def end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
