"""One cause, one trace: change → handler → command → outcome and the change that it made, as recorded spans."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ipe_events import Change, Commands, Event, handler
from ipe_events.agent.app import run_agent
from ipe_events.agent.config import parse_config
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.declaration import Declared, declaration_of
from ipe_events.events import AgentStatus, Outcome
from ipe_events.events.codec import decode
from ipe_events.runtime.app import HandlerApp
from ipe_events.telemetry import trace
from ipe_events.testing import change
from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.testbus import codec_headers
from tests.helpers import eventually
from tests.nats import NatsServer

AGENT = """
apiVersion: ipe.dev/v1alpha1
kind: AgentConfig
heartbeat: 1s
clusters: {{kubeconfig: {}}}
act: {{writes: true}}
lease: {{namespace: default}}
grants:
- {{handler: guard, mode: enforce, verbs: [patch], resources: [deployments.apps], namespaces: [default]}}
"""


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace, "_tracer", None)
    monkeypatch.setattr("opentelemetry.sdk.trace.export.BatchSpanProcessor", SimpleSpanProcessor)
    trace.configure(exporter)
    return exporter


def deployment(replicas: int) -> dict[str, Any]:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


async def writing(bus: Bus, cluster: str) -> bool:
    entry = await (await bus.kv("ipe_agents", create=True)).get(cluster)
    return entry is not None and decode(AgentStatus, entry.value).writes


async def test_a_change_and_all_that_follows_from_it_are_one_trace(
    nats_server: NatsServer, bus: Bus, tmp_path: Path, spans: InMemorySpanExporter
):
    await topology.ensure(bus)
    first: list[str] = []
    told: list[Outcome] = []
    seen: list[int] = []

    @handler(on="deployments.apps", start="all")
    async def guard(event: Event[Change], commands: Commands) -> None:
        if event.payload.object["spec"]["replicas"] > 50:
            first.append(event.meta.trace)
            await commands.patch(event.payload, {"/spec/replicas": 50}, reason="cap 50", expires="10m")

    @handler
    async def witness(outcome: Outcome) -> None:
        told.append(outcome)

    @handler(on="deployments.apps", start="all")
    async def observer(event: Event[Change], commands: Commands) -> None:
        seen.append(event.payload.object["spec"]["replicas"])

    declared = [one for one in map(declaration_of, (guard, witness, observer)) if isinstance(one, Declared)]
    async with FakeCluster("c1") as cluster, HandlerApp(declared, nats_server.settings):
        stop = asyncio.Event()
        config = parse_config(AGENT.format(cluster.kubeconfig(tmp_path / "kubeconfig")))
        agent = asyncio.create_task(run_agent(config, nats_server.settings, stop=stop))
        try:
            await eventually(lambda: writing(bus, "c1"), timeout=20)
            cluster.create(deployment(99))
            await eventually(lambda: told, timeout=20)
            assert told[0].status == "applied", (told[0].guardrail, told[0].reason)
            await eventually(lambda: seen == [99, 50])
            await eventually(lambda: len(spans.get_finished_spans()) >= 6)
        finally:
            stop.set()
            await agent

    recorded = spans.get_finished_spans()
    cause = trace.parse_traceparent(first[0])
    assert cause is not None
    (command,) = (span for span in recorded if span.name == "command patch")
    (deciding,) = (span for span in recorded if command.parent is not None and ids(span)[1] == command.parent.span_id)
    assert deciding.name == "handler guard"
    assert deciding.parent is not None
    assert (deciding.parent.trace_id, deciding.parent.span_id) == (int(cause.trace_id, 16), int(cause.span_id, 16))
    assert {span.name for span in recorded if span.parent is not None and span.parent.span_id == ids(command)[1]} == {
        "handler guard",  # saw the change that the command made
        "handler observer",
        "handler witness",  # got the outcome
    }
    assert {ids(span)[0] for span in recorded} == {int(cause.trace_id, 16)}


async def test_a_batch_is_a_step_of_its_first_event_and_linked_to_the_others(
    nats_server: NatsServer, bus: Bus, spans: InMemorySpanExporter
):
    await topology.ensure(bus)
    traces: list[str] = []

    @handler(on="pods", start="all", batch=3)
    async def batched(events: list[Event[Change]]) -> None:
        traces.extend(event.meta.trace for event in events)

    for name in "abc":
        one = change({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop"}})
        headers = codec_headers(one.header_bytes) | {"traceparent": trace.new_trace().traceparent}
        await bus.publish(one.subject, one.body, id=one.id, headers=headers)
    declared = declaration_of(batched)
    assert declared is not None
    async with HandlerApp([declared], nats_server.settings):
        await eventually(lambda: len(traces) == 3)
        await eventually(lambda: spans.get_finished_spans())
    recorded = spans.get_finished_spans()
    parents = [span.parent.span_id for span in recorded if span.parent is not None]
    linked = [link.context.span_id for span in recorded for link in span.links]
    places = [trace.parse_traceparent(text) for text in traces]
    assert sorted(parents + linked) == sorted(int(place.span_id, 16) for place in places if place is not None)
    assert len(parents) == len(recorded)
