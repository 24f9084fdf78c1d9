"""The parts of the bus that need no server: frames, versions, positions, CloudEvents, plans, sizes."""

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipe_events.bus.cloudevents import headers_for, parse
from ipe_events.bus.delivery import parse_reply, stream_sequence
from ipe_events.bus.frames import encode_headers, parse_headers, parse_status, percent_decode, percent_encode, publish_frame
from ipe_events.bus.size import Fleet, size
from ipe_events.bus.topology import DEFAULT_LIMITS, GIB, StreamLimits, TopologySettings, desired, difference, stream_of_cluster
from ipe_events.bus.version import check_version
from ipe_events.errors import BusError, SchemaError, TopologyError, UsageError
from ipe_events.events.base import Payload
from ipe_events.subjects import TOPICS

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")), max_size=20))
def test_headers_survive_the_wire(headers: dict[str, str]):
    assert parse_headers(encode_headers(headers)) == {name: value.strip() for name, value in headers.items()}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_percent_encoding_is_reversible_and_safe(value: str):
    encoded = percent_encode(value)
    assert percent_decode(encoded) == value
    assert all("!" <= char <= "~" and char != '"' for char in encoded)


@given(st.binary(max_size=200))
def test_any_block_is_parsed_or_refused(block: bytes):
    with contextlib.suppress(SchemaError):  # and nothing else
        assert all(isinstance(value, str) for value in parse_headers(b"NATS/1.0\r\n" + block).values())


@pytest.mark.parametrize(
    ("name", "value"), [("a b", "c"), ("a:", "c"), ("", "c"), ("a", "b\r\nc: d"), ("a", "b\nc"), ("a", "\0")]
)
def test_headers_that_would_break_the_block_are_refused(name: str, value: str):
    with pytest.raises(UsageError):
        encode_headers({name: value})


def test_statuses():
    assert parse_status(b"NATS/1.0 503\r\n\r\n") == (503, "")
    assert parse_status(b"NATS/1.0 409 Consumer Deleted\r\n\r\n") == (409, "Consumer Deleted")
    assert parse_status(b"NATS/1.0\r\na: b\r\n\r\n") == (0, "")
    assert parse_status(b"") == (0, "")
    assert parse_headers(b"NATS/1.0 408 Timeout\r\nNats-Pending-Messages: 3\r\n\r\n") == {"Nats-Pending-Messages": "3"}


def test_frames():
    assert publish_frame(b"a.b", b"", b"", b"x") == b"PUB a.b  1\r\nx\r\n"
    assert publish_frame(b"a", b"r", b"HH", b"x") == b"HPUB a r 2 3\r\nHHx\r\n"
    for subject in (b"", b"a b", b"a\r\nPUB b"):
        with pytest.raises(UsageError):
            publish_frame(subject, b"", b"", b"")


@pytest.mark.parametrize("version", ["2.12.12", "2.12.13", "2.14.3", "2.14.4-RC.1", "2.15.1", "3.0.0", "v2.15.1"])
def test_servers_that_are_new_enough(version: str):
    check_version(version, "nats://x")


@pytest.mark.parametrize("version", ["2.9.0", "2.12.11", "2.12.12-RC.2", "2.13.9", "2.14.2", "2.14.3-beta", "1.4.1"])
def test_servers_that_are_too_old(version: str):
    with pytest.raises(
        BusError, match=r"nats://x: nats-server .* is too old: older ones have known holes .*upgrade to 2\.12\.12"
    ):
        check_version(version, "nats://x")


@pytest.mark.parametrize("version", ["", "latest", "2.15"])
def test_versions_that_cannot_be_read(version: str):
    with pytest.raises(BusError, match="cannot be read"):
        check_version(version, "nats://x")


V1 = b"$JS.ACK.IPE_K8S.drift.2.1201.1187.1795386447571311918.40"
V2 = b"$JS.ACK._.AHASH.IPE_K8S.drift.2.1201.1187.1795386447571311918.40"


@pytest.mark.parametrize("reply", [V1, V2, V2 + b".random"])
def test_positions_in_every_form_of_the_ack_subject(reply: bytes):
    position = parse_reply(reply)
    assert position == ("IPE_K8S", "drift", 2, 1201, 1187, 1795386447571311918, 40)
    assert stream_sequence(reply) == 1201


@pytest.mark.parametrize("reply", [b"", b"_INBOX.x", b"$JS.ACK.S.c.a.b.c.d.e", b"$JS.ACK.S.c.1.2.3.4.5.6"])
def test_what_is_no_ack_subject(reply: bytes):
    with pytest.raises(SchemaError, match=r"no \$JS\.ACK subject"):
        parse_reply(reply)


class Noted(Payload):
    pass


MOMENT = datetime(2026, 11, 22, 21, 51, 9, 123, tzinfo=UTC)


def test_cloudevents_round_trip():
    headers = headers_for(
        Noted,
        id="a/b c",
        source="/handlers/ipe-drift",
        subject='ns/pods/"ü"',
        time=MOMENT,
        trace="00-1-2-01",
        extensions={"cause": "x", "hops": 2, "name": ""},
    )
    assert headers["Nats-Msg-Id"] == headers["ce-id"] == "a/b%20c"
    assert "ce-name" not in headers
    attributes = parse(parse_headers(encode_headers(headers)))
    assert (attributes.id, attributes.source, attributes.type) == ("a/b c", "/handlers/ipe-drift", "dev.ipe.event.noted.v1")
    assert (attributes.subject, attributes.time, attributes.trace) == ('ns/pods/"ü"', MOMENT, "00-1-2-01")
    assert attributes.extensions == {"cause": "x", "hops": "2"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ce-id": ""}, "ce-id missing"),
        ({"ce-specversion": "0.3"}, "version '0.3'"),
        ({"ce-time": "yesterday"}, "no RFC 3339 time"),
        ({"ce-time": "2026-11-22T21:51:09"}, "no time zone"),
    ],
)
def test_what_is_no_cloudevent(change: dict[str, str], text: str):
    with pytest.raises(SchemaError, match=text):
        parse(headers_for(Noted, id="1", source="/x", time=MOMENT) | change)


def existing(*configs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {config["name"]: {"config": config, "state": {"messages": 5}} for config in configs}


def test_every_topic_with_a_stream_is_kept_by_exactly_one():
    kept = [subject for asset in desired() if asset.kind == "stream" for subject in asset.config["subjects"]]
    assert sorted(kept) == sorted(topic.wildcard for topic in TOPICS if topic.stream)
    assert {asset.name for asset in desired() if asset.kind == "stream"} == set(DEFAULT_LIMITS)


def test_what_the_server_leaves_out_is_no_difference():
    configs = [{key: value for key, value in asset.config.items() if value not in ("", 0, False)} for asset in desired()]
    assert difference(desired(), existing(*configs)).steps == ()


@pytest.mark.parametrize(
    ("field", "old", "destructive"),
    [
        ("max_age", 0, True),
        ("max_age", 1, False),
        ("max_bytes", -1, True),
        ("max_bytes", 1, False),
        ("max_msgs", 5, False),
        ("subjects", ["ipe.cmd.*.*.*", "more.>"], True),
        ("subjects", [], False),
        ("storage", "memory", True),
        ("num_replicas", 3, False),
        ("duplicate_window", 1, False),
    ],
)
def test_which_changes_lose_messages(field: str, old: Any, destructive: bool):
    (asset,) = (asset for asset in desired() if asset.name == "IPE_CMD")
    plan = difference([asset], existing({**asset.config, field: old}))
    (change,) = plan.steps[0].changes
    assert (change.field, change.old, change.destructive) == (field, old, destructive)
    assert bool(plan.destructive) is destructive


def test_shards():
    settings = TopologySettings(
        shards={"eu": ("a", "b.c")},
        clusters=("d",),
        limits={"IPE_K8S_eu": StreamLimits(hours=1), "IPE_K8S": StreamLimits(hours=2)},
    )
    shards = {asset.name: asset.config for asset in desired(settings) if asset.name.startswith("IPE_K8S")}
    assert shards["IPE_K8S_eu"]["subjects"] == ["ipe.k8s.a.*.*.*.*.*", "ipe.k8s.b=2Ec.*.*.*.*.*"]
    assert shards["IPE_K8S"]["subjects"] == ["ipe.k8s.d.*.*.*.*.*"]
    assert (shards["IPE_K8S_eu"]["max_age"], shards["IPE_K8S"]["max_age"]) == (3600 * 10**9, 7200 * 10**9)
    assert [stream_of_cluster(settings, name) for name in ("a", "d")] == ["IPE_K8S_eu", "IPE_K8S"]


def test_settings_that_contradict_themselves():
    with pytest.raises(ValueError, match="in the shards 'eu' and 'us'"):
        TopologySettings(shards={"eu": ("a",), "us": ("a",)})
    with pytest.raises(TopologyError, match="in a shard and in IPE_K8S: a"):
        desired(TopologySettings(shards={"eu": ("a",)}, clusters=("a",)))
    with pytest.raises(TopologyError, match="limits for unknown streams IPE_NONE"):
        desired(TopologySettings(limits={"IPE_NONE": StreamLimits(hours=1)}))


def test_a_small_disk_gets_small_streams():
    small = desired(TopologySettings.for_disk(20 * GIB))
    total = sum(asset.config["max_bytes"] for asset in small if asset.kind == "stream")
    assert 9 * GIB < total <= 10.1 * GIB
    assert desired(TopologySettings.for_disk(10_000 * GIB)) == desired()


def test_the_deduplication_window_is_never_longer_than_the_retention():
    for asset in desired(TopologySettings(dedup_minutes=600)):
        if asset.kind == "stream":
            assert asset.config["duplicate_window"] <= asset.config["max_age"]


def test_size_of_a_fleet():
    large = size(
        Fleet(clusters=200, objects=10_000, namespaces=100, resources=15, events_per_second=2_000, handlers=5, replicas=3)
    )
    assert large.subjects == 200 * 1500 * 3
    assert large.shards == 2
    assert large.stored_events == 2_000 * 72 * 3600
    assert large.disk_bytes_total == 3 * large.disk_bytes
    assert large.agent_cores == pytest.approx(0.07)
    assert size(Fleet(clusters=1, objects=10)).subjects == 30
    with pytest.raises(UsageError, match="clusters is 0"):
        Fleet(clusters=0)


def test_the_measured_case_comes_out_as_measured():
    """800,000 subjects took 423 MiB."""
    fleet = Fleet(clusters=80, objects=10_000, namespaces=250, resources=40, events_per_second=1, dedup_minutes=0.001)
    sized = size(fleet)
    measured = sized.memory_bytes - (sized.relist_events + 1) * 250
    assert sized.subjects == 2_400_000
    assert measured / (1 << 20) == pytest.approx(45 + 3 * (423 - 45), rel=0.02)
