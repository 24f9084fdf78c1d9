"""A death exactly between two steps: the windows that random kills seldom hit, each held open on purpose.

What a dying agent did not get to write is here a write that does nothing; then the agent ends, and the next one must make the
record right. The broker forgets ids after 0.1 s, so that nothing hides behind its deduplication.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ipe_events.agent.announcer import Announcer
from ipe_events.agent.checkpoint import Checkpoints, ResumePoint
from ipe_events.agent.collector import Collector
from ipe_events.bus.connection import Bus
from ipe_events.events.cluster import ClusterEvent, Gap
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.faults import Stall, TooLargeResourceVersion
from tests.chaos.churn import config_map
from tests.chaos.stage import Stage
from tests.chaos.truth import Truth, parse
from tests.helpers import eventually
from tests.integration.collect.rig import Rig, make_rig

SEED = 0


@pytest_asyncio.fixture
async def rig(stage: Stage, bus: Bus, cluster: FakeCluster, tmp_path: Path) -> Rig:
    """A way to run collectors in this process, on a broker without a memory."""
    config = (await bus.stream_info("IPE_K8S"))["config"]
    await bus.js_api("STREAM.UPDATE.IPE_K8S", config | {"duplicate_window": 100_000_000})
    return await make_rig(bus, cluster, tmp_path)


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[Collector]:
    """Grows with each completed round of writing resume points."""
    rounds: list[Collector] = []
    save = Collector._save

    async def counting(self: Collector, *, final: bool) -> None:
        await save(self, final=final)
        rounds.append(self)

    monkeypatch.setattr(Collector, "_save", counting)
    return rounds


async def _rounds(saves: list[Collector], more: int = 3) -> None:
    goal = len(saves) + more
    await eventually(lambda: len(saves) >= goal)


async def _lose(*_what: Any) -> None:
    """A write that the death came before."""


async def test_an_index_written_without_its_resume_point(
    rig: Rig, stage: Stage, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index no longer knows an object whose whole life the resume point will show again."""
    truth = Truth.of(cluster)
    cluster.create(config_map("before"))
    async with rig.collecting(flush=True):
        await stage.settles(truth, SEED)
    written: list[ResumePoint] = []
    save_index = Checkpoints.save_index

    async def noted(self: Checkpoints, ref: Any, point: ResumePoint, data: bytes) -> None:
        await save_index(self, ref, point, data)
        written.append(point)

    with monkeypatch.context() as death:
        death.setattr(Checkpoints, "save", _lose)
        death.setattr(Checkpoints, "save_index", noted)
        async with rig.collecting():
            cluster.create(config_map("brief"))
            cluster.patch("configmaps", "brief", {"data": {"value": "2"}})
            cluster.delete("configmaps", "brief")
            await stage.settles(truth, SEED)
            gone = await stage.messages()
            cluster.create(config_map("after"))
            await eventually(lambda: written and written[-1].seq >= gone)
    async with rig.collecting():
        cluster.create(config_map("last"))
        await stage.settles(truth, SEED)


async def test_a_resume_point_written_in_the_midst_of_catching_up(
    rig: Rig, stage: Stage, cluster: FakeCluster, saves: list[Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is ahead of the watch after a crash; what is saved then must not pair the watch's place with the stream's."""
    truth = Truth.of(cluster)
    cluster.create(config_map("doomed"))
    async with rig.collecting(flush=True):
        await stage.settles(truth, SEED)
    with monkeypatch.context() as death:
        death.setattr(Checkpoints, "save", _lose)
        death.setattr(Checkpoints, "save_index", _lose)
        async with rig.collecting():
            first = cluster.create(config_map("first"))
            cluster.patch("configmaps", "doomed", {"data": {"value": "2"}})
            cluster.delete("configmaps", "doomed")
            await stage.settles(truth, SEED)
    line = len(cluster.store.get(("", "configmaps"), ("default", first["metadata"]["name"])).raw)  # type: ignore[union-attr]  # it exists
    stall = cluster.faults.add(Stall(after_bytes=line + 60, on="watch", resource="configmaps"))
    async with rig.collecting(settings=rig.with_settings(silent_seconds=30.0)):
        await stall.wait()
        await _rounds(saves)
    async with rig.collecting():
        cluster.create(config_map("last"))
        await stage.settles(truth, SEED)


async def test_a_resume_point_never_outruns_the_gap_that_explains_it(
    rig: Rig, stage: Stage, cluster: FakeCluster, saves: list[Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = Truth.of(cluster)
    cluster.create(config_map("one"))
    async with rig.collecting(flush=True):
        await stage.settles(truth, SEED)
    cluster.patch("configmaps", "one", {"data": {"value": "never seen"}})
    cluster.patch("configmaps", "one", {"data": {"value": "3"}})
    cluster.compact()
    publish = Announcer._publish

    async def nothing_of_gaps(self: Announcer, event: ClusterEvent) -> None:
        if isinstance(event, Gap):
            await asyncio.Event().wait()
        await publish(self, event)

    with monkeypatch.context() as death:
        death.setattr(Announcer, "_publish", nothing_of_gaps)
        async with rig.collecting():
            await eventually(lambda: _present(stage, truth))
            await _rounds(saves)
    async with rig.collecting():
        await stage.settles(truth, SEED)


async def _present(stage: Stage, truth: Truth) -> bool:
    """Whether the record ends with what the cluster is."""
    return not any("exists" in complaint for complaint in await stage.verdict(truth))


async def test_a_relist_for_whatever_reason_is_a_gap(rig: Rig, stage: Stage, cluster: FakeCluster) -> None:
    """States between the watch's last and the list are lost, also when it was no 410 that ended the watch."""
    truth = Truth.of(cluster)
    cluster.create(config_map("one"))
    async with rig.collecting():
        await stage.settles(truth, SEED)
        fault = cluster.faults.add(TooLargeResourceVersion(on="watch", resource="configmaps"))
        await cluster.stop()
        cluster.patch("configmaps", "one", {"data": {"value": "never seen"}})
        cluster.patch("configmaps", "one", {"data": {"value": "3"}})
        cluster.create(config_map("brief"))
        cluster.delete("configmaps", "brief")
        await cluster.start()
        await fault.wait()
        await stage.settles(truth, SEED)


async def test_etcd_restored_before_the_first_resume_point_was_written(
    rig: Rig, stage: Stage, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No resume point says how far history went, but the stream does."""
    truth = Truth.of(cluster)
    kept = cluster.create(config_map("kept"))["metadata"]["uid"]
    backup = cluster.snapshot()
    with monkeypatch.context() as death:
        death.setattr(Checkpoints, "save", _lose)
        async with rig.collecting():
            lost = cluster.create(config_map("lost"))["metadata"]["uid"]
            await stage.settles(truth, SEED)
    cluster.restore(backup)
    rig.events.clear()
    async with rig.collecting():
        await rig.gap("restored")
        await eventually(lambda: _verbs(stage, epoch=2))
        assert await _verbs(stage, epoch=2) == {(kept, "modified"), (lost, "deleted")}


async def _verbs(stage: Stage, epoch: int) -> set[tuple[str, str]]:
    return {(state.uid, state.verb) for state in parse(await stage.ids(), epoch=epoch)}
