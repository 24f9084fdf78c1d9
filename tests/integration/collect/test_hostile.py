"""What a hostile cluster, tenant or peer on the bus can do to the collection of others: nothing that is not seen."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from ipe_events.agent.collector import Collector
from ipe_events.bus.connection import Bus
from ipe_events.events.cluster import Gap
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.reflector import ENDS
from ipe_events.kube.session import KubeSession
from ipe_events.subjects import CHANGE
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.faults import Gone, Latency
from tests.helpers import eventually
from tests.integration.collect.rig import CLUSTER, CONFIGMAPS, QUICK, Rig, config_map, make_rig, seen


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ce-id": "nonsense"},
        {"ce-id": "{uid}/1//configmaps/u/not-a-number/added"},
        {"ce-id": "{uid}/1//configmaps/u/9999999/added", "ce-name": "x", "ce-sequence": "NaN"},
    ],
    ids=["no id", "no change's id", "no number", "no sequence"],
)
async def test_a_foreign_message_among_the_changes_does_not_stop_the_next_start(
    rig: Rig, cluster: FakeCluster, headers: dict[str, str]
) -> None:
    before = cluster.create(config_map("before"))
    async with rig.collecting(flush=True):
        await rig.expect({seen(before, "added")})
    subject = CHANGE.format(cluster=CLUSTER, group="", resource="configmaps", namespace="default", verb="added", partition=0)
    await rig.bus.publish(subject, b"junk", headers={name: text.format(uid=cluster.uid) for name, text in headers.items()})
    async with rig.collecting():
        after = cluster.create(config_map("after"))

        async def came() -> bool:
            found = [message async for message in rig.bus.read("IPE_K8S")]
            return any(after["metadata"]["uid"].encode() in message.header_bytes for message in found)

        await eventually(came)


@pytest.mark.parametrize("where", ["namespace", "name", "uid"])
async def test_names_that_no_cluster_has_do_not_break_the_connection_of_the_others(bus: Bus, tmp_path: Path, where: str) -> None:
    """A subject beyond NATS' control line ends the connection that all clusters of a hub share."""
    async with FakeCluster(CLUSTER) as hostile, FakeCluster("other") as honest:
        rig = await make_rig(bus, hostile, tmp_path)
        bad = config_map("bad")
        bad["metadata"]["namespace"] = "default"
        bad["metadata"][where] = "x" * 70_000
        downs: list[bool] = []
        bus.on_state(downs.append)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(rig.collecting())
            await stack.enter_async_context(_second(bus, honest, tmp_path))
            hostile.seed(bad)
            fine = hostile.create(config_map("fine"))
            other = honest.create(config_map("other"))

            async def both() -> bool:
                heads = [message.header_bytes async for message in bus.read("IPE_K8S")]
                return all(any(each["metadata"]["uid"].encode() in head for head in heads) for each in (fine, other))

            await eventually(both)
            gap = await rig.gap("unnameable")
            assert gap.resource == "configmaps"
        assert not downs


@asynccontextmanager
async def _second(bus: Bus, cluster: FakeCluster, folder: Path):
    source = ClusterSource("other", str(cluster.kubeconfig(folder / "other")))
    async with await KubeSession.open(source) as session:
        collector = Collector("other", session, bus, QUICK)
        collector.want([CONFIGMAPS])
        task = asyncio.create_task(collector.run())
        try:
            await eventually(lambda: collector.status().state == "connected")
            yield collector
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_line_break_in_names_cannot_smuggle_headers(rig: Rig, cluster: FakeCluster) -> None:
    evil = "a\r\nNats-Msg-Id: stolen\r\nNats-Rollup: all\r\n\r\nPUB x 0\r\n"
    obj = config_map("evil")
    obj["metadata"] |= {"name": evil, "uid": evil, "namespace": evil}
    async with rig.collecting():
        cluster.seed(obj)

        async def came() -> list[dict[str, str]]:
            return [message.headers async for message in rig.bus.read("IPE_K8S")]

        (headers,) = await eventually(came)
    assert "Nats-Rollup" not in headers
    assert headers["Nats-Msg-Id"].startswith(cluster.uid)
    async with rig.collecting():  # and the next start can read what was written
        later = cluster.create(config_map("later"))
        await eventually(lambda: _holds(rig, later["metadata"]["uid"]))


async def _holds(rig: Rig, uid: str) -> bool:
    return any([uid.encode() in message.header_bytes async for message in rig.bus.read("IPE_K8S")])


async def test_a_server_whose_watches_are_always_gone_is_not_asked_all_the_time(rig: Rig, cluster: FakeCluster) -> None:
    cluster.create(config_map("one"))
    fault = cluster.faults.add(Gone(on="watch", resource="configmaps"), times=None)
    synced = ENDS.labels(CLUSTER, "configmaps", "synced")
    before = synced.value
    collector_settings = rig.with_settings(watchlist=False)
    source = ClusterSource(CLUSTER, str(cluster.kubeconfig(rig.folder / "kubeconfig")))
    async with await KubeSession.open(source) as session:
        collector = Collector(CLUSTER, session, rig.bus, collector_settings, on_event=rig.events.append)
        collector.want([CONFIGMAPS])
        task = asyncio.create_task(collector.run())
        try:
            began = asyncio.get_running_loop().time()
            await fault.wait(4, timeout=30)
            took = asyncio.get_running_loop().time() - began
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert synced.value - before <= 5
    assert took > 1.0, f"four lists within {took:.2f} s"
    assert rig.told(Gap)


async def test_a_resource_that_nobody_has_is_not_looked_for_at_every_event(rig: Rig, cluster: FakeCluster) -> None:
    asked = cluster.faults.add(Latency(seconds=0.0, on="discovery"), times=None)
    async with rig.collecting("configmaps", "things.example.com") as collector:
        before = asked.fired
        for number in range(20):
            collector.want([CONFIGMAPS, ResourceRef.parse("things.example.com")])
            made = cluster.create(config_map(f"c{number}"))
            await eventually(partial(_holds, rig, made["metadata"]["uid"]))
        assert asked.fired == before
        assert "no such resource" in collector.status().resources["things.example.com"]
