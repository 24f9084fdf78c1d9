"""The two histories that only a real API server has: compacted by etcd, and restored from an older copy of its data."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import ensure
from tests.chaos.stage import SETTLE_SECONDS, Stage
from tests.chaos.truth import State, parse
from tests.controlplane.cluster import CORE, RealCluster
from tests.controlplane.fixtures import ClusterFactory
from tests.helpers import eventually
from tests.nats import NatsServer

HISTORY = 60


class Objects:
    """ConfigMaps of one namespace of a real cluster."""

    def __init__(self, cluster: RealCluster) -> None:
        self._api = cluster.api
        self._namespace = f"chaos-{uuid.uuid4().hex[:8]}"
        cluster.create_namespace(self._namespace)
        self._path = f"{CORE}/namespaces/{self._namespace}/configmaps"
        self.latest = 0

    def create(self, name: str) -> State:
        return _state(self._api.create(self._path, {"metadata": {"name": name}, "data": {"value": "1"}}), "added")

    def change(self, name: str, value: str) -> State:
        return _state(self._api.patch(f"{self._path}/{name}", {"data": {"value": value}}), "modified")

    def delete(self, name: str) -> None:
        self._api.delete(f"{self._path}/{name}")

    def go_on(self) -> None:
        """Make more history than an API server does that starts anew: resourceVersions alone tell that one went back."""
        for number in range(HISTORY):
            self.latest = self.change("lost", f"go on {number}").version


def _state(obj: dict[str, Any], verb: str) -> State:
    return State(obj["metadata"]["uid"], int(obj["metadata"]["resourceVersion"]), verb)


@pytest_asyncio.fixture
async def broker(nats_server: NatsServer, bus: Bus) -> NatsServer:
    """A broker with its streams."""
    await ensure(bus)
    return nats_server


async def _record(stage: Stage, uids: set[str], epoch: int = 1) -> set[State]:
    """What the stream holds of these objects; no id twice."""
    ids = await stage.ids()
    assert len(ids) == len(set(ids)), "ids twice in the stream"
    return {state for state in parse(ids, epoch=epoch) if state.uid in uids}


async def _holds(stage: Stage, states: set[State], epoch: int = 1) -> bool:
    return states <= await _record(stage, {state.uid for state in states}, epoch)


async def test_deleted_while_down_and_compacted_by_etcd(
    second_cluster: RealCluster, broker: NatsServer, bus: Bus, tmp_path: Path
) -> None:
    """A real 410: the delete is told, the living object is not deleted, and a gap covers the states that nobody can know."""
    stage = Stage(tmp_path, broker, bus, second_cluster.kubeconfig)
    objects = Objects(second_cluster)
    kept, gone = objects.create("kept"), objects.create("gone")
    with stage.running(stage.collector()):
        await eventually(lambda: _holds(stage, {kept, gone}), timeout=SETTLE_SECONDS, interval=0.1)
        await stage.saved(gone.version)
    unseen, last = objects.change("kept", "2"), objects.change("kept", "3")
    brief = objects.create("brief")
    for name in ("gone", "brief"):
        objects.delete(name)
    second_cluster.compact()
    with stage.running(stage.collector()):
        await eventually(lambda: _holds(stage, {last}), timeout=SETTLE_SECONDS, interval=0.1)
        after = objects.create("after")
        await eventually(lambda: _holds(stage, {after}), timeout=SETTLE_SECONDS, interval=0.1)
        stretches = await eventually(lambda: _of_cause(stage, "history-expired"), timeout=SETTLE_SECONDS)
    found = await _record(stage, {kept.uid, gone.uid, brief.uid, after.uid})
    deletes = {state for state in found if state.verb == "deleted"}
    assert found - deletes == {kept, gone, last, after}
    assert [state.uid for state in deletes] == [gone.uid]
    (delete,) = deletes
    (gap,) = stretches
    for missing in (unseen.version, brief.version):
        assert gap[0] < missing <= gap[1]
    assert gone.version < delete.version == gap[1]


async def _of_cause(stage: Stage, cause: str, epoch: int = 1) -> list[tuple[int, int]]:
    """(since, until) of the gaps of this cause."""
    gaps = [gap for gap in await stage.gaps() if gap.cause == cause and gap.resource in ("", "configmaps") and gap.epoch == epoch]
    return [(int(gap.since), int(gap.until)) for gap in gaps]


@pytest.mark.timeout(110)
async def test_etcd_restored_from_a_copy(own_cluster: ClusterFactory, broker: NatsServer, bus: Bus, tmp_path: Path) -> None:
    """Once while the agent is down, once under its eyes: each time a new epoch, a gap, and the whole collection again."""
    plane = own_cluster()
    stage = Stage(tmp_path, broker, bus, plane.cluster.kubeconfig)
    objects = Objects(plane.cluster)
    kept = objects.create("kept")
    plane.save("backup")
    lost = objects.create("lost")
    objects.go_on()
    with stage.running(stage.collector()):
        await stage.saved(objects.latest)

    plane.rewind("backup")
    with stage.running(stage.collector()):
        await eventually(lambda: _verbs(stage, {kept.uid: "modified", lost.uid: "deleted"}, 2), timeout=50, interval=0.1)
        again = objects.create("lost")
        objects.go_on()
        await eventually(lambda: _holds(stage, {again}, 2), timeout=SETTLE_SECONDS, interval=0.1)
        await stage.saved(objects.latest)

        plane.rewind("backup")
        await eventually(lambda: _verbs(stage, {kept.uid: "modified", again.uid: "deleted"}, 3), timeout=50, interval=0.1)
    for epoch in (2, 3):
        assert await eventually(lambda epoch=epoch: _of_cause(stage, "restored", epoch), timeout=SETTLE_SECONDS), epoch  # type: ignore[misc]  # bound early
    assert not {state for state in parse(await stage.ids()) if state.verb == "deleted"}, "a delete in the old history"


async def _verbs(stage: Stage, expected: dict[str, str], epoch: int) -> bool:
    found = await _record(stage, set(expected), epoch)
    return {state.uid: state.verb for state in found} == expected
