"""A secret lies in a cluster wherever secrets lie, everything that can fail fails while quoting it, and it leaves on no surface.

The surfaces: all messages of all streams (headers, bodies, buckets, the object store, dead letters), every answer of the agent's
services, outcomes, logs of ours and of the libraries at debug level, spans, metrics, and what the command line prints.
"""

import asyncio
import base64
import logging
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ipe_events import Change, Event, Reject, handler
from ipe_events.agent.app import run_agent
from ipe_events.agent.config import parse_config
from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import ensure
from ipe_events.declaration import declaration_of
from ipe_events.errors import ServiceError
from ipe_events.events.codec import decode
from ipe_events.events.outcome import Outcome, Status
from ipe_events.events.registry import AgentStatus
from ipe_events.runtime.app import HandlerApp
from ipe_events.subjects import AGENT_SERVICE, COMMAND, OUTCOME
from ipe_events.telemetry import log, metrics, trace
from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.fake.status import StatusError
from ipe_events.testing.faults import Fault
from tests.helpers import eventually
from tests.integration.act.support import Place, command_body
from tests.integration.cli.conftest import Ipe

SECRET = "hunter2sentinel"
"""Looks like a name on purpose: nothing but its place tells that it is a secret."""
ENCODED = base64.b64encode(SECRET.encode()).decode()
NEEDLES = (SECRET.encode(), ENCODED.encode(), ENCODED.rstrip("=").encode())
CLUSTER = "prod-eu"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
MANIFEST = orjson.dumps({"kind": "Secret", "data": {"password": ENCODED}, "stringData": {"p": SECRET}}).decode()

CONFIG = """
apiVersion: ipe.dev/v1alpha1
kind: AgentConfig
clusters: {{name: prod-eu, kubeconfig: {kubeconfig}}}
heartbeat: 1s
collect:
  resources: [secrets, configmaps, deployments.apps]
  always: [secrets, configmaps, deployments.apps]
  secrets: true
lease: {{namespace: default}}
act: {{writes: true}}
grants:
- handler: guard
  mode: enforce
  verbs: [patch, scale, annotate, delete]
  resources: [secrets, configmaps, deployments.apps]
  namespaces: ["default"]
  read: [secrets]
"""


@dataclass(kw_only=True)
class Quoting(Fault):
    """An API server whose refusal quotes what it was working on."""

    code: int = 422
    message: str = ""

    async def before(self, call: object) -> None:
        raise StatusError(self.code, "Invalid" if self.code == 422 else "InternalError", self.message)


REFUSALS = [
    f'admission webhook "pw.example" denied the request: password "{SECRET}" is weak',
    f'Secret "db" is invalid: data[password]: Invalid value: "{SECRET}": must be longer',
    f'Pod "p" is invalid: spec: Forbidden: may not change\n core.PodSpec{{Env: {{{{Value: "{SECRET}"}}}}}}',
    f'Deployment.apps "web" is invalid: Invalid value: v1.Labels{{"app":"{SECRET}"}}: field is immutable',
    f"metadata.annotations[{LAST_APPLIED}]: {MANIFEST}",
    f'Internal error occurred: cannot decode "{ENCODED}"',
]


def fill(cluster: FakeCluster) -> None:
    """Put the secret into every place that redaction knows."""
    annotations = {LAST_APPLIED: MANIFEST}
    nested = orjson.dumps({"metadata": {"annotations": annotations}}).decode()
    malformed = f'{{"annotations":{{"{LAST_APPLIED}":"{SECRET}'
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "db", "annotations": annotations | {"tool/copy": SECRET}},
    }
    cluster.create(secret | {"data": {"password": ENCODED}})
    for name, value in (("nested", nested), ("twice", orjson.dumps({"m": nested}).decode()), ("malformed", malformed)):
        metadata = {"name": name, "annotations": annotations}
        cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"manifest": value}})
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels, "annotations": annotations}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    cluster.create(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "annotations": annotations}, "spec": spec}
    )


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """Everything that was logged, by us and by the libraries, at debug level; and the spans."""
    caplog.set_level(logging.DEBUG)
    log.configure(level="debug", form="json")
    yield lambda: "".join(capfd.readouterr()) + caplog.text
    structlog.reset_defaults()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_tracer", provider.get_tracer("test"))
    return exporter


@asynccontextmanager
async def agent(bus: Bus, nats_server: Any, cluster: FakeCluster, folder: Path) -> AsyncIterator[None]:
    text = CONFIG.format(kubeconfig=cluster.kubeconfig(folder / "kubeconfig"))
    stop = asyncio.Event()
    task = asyncio.create_task(run_agent(parse_config(text, "agent.yaml"), nats_server.settings, stop=stop))

    async def ready() -> bool:
        entry = await (await bus.kv("ipe_agents")).get(CLUSTER)
        status = None if entry is None else decode(AgentStatus, entry.value)
        return status is not None and status.state == "connected" and status.writes

    try:
        await eventually(ready, timeout=20)
        yield
    finally:
        stop.set()
        await task


async def test_a_secret_of_the_cluster_leaves_on_no_surface(
    nats_server: Any, bus: Bus, tmp_path: Path, said: Any, spans: InMemorySpanExporter, home: dict[str, str]
) -> None:
    await ensure(bus)
    surfaces: dict[str, bytes] = {}
    async with FakeCluster(CLUSTER) as cluster:
        fill(cluster)
        place = Place("fake", None, "default", lambda *_: {}, cluster.faults)  # type: ignore[arg-type]  # only names are used
        async with agent(bus, nats_server, cluster, tmp_path), rejecting(nats_server) as rejected:
            surfaces |= await ask_everything(bus, cluster, place)
            surfaces |= await command_everything(bus, cluster, place)
            await eventually(lambda: len(rejected) >= 5)
    surfaces |= {f"stream {name}": text async for name, text in stored(bus)}
    surfaces |= await printed(Ipe(home | {"IPE_NATS_URL": nats_server.url}))
    surfaces["logs"] = said().encode()
    surfaces["spans"] = "".join(span.to_json() for span in spans.get_finished_spans()).encode()
    surfaces["metrics"] = metrics.render()
    empty = [name for name, text in surfaces.items() if not text]
    assert not empty, "nothing was looked at there"
    leaks = [name for name, text in surfaces.items() if any(needle in text for needle in NEEDLES)]
    assert not leaks, {name: _around(surfaces[name]) for name in leaks}


def _around(text: bytes) -> bytes:
    at = min(at for needle in NEEDLES if (at := text.find(needle)) >= 0)
    return text[max(0, at - 300) : at + 60]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "NO_COLOR": "1"}


@asynccontextmanager
async def rejecting(nats_server: Any) -> AsyncIterator[list[str]]:
    """A handler that gives up on everything and says what it got."""
    seen: list[str] = []

    @handler(on=["secrets", "configmaps", "deployments.apps"], start="all")
    async def clumsy(event: Event[Change]) -> None:
        seen.append(event.payload.name)
        raise Reject(f"cannot handle {event.payload.object}")

    declared = declaration_of(clumsy)
    assert declared is not None
    async with HandlerApp([declared], nats_server.settings):
        yield seen


async def ask_everything(bus: Bus, cluster: FakeCluster, place: Place) -> dict[str, bytes]:
    """Every question, answered and refused."""
    found: dict[str, bytes] = {}

    async def ask(name: str, verb: str, question: dict[str, Any]) -> None:
        subject = AGENT_SERVICE.format(cluster=CLUSTER, caller="guard", verb=verb)
        try:
            replies = [
                reply.body async for reply in bus.request_many(subject, orjson.dumps(question), until=lambda _: verb != "list")
            ]
            found[name] = b"".join(replies)
        except ServiceError as error:
            found[name] = f"{error!r} {error}".encode()

    for resource, name in (("secrets", "db"), ("configmaps", "nested"), ("deployments.apps", "web")):
        place_of = {"resource": resource, "namespace": "default"}
        for number, message in enumerate((*REFUSALS, "")):
            if message:
                cluster.faults.add(Quoting(on="get", resource=resource.partition(".")[0], message=message))
            await ask(f"get {resource} {number}", "get", place_of | {"name": name})
        cluster.faults.add(Quoting(on="list", resource=resource.partition(".")[0], message=REFUSALS[0]))
        await ask(f"list {resource} refused", "list", place_of)
        await ask(f"list {resource}", "list", place_of)
        await ask(f"snapshot {resource}", "snapshot", place_of | {"request": f"r-{name}"})
        assert b"items" in found[f"list {resource}"]
    await ask("whoami", "whoami", {})
    patch = _patch(place, "secrets", "db", "/metadata/labels", {"a": "b"})
    await ask("dryrun", "dryrun", patch)
    assert b"hmac:" in found["dryrun"], found["dryrun"]
    cluster.faults.add(Quoting(on="patch", message=REFUSALS[0]))
    await ask("dryrun refused", "dryrun", patch)
    return found


def _patch(place: Place, resource: str, name: str, path: str, value: Any, **more: Any) -> dict[str, Any]:
    group = "apps" if resource == "deployments" else ""
    action = {"verb": "patch", "operations": [{"op": "add", "path": path, "value": value}]}
    return command_body(place, action, cluster=CLUSTER, target={"group": group, "resource": resource, "name": name}, **more)


async def command_everything(bus: Bus, cluster: FakeCluster, place: Place) -> dict[str, bytes]:
    """Commands that are applied, tried, refused, unanswered and postponed."""
    commands = [
        _patch(place, "secrets", "db", "/metadata/labels", {"a": "c"}),
        _patch(place, "secrets", "db", "/metadata/labels", {"a": "d"}, dry_run=True),
        _patch(place, "secrets", "db", "/metadata/labels", {"a": "e"}, precondition={"values": {"/data/password": "else"}}),
    ]
    found: dict[str, bytes] = {}
    for command in commands:
        found[f"outcome {command['id']}"] = await _carry(bus, command)
    for code in (422, 500):
        for message in REFUSALS:
            cluster.faults.add(Quoting(on="patch", resource="configmaps", code=code, message=message))
            command = _patch(place, "configmaps", "nested", "/metadata/labels", {"a": "f"})
            found[f"outcome {command['id']} {code}"] = body = await _carry(bus, command)
            assert decode(Outcome, body).status in (Status.FAILED, Status.UNKNOWN, Status.REFUSED), body
    cluster.faults.add(Quoting(on="get", resource="configmaps", code=500, message=REFUSALS[-1]))
    postponed = _patch(place, "configmaps", "twice", "/metadata/labels", {"a": "g"})
    found["outcome postponed"] = await _carry(bus, postponed)
    assert decode(Outcome, found["outcome postponed"]).status is Status.APPLIED
    return found


async def _carry(bus: Bus, command: dict[str, Any]) -> bytes:
    subject = COMMAND.format(cluster=CLUSTER, handler="guard", verb=command["action"]["verb"])
    await bus.publish(subject, orjson.dumps(command))
    async with asyncio.timeout(20):
        async for delivery in bus.read(OUTCOME.stream, [OUTCOME.filter(cluster=CLUSTER)], follow=True):
            if decode(Outcome, delivery.body).command == command["id"]:
                return delivery.body
    raise AssertionError("the stream ended")


async def stored(bus: Bus) -> AsyncIterator[tuple[str, bytes]]:
    """Every stream with messages: buckets and object stores are streams as well."""
    names = (await bus.js_api("STREAM.NAMES"))["streams"]
    assert {"IPE_K8S", "IPE_GOV", "IPE_DLQ", "IPE_SNAP", "KV_ipe_claims", "OBJ_ipe_index"} <= set(names)
    for name in names:
        if not (await bus.stream_info(name))["state"]["messages"]:
            continue
        parts = []
        async for message in bus.read(name):
            parts.append(b"\n".join((message.subject.encode(), message.header_bytes, message.body)))
            with suppress(zlib.error):
                parts.append(zlib.decompress(message.body.partition(b"\n")[2]))
        yield name, b"\n".join(parts)


async def printed(ipe: Ipe) -> dict[str, bytes]:
    """What the command line prints of all that."""
    found: dict[str, bytes] = {}

    async def run(*arguments: str) -> str:
        done = await ipe(*arguments)
        assert done.code == 0, done
        found["ipe " + " ".join(arguments)] = (done.out + done.err).encode()
        return done.out

    for form in ("wide", "json", "yaml"):
        await run("events", "list", "--limit", "0", "-o", form)
        await run("commands", "list", "--limit", "0", "-o", form)
        await run("clusters", "list", "-o", form)
        await run("dlq", "list", "-o", form)
    events = orjson.loads(await run("events", "list", "--limit", "0", "-o", "json"))["items"]
    for event in events[:10]:
        await run("events", "show", str(event["id"]), "-o", "yaml")
    letters = orjson.loads(await run("dlq", "list", "-o", "json"))["items"]
    assert letters
    await run("dlq", "show", str(letters[0]["ref"]), "-o", "yaml")
    commands = orjson.loads(await run("commands", "list", "-o", "json"))["items"]
    await run("commands", "show", str(commands[0]["id"]))
    return found
