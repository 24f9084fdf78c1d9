"""Plan and apply against a real server."""

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import StreamLimits, TopologySettings, apply, check_limits, desired, ensure, plan
from ipe_events.errors import TopologyError


async def test_apply_makes_everything_and_a_second_plan_is_empty(bus: Bus):
    first = await plan(bus)
    assert {step.action for step in first.steps} == {"create"}
    assert not first.destructive
    await apply(bus, first)
    second = await plan(bus)
    assert second.steps == ()
    assert {asset.name for asset in second.unchanged} == {asset.name for asset in desired()}
    assert (await bus.kv("ipe_ledger")).bucket == "ipe_ledger"
    store = await bus.object_store("ipe_index")
    await store.put("cluster/pods", b"x" * 300_000)
    assert await store.get("cluster/pods") == b"x" * 300_000
    assert await store.get("cluster/nodes") is None


async def test_a_shorter_retention_is_refused_unless_allowed(bus: Bus):
    await ensure(bus)
    smaller = desired(TopologySettings(limits={"IPE_GOV": StreamLimits(hours=1, gib=10)}))
    shrink = await plan(bus, smaller)
    assert [(step.action, step.asset.name) for step in shrink.steps] == [("change", "IPE_GOV")]
    changed = {change.field: change for change in shrink.steps[0].changes}
    assert changed["max_age"].destructive
    assert (changed["max_age"].old, changed["max_age"].new) == (30 * 24 * 3600 * 10**9, 3600 * 10**9)
    with pytest.raises(TopologyError, match=r"loses messages: IPE_GOV: max_age .*--allow-destructive"):
        await apply(bus, shrink)
    assert (await bus.stream_info("IPE_GOV"))["config"]["max_age"] == 30 * 24 * 3600 * 10**9
    await apply(bus, shrink, allow_destructive=True)
    assert (await bus.stream_info("IPE_GOV"))["config"]["max_age"] == 3600 * 10**9
    assert (await plan(bus, smaller)).steps == ()


async def test_growing_is_not_destructive_and_keeps_what_we_do_not_set(bus: Bus):
    await ensure(bus)
    config = (await bus.stream_info("IPE_DLQ"))["config"]
    await bus.js_api("STREAM.UPDATE.IPE_DLQ", {**config, "max_msg_size": 4096})
    larger = await plan(bus, desired(TopologySettings(limits={"IPE_DLQ": StreamLimits(hours=60 * 24, gib=6)})))
    assert not larger.destructive
    await apply(bus, larger)
    after = (await bus.stream_info("IPE_DLQ"))["config"]
    assert (after["max_msg_size"], after["max_age"]) == (4096, 60 * 24 * 3600 * 10**9)


async def test_sharding_moves_subjects_and_names_what_is_lost(bus: Bus):
    await ensure(bus)
    await bus.publish("ipe.k8s.a.core.pods.ns.added.0", b"{}")
    sharded = desired(TopologySettings(shards={"eu": ("a", "b")}))
    change = await plan(bus, sharded)
    assert [(step.action, step.asset.name, step.messages) for step in change.steps] == [
        ("delete", "IPE_K8S", 1),
        ("create", "IPE_K8S_eu", 0),
    ]
    with pytest.raises(TopologyError, match="deletes IPE_K8S with 1 messages"):
        await apply(bus, change)
    await apply(bus, change, allow_destructive=True)
    assert (await bus.publish("ipe.k8s.a.core.pods.ns.added.0", b"{}")).stream == "IPE_K8S_eu"


async def test_foreign_streams_are_left_alone(bus: Bus):
    await bus.js_api("STREAM.CREATE.ORDERS", {"name": "ORDERS", "subjects": ["orders.>"]})
    change = await plan(bus)
    assert change.foreign == ("ORDERS",)
    await apply(bus, change)
    assert (await bus.stream_info("ORDERS"))["config"]["subjects"] == ["orders.>"]


async def test_storage_cannot_change_and_says_what_to_do(bus: Bus):
    await bus.js_api("STREAM.CREATE.IPE_CMD", {"name": "IPE_CMD", "subjects": ["ipe.cmd.*.*.*"], "storage": "memory"})
    change = await plan(bus)
    with pytest.raises(TopologyError, match=r"NATS cannot change storage of stream IPE_CMD"):
        await apply(bus, change, allow_destructive=True)


async def test_a_stream_over_eighty_percent_is_reported(bus: Bus):
    await bus.js_api(
        "STREAM.CREATE.IPE_GOV",
        {"name": "IPE_GOV", "subjects": ["g.>"], "max_bytes": 100_000, "max_msgs": 1000, "discard": "old"},
    )
    for _ in range(7):
        await bus.publish("g.a", b"x" * 10_000)
    assert await check_limits(bus) == []
    await bus.publish("g.a", b"x" * 10_000)
    (alarm,) = await check_limits(bus)
    assert (alarm.stream, alarm.limit, alarm.allowed) == ("IPE_GOV", "max_bytes", 100_000)
    assert 0.8 <= alarm.share < 1
    assert await check_limits(bus, ["IPE_GOV", "IPE_NONE"]) == [alarm]
