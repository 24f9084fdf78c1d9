"""What survives when the collector, the broker or the cluster's history is lost."""

import asyncio

import pytest

from ipe_events.bus.topology import ensure
from ipe_events.events.cluster import Epoch, Gap
from ipe_events.events.headers import REPLAY_OF
from ipe_events.events.ids import parse_change_id
from ipe_events.testing.fake.cluster import FakeCluster
from tests.helpers import eventually
from tests.integration.collect.rig import CONFIGMAPS, Rig, config_map, seen
from tests.nats import NatsServer


async def _settle(rig: Rig, cluster: FakeCluster) -> set[tuple[str, str, str]]:
    """A first collector that saw three objects and left a resume point and an index behind."""
    expected = {seen(cluster.create(config_map(f"map-{number}")), "added") for number in range(3)}
    async with rig.collecting(flush=True):
        await rig.expect(expected)
    return expected


async def test_a_restart_publishes_what_happened_meanwhile_and_nothing_twice(rig: Rig, cluster: FakeCluster) -> None:
    expected = await _settle(rig, cluster)
    expected.add(seen(cluster.patch("configmaps", "map-0", {"data": {"value": "2"}}), "modified"))
    gone = cluster.get("configmaps", "map-1")
    cluster.delete("configmaps", "map-1")
    expected.add((gone["metadata"]["uid"], str(cluster.resource_version), "deleted"))
    rig.events.clear()
    async with rig.collecting():
        await rig.expect(expected)
    assert not rig.told(Gap)
    assert [change.verb for change in await rig.changes()].count("added") == 3


async def test_deletes_while_down_are_published_when_history_is_compacted(rig: Rig, cluster: FakeCluster) -> None:
    expected = await _settle(rig, cluster)
    gone = cluster.get("configmaps", "map-1")
    cluster.delete("configmaps", "map-1")
    expected.add(seen(cluster.create(config_map("new")), "added"))
    cluster.compact()
    async with rig.collecting():
        gap = await rig.gap("history-expired")
        expected.add((gone["metadata"]["uid"], gap.until, "deleted"))
        await rig.expect(expected)


async def test_a_crash_before_any_snapshot_makes_nothing_twice(rig: Rig, cluster: FakeCluster) -> None:
    expected = {seen(cluster.create(config_map(f"map-{number}")), "added") for number in range(20)}
    never = rig.with_settings(checkpoint_seconds=3600.0)
    async with rig.collecting(settings=never):
        expected.add(seen(cluster.patch("configmaps", "map-0", {"data": {"value": "2"}}), "modified"))
        await rig.expect(expected)
    gone = cluster.get("configmaps", "map-1")
    cluster.delete("configmaps", "map-1")
    async with rig.collecting():
        expected.add((gone["metadata"]["uid"], str(cluster.resource_version), "deleted"))
        await rig.expect(expected)


async def test_a_replayed_dead_letter_is_no_news_of_the_cluster(rig: Rig, cluster: FakeCluster) -> None:
    """Read as news, the old change would bring its object back to life and the next relist would delete it a second time."""
    expected = await _settle(rig, cluster)
    gone = cluster.get("configmaps", "map-1")
    cluster.delete("configmaps", "map-1")
    async with rig.collecting(flush=True):
        expected.add((gone["metadata"]["uid"], str(cluster.resource_version), "deleted"))
        await rig.expect(expected)
    uid = gone["metadata"]["uid"]
    old = await anext(delivery async for delivery in rig.bus.read("IPE_K8S") if uid.encode() in delivery.header_bytes)
    await rig.bus.publish(old.subject, old.body, id="replay/1", headers={"ce-id": old.headers["ce-id"], REPLAY_OF: "IPE_DLQ:1"})
    new = seen(cluster.create(config_map("new")), "added")
    cluster.compact()
    async with rig.collecting():
        await rig.gap("history-expired")

        async def told() -> list[str]:
            ids = [parse_change_id(text) for text, _ in await rig.messages()]
            return [change.verb for change in ids if change.uid in {uid, new[0]}]

        async def is_listed() -> bool:
            return len(await told()) >= 4

        await eventually(is_listed, timeout=15)
        assert await told() == ["added", "deleted", "added", "added"], "added, deleted, its replay, and the new object"


async def test_a_narrowed_selection_is_told_as_left(rig: Rig, cluster: FakeCluster) -> None:
    web = cluster.create(config_map("web", labels={"app": "web"}))
    db = cluster.create(config_map("db", labels={"app": "db"}))
    expected = {seen(web, "added"), seen(db, "added")}
    async with rig.collecting(flush=True):
        await rig.expect(expected)
    async with rig.collecting(settings=rig.with_settings(selections={CONFIGMAPS: ("app=web", "")})):
        expected.add(seen(db, "left"))
        await rig.expect(expected)
        gap = await rig.gap("selection")
    assert gap.resource == "configmaps"


async def test_a_restored_cluster_begins_a_new_epoch(rig: Rig, cluster: FakeCluster) -> None:
    cluster.create(config_map("kept"))
    before = cluster.snapshot()
    async with rig.collecting() as collector:
        cluster.create(config_map("lost"))
        await eventually(lambda: collector.status().objects == {"configmaps": 2})
        highest = cluster.resource_version
        cluster.restore(before)
        epoch = await rig.first(Epoch)
        await rig.gap("restored")
        await eventually(lambda: collector.status().state == "connected")
        assert collector.status().objects == {"configmaps": 1}
        cluster.create(config_map("after"))
        await eventually(lambda: collector.status().objects == {"configmaps": 2})
        await eventually(lambda: _verbs(rig, 2))
    assert epoch.epoch == 2
    assert int(epoch.previous_resource_version) <= highest
    changes = await rig.changes()
    assert [change.verb for change in changes if change.epoch == 1] == ["added", "added"]
    assert sorted(change.verb for change in changes if change.epoch == 2) == ["added", "deleted", "modified"]


async def _verbs(rig: Rig, epoch: int) -> list[str]:
    verbs = [change.verb for change in await rig.changes() if change.epoch == epoch]
    return verbs if len(verbs) == 3 else []


async def test_a_lost_stream_is_a_gap_and_everything_is_published_again(rig: Rig, cluster: FakeCluster) -> None:
    await _settle(rig, cluster)
    await rig.bus.js_api("STREAM.DELETE.IPE_K8S")
    await ensure(rig.bus)
    async with rig.collecting():
        gap = await rig.gap("stream-lost")
        await eventually(lambda: _has(rig, 3))
    assert gap.resource == "configmaps"
    assert {change.verb for change in await rig.changes()} == {"modified"}


async def _has(rig: Rig, count: int) -> bool:
    return len(await rig.changes()) >= count


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_broker_costs_nothing(rig: Rig, cluster: FakeCluster, nats_server: NatsServer, seed: int) -> None:
    expected: set[tuple[str, str, str]] = set()
    async with rig.collecting() as collector:
        for round_ in range(3):
            for number in range(40):
                expected.add(seen(cluster.create(config_map(f"map-{seed}-{round_}-{number}")), "added"))
                if number == 10 + 7 * seed:
                    await asyncio.sleep(0)
                    nats_server.kill()
            await eventually(lambda: not rig.bus.connected)
            nats_server.start()
            await eventually(lambda: rig.bus.connected, timeout=20)
        await rig.expect(expected)
        assert collector.publisher_error is None


async def test_a_missing_stream_holds_everything_and_says_why(rig: Rig, cluster: FakeCluster) -> None:
    expected = {seen(cluster.create(config_map("one")), "added")}
    async with rig.collecting() as collector:
        await rig.expect(expected)
        await rig.bus.js_api("STREAM.DELETE.IPE_K8S")
        later = {seen(cluster.create(config_map(f"later-{number}")), "added") for number in range(5)}
        error = await eventually(lambda: collector.publisher_error)
        assert "ipe bus apply" in str(error)
        await ensure(rig.bus)
        await rig.expect(later)
        await eventually(lambda: collector.publisher_error is None)


async def test_resources_that_are_refused_are_reported_not_hammered(rig: Rig, cluster: FakeCluster) -> None:
    async with rig.collecting("configmaps", "secrets", "leases.coordination.k8s.io", "widgets.example.com") as collector:
        status = collector.status()
    assert status.resources["configmaps"] == "watching"
    assert "secrets: true" in status.resources["secrets"]
    assert "noise" in status.resources["leases.coordination.k8s.io"]
    assert "no such resource" in status.resources["widgets.example.com"]


async def test_what_is_no_longer_wanted_stops(rig: Rig, cluster: FakeCluster) -> None:
    async with rig.collecting("configmaps", "pods") as collector:
        collector.want([CONFIGMAPS])
        await eventually(lambda: set(collector.status().objects) == {"configmaps"})
