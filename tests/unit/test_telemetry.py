"""Metrics, traces, logs and the health endpoints."""

import asyncio
import json

import aiohttp
import pytest
import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ipe_events.errors import ConfigError, UsageError
from ipe_events.telemetry import log, metrics, trace
from ipe_events.telemetry.health import LOOP_LAG, Check, HealthServer


@pytest.fixture(autouse=True)
def _own_families(monkeypatch):
    monkeypatch.setattr(metrics, "FAMILIES", {})


def test_cells_reach_the_prometheus_exporter_as_they_are_now():
    events = metrics.counter("ipe_test_events_total", "Events.", ("cluster",))
    events.labels("a").add(3)
    metrics.gauge("ipe_test_depth", "Depth.").labels().set(7)
    assert b'ipe_test_events_total{cluster="a"} 3.0' in metrics.render()
    assert b"ipe_test_depth 7.0" in metrics.render()
    events.labels("a").add()
    assert b'ipe_test_events_total{cluster="a"} 4.0' in metrics.render()


def test_a_histogram_counts_each_observation_in_its_bucket():
    family = metrics.histogram("ipe_test_seconds", "Time.", buckets=(0.1, 1.0))
    for value in (0.1, 0.5, 3.0):
        family.labels().observe(value)
    text = metrics.render().decode()
    assert 'ipe_test_seconds_bucket{le="0.1"} 1.0' in text
    assert 'ipe_test_seconds_bucket{le="1.0"} 2.0' in text
    assert 'ipe_test_seconds_bucket{le="+Inf"} 3.0' in text
    assert "ipe_test_seconds_sum 3.6" in text


def test_a_hostile_number_of_labels_ends_in_one_overflow_cell():
    family = metrics.counter("ipe_test_many_total", "Many.", ("namespace",))
    for number in range(metrics.MAX_LABEL_SETS + 500):
        family.labels(f"ns-{number}").add()
    assert len(family.cells) == metrics.MAX_LABEL_SETS
    assert b'ipe_test_many_total{namespace="(overflow)"} 500.0' in metrics.render()


def test_a_dropped_cell_is_no_longer_exported():
    family = metrics.gauge("ipe_test_up", "Up.", ("cluster",))
    family.labels("gone").set(1)
    family.labels("here").set(1)
    family.drop("gone")
    assert b"gone" not in metrics.render()


@pytest.mark.parametrize("make", [lambda: metrics.counter("ipe_x", "x"), lambda: metrics.gauge("x", "x")])
def test_names_follow_the_rule(make):
    with pytest.raises(UsageError):
        make()


def test_a_name_is_declared_once_and_labels_are_counted():
    family = metrics.counter("ipe_test_once_total", "x", ("a", "b"))
    with pytest.raises(UsageError, match="declared twice"):
        metrics.gauge("ipe_test_once_total", "x")
    with pytest.raises(UsageError, match="has the labels"):
        family.labels("only one")


def test_traceparent_round_trip_and_hostile_ones():
    start = trace.new_trace()
    assert trace.parse_traceparent(start.traceparent) == start
    assert trace.child(start).trace_id == start.trace_id
    for bad in (
        "",
        "00-xyz",
        f"00-{'0' * 32}-{'1' * 16}-01",
        f"00-{'1' * 32}-{'0' * 16}-01",
        start.traceparent + "-x",
        "01" * 30,
    ):
        assert trace.parse_traceparent(bad) is None


def test_spans_are_recorded_under_their_remote_parent(monkeypatch):
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("opentelemetry.sdk.trace.export.BatchSpanProcessor", SimpleSpanProcessor)
    monkeypatch.setattr(trace, "_tracer", None)
    assert trace.configure(exporter)
    parent, other = trace.new_trace(), trace.new_trace()
    with trace.span("handler page", parent, links=[other], attributes={"cluster": "a"}) as place:
        assert place.trace_id == parent.trace_id
    (recorded,) = exporter.get_finished_spans()
    assert f"{recorded.context.span_id:016x}" == place.span_id
    assert recorded.parent is not None
    assert f"{recorded.parent.span_id:016x}" == parent.span_id
    assert f"{recorded.links[0].context.trace_id:032x}" == other.trace_id


def test_without_an_exporter_a_span_still_hands_the_trace_on():
    parent = trace.new_trace()
    with trace.span("x", parent) as place:
        assert place.trace_id == parent.trace_id
        assert place.span_id != parent.span_id


def test_logs_are_json_lines_with_keys(capsys):
    log.configure(level="info", form="json")
    try:
        log.get_logger("ipe_events.test").info("change published", cluster="a")
        log.get_logger("ipe_events.test").debug("not shown")
        captured = capsys.readouterr()
    finally:
        structlog.reset_defaults()
    line = json.loads(captured.err)
    assert (line["event"], line["cluster"], line["module"], line["level"]) == ("change published", "a", "ipe_events.test", "info")
    assert captured.out == ""


def test_a_wrong_log_setting_names_the_variable(monkeypatch):
    monkeypatch.setenv("IPE_LOG_LEVEL", "loud")
    with pytest.raises(ConfigError, match=r"IPE_LOG_LEVEL.*'loud'"):
        log.configure()


async def _get(server: HealthServer, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{server.port}{path}") as response:
        return response.status, await response.text()


async def test_readiness_names_every_failing_check():
    async def slow() -> str:
        await asyncio.Event().wait()
        return ""

    async def broken() -> str:
        raise RuntimeError("no such stream")

    checks: dict[str, Check] = {"bus": lambda: "", "sync": lambda: "2 of 3 clusters synced", "broken": broken}
    async with HealthServer(checks) as server:
        status, text = await _get(server, "/readyz")
        assert status == 503
        assert "[-] sync: 2 of 3 clusters synced" in text
        assert "[-] broken: RuntimeError: no such stream" in text
        assert (await _get(server, "/readyz?verbose"))[1].startswith("[+] bus ok")
        assert await _get(server, "/readyz?exclude=sync&exclude=broken") == (200, "ok\n")
        assert (await _get(server, "/debug/tasks"))[0] == 200


async def test_liveness_fails_only_when_the_loop_is_late():
    async with HealthServer({"bad": lambda: "down"}, max_lag=1.0) as server:
        assert await _get(server, "/livez") == (200, "ok\n")
        LOOP_LAG.labels().set(5.0)
        status, text = await _get(server, "/livez")
        assert (status, text) == (503, "event loop is 5.0 s late\n")
    LOOP_LAG.labels().set(0.0)


async def test_a_taken_port_is_one_clear_error():
    async with HealthServer() as server:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            await HealthServer(port=server.port).start()
