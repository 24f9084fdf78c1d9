"""What a collector publishes of a healthy cluster, and how it takes each fault of the connection."""

import asyncio

import pytest

from ipe_events.events.cluster import Connected, Disconnected, Heartbeat, Stale
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import READ_SIZE, KubeSession
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.faults import (
    FailPage,
    Fault,
    Gone,
    HalfLine,
    InternalError,
    Reset,
    Stall,
    TooLargeResourceVersion,
    TooManyRequests,
)
from tests.helpers import eventually
from tests.integration.collect.rig import CONFIGMAPS, Rig, config_map, seen


async def test_every_change_is_published_once_with_its_envelope(rig: Rig, cluster: FakeCluster) -> None:
    first = cluster.create(config_map("first"))
    expected = {seen(first, "added")}
    async with rig.collecting() as collector:
        expected.add(seen(cluster.create(config_map("second")), "added"))
        expected.add(seen(cluster.patch("configmaps", "second", {"data": {"value": "2"}}), "modified"))
        cluster.delete("configmaps", "first")
        expected.add((first["metadata"]["uid"], str(cluster.resource_version), "deleted"))
        await rig.expect(expected)
        status = collector.status()
    assert status.cluster_uid == cluster.uid
    assert status.objects == {"configmaps": 1}
    assert status.resources == {"configmaps": "watching"}
    connected = await rig.first(Connected)
    assert connected.resources == ("configmaps",)
    assert connected.version == "v1.37.2"


async def test_list_and_watch_give_the_same_bytes(rig: Rig, cluster: FakeCluster) -> None:
    cluster.create(config_map("before"))
    async with rig.collecting() as _:
        cluster.create(config_map("after"))
        await eventually(lambda: _has(rig, 2))
    for _, body in await rig.messages():
        assert list(body)[:2] == ["kind", "apiVersion"], body
        assert body["kind"] == "ConfigMap"


async def test_a_watch_is_read_in_large_pieces(rig: Rig, cluster: FakeCluster) -> None:
    """asyncio has no option for it, so that the field which we set is still there is seen here."""
    source = ClusterSource("prod", str(cluster.kubeconfig(rig.folder / "kubeconfig")))
    async with await KubeSession.open(source) as session, session.stream("/api/v1/configmaps", {"watch": "true"}) as response:
        assert response.connection is not None
        assert vars(response.connection.transport)["max_size"] == READ_SIZE
        assert type(response.connection.transport).max_size < READ_SIZE  # type: ignore[union-attr]  # asyncio's own


async def _has(rig: Rig, count: int) -> bool:
    return len(await rig.messages()) >= count


@pytest.mark.parametrize(
    "fault",
    [
        Reset(after_bytes=700, on="watch"),
        HalfLine(after_lines=1, on="watch"),
        Stall(after_bytes=300, on="watch"),
        Gone(on="watch"),
        Gone(on="watch", as_event=True),
        TooManyRequests(on="watch", retry_after=1),
        InternalError(on="watch"),
        InternalError(on="watch", as_event=True),
        TooLargeResourceVersion(on="watch"),
    ],
    ids=lambda fault: f"{type(fault).__name__}{'-event' if getattr(fault, 'as_event', False) else ''}",
)
async def test_a_broken_watch_loses_nothing(rig: Rig, cluster: FakeCluster, fault: Fault) -> None:
    expected = {seen(cluster.create(config_map(f"before-{number}")), "added") for number in range(4)}
    cluster.faults.add(fault, times=2)
    async with rig.collecting(settings=rig.with_settings(watchlist=False)):
        for number in range(8):
            expected.add(seen(cluster.create(config_map(f"map-{number}")), "added"))
        await fault.wait(2)
        expected.add(seen(cluster.create(config_map("last")), "added"))
        await rig.expect(expected)


async def test_a_list_that_fails_on_page_three_is_repeated_without_doubles_or_deletes(rig: Rig, cluster: FakeCluster) -> None:
    expected = {seen(cluster.create(config_map(f"map-{number:02}")), "added") for number in range(11)}
    # lists from the watch cache come in one piece; a consistent one is paged
    cluster.faults.add(TooLargeResourceVersion(on="list", resource="configmaps"))
    fault = cluster.faults.add(FailPage(page=3, resource="configmaps"))
    async with rig.collecting(settings=rig.with_settings(watchlist=False)):
        await fault.wait()
        await rig.expect(expected)


async def test_a_failing_watchlist_falls_back_to_a_list(rig: Rig, cluster: FakeCluster) -> None:
    expected = {seen(cluster.create(config_map(f"map-{number}")), "added") for number in range(5)}
    fault = cluster.faults.add(Reset(after_bytes=400, on="watch", resource="configmaps"))
    async with rig.collecting():
        await fault.wait()
        await rig.expect(expected)


async def test_silence_is_told(rig: Rig, cluster: FakeCluster) -> None:
    cluster.create(config_map("one"))
    cluster.faults.add(Stall(after_bytes=0, on="watch", resource="configmaps"))
    async with rig.collecting(settings=rig.with_settings(watchlist=False)):
        assert (await rig.first(Stale)).resource == "configmaps"
        await rig.first(Heartbeat)


async def test_a_dead_api_server_is_told_and_found_again(rig: Rig, cluster: FakeCluster) -> None:
    expected = {seen(cluster.create(config_map("before")), "added")}
    async with rig.collecting() as collector:
        await cluster.stop()
        await rig.first(Disconnected)
        expected.add(seen(cluster.create(config_map("meanwhile")), "added"))
        await cluster.start()
        await rig.expect(expected)
        await eventually(lambda: collector.status().state == "connected")
    assert len(rig.told(Connected)) == 2


async def test_history_expired_is_a_gap_and_a_diff(rig: Rig, cluster: FakeCluster) -> None:
    kept = cluster.create(config_map("kept"))
    doomed = cluster.create(config_map("doomed"))
    expected = {seen(kept, "added"), seen(doomed, "added")}
    async with rig.collecting() as collector:
        await eventually(lambda: collector.status().objects == {"configmaps": 2})
        await cluster.stop()
        cluster.delete("configmaps", "doomed")
        expected.add(seen(cluster.create(config_map("new")), "added"))
        cluster.compact()
        await cluster.start()
        gap = await rig.gap("history-expired")
        expected.add((doomed["metadata"]["uid"], gap.until, "deleted"))
        await rig.expect(expected)
    assert gap.resource == "configmaps"
    assert int(gap.since) < int(gap.until)


async def test_objects_that_stop_matching_have_left(rig: Rig, cluster: FakeCluster) -> None:
    selected = rig.with_settings(selections={CONFIGMAPS: ("app=web", "")})
    one = cluster.create(config_map("one", labels={"app": "web"}))
    cluster.create(config_map("other", labels={"app": "db"}))
    expected = {seen(one, "added")}
    async with rig.collecting(settings=selected):
        expected.add(seen(cluster.patch("configmaps", "one", {"metadata": {"labels": {"app": "db"}}}), "left"))
        expected.add(seen(cluster.patch("configmaps", "other", {"metadata": {"labels": {"app": "web"}}}), "added"))
        await rig.expect(expected)


async def test_a_dead_cluster_does_not_slow_another(rig: Rig, cluster: FakeCluster) -> None:
    async with FakeCluster("other") as other, rig.collecting():
        second = Rig(other, rig.bus, rig.folder / "other")
        second.folder.mkdir()
        await other.stop()
        waiting = asyncio.create_task(_enter(second))
        await rig.expect({seen(cluster.create(config_map("one")), "added")})
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def _enter(rig: Rig) -> None:
    async with rig.collecting():
        raise AssertionError("a cluster that does not answer cannot be synced")
