"""Every fault of a cluster's connection, mixed by a seed, under load; history that goes backwards; a narrower selection."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from ipe_events.errors import BusError
from ipe_events.events.cluster import Epoch
from ipe_events.subjects import CLUSTER
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.faults import (
    FailPage,
    Fault,
    Gone,
    HalfLine,
    InternalError,
    Latency,
    Reset,
    Stall,
    TooLargeResourceVersion,
    TooManyRequests,
)
from tests.chaos.churn import Churn, config_map
from tests.chaos.stage import SETTLE_SECONDS, Stage, churning, die, seeds
from tests.chaos.truth import Truth, parse
from tests.helpers import eventually

FAULTS = 8


def any_fault(rng: random.Random) -> Fault:
    """One of the faults that a reflector must survive."""
    on = rng.choice(("watch", "list"))
    return rng.choice(
        [
            Reset(after_bytes=rng.randint(0, 4000), on=on, resource="configmaps"),
            HalfLine(after_lines=rng.randint(0, 9), on="watch", resource="configmaps"),
            Stall(after_bytes=rng.randint(0, 4000), on="watch", resource="configmaps"),
            Gone(on=on, resource="configmaps"),
            Gone(on="watch", as_event=True, resource="configmaps"),
            TooManyRequests(on=on, retry_after=1, resource="configmaps"),
            InternalError(on=on, resource="configmaps"),
            InternalError(on="watch", as_event=True, resource="configmaps"),
            TooLargeResourceVersion(on=on, resource="configmaps"),
            FailPage(page=3, resource="configmaps"),
            Latency(seconds=0.2, resource="configmaps"),
        ]
    )


@pytest.mark.parametrize("seed", seeds(2))
async def test_a_mix_of_faults_loses_nothing_that_no_gap_covers(stage: Stage, cluster: FakeCluster, seed: int) -> None:
    rng = die(seed, "faults")
    truth, churn = Truth.of(cluster), Churn(cluster, rng)
    churn.burst(30)
    with stage.running(stage.collector()):
        await stage.connected(0)
        async with churning(churn, every=0.005):
            for _ in range(FAULTS):
                cluster.faults.add(any_fault(rng))
                # whatever the watch does now, it does not go on for ever
                cluster.faults.add(Reset(after_bytes=rng.randint(1, 3000), on="watch", resource="configmaps"))
                if rng.random() < 0.2:
                    cluster.compact()
                if rng.random() < 0.2:
                    await cluster.stop()
                    churn.burst(10)
                    await cluster.start()
                await stage.grown(rng.randint(5, 40))
        cluster.faults.clear()
        await stage.settles(truth, seed)


# --- history goes backwards --------------------------------------------------------------------------------------------------


async def _epoch(stage: Stage) -> Epoch | None:
    subject = CLUSTER.format(cluster=stage.cluster, state=Epoch.type_name)
    async for delivery in stage.bus.read("IPE_GOV", [subject]):
        return Epoch.model_validate_json(delivery.body)
    return None


async def _ends_with(stage: Stage, cluster: FakeCluster, epoch: int) -> bool:
    """Whether the epoch's part of the record is what the cluster holds."""
    latest = {state.uid: state for state in parse(await stage.ids(), epoch=epoch)}
    alive = {uid: state.version for uid, state in latest.items() if state.verb != "deleted"}
    return alive == Truth.of(cluster).present()


@pytest.mark.parametrize("seed", seeds(1))
async def test_etcd_restored_while_the_agent_is_down_is_a_new_epoch(stage: Stage, cluster: FakeCluster, seed: int) -> None:
    """What the cluster no longer remembers is deleted, what came back with the backup is there, under ids of a new epoch."""
    rng = die(seed, "restored")
    truth, churn = Truth.of(cluster), Churn(cluster, rng)
    churn.burst(40)
    backup, in_backup = cluster.snapshot(), truth.present()
    churn.burst(40)
    with stage.running(stage.collector()):
        await stage.settles(truth, seed)
        await stage.saved(cluster.resource_version)
    lost = set(truth.present()) - set(in_backup)
    ids = set(await stage.ids())
    highest = cluster.resource_version
    cluster.restore(backup)
    with stage.running(stage.collector()):
        found = await eventually(lambda: _epoch(stage), timeout=SETTLE_SECONDS, interval=0.1)
        await eventually(lambda: _ends_with(stage, cluster, 2), timeout=SETTLE_SECONDS, interval=0.1)
        cluster.create(config_map("after"))
        await eventually(lambda: _ends_with(stage, cluster, 2), timeout=SETTLE_SECONDS, interval=0.1)
    assert found is not None
    assert (found.epoch, int(found.resource_version)) == (2, backup.rv), found
    assert int(found.previous_resource_version) <= highest
    everything = await stage.ids()
    assert len(everything) == len(set(everything)), f"seed {seed}: ids twice"
    assert ids <= set(everything)
    second = parse(everything, epoch=2)
    assert {state.uid for state in second if state.verb == "deleted"} == lost, f"seed {seed}"
    assert any(gap.cause == "restored" and gap.epoch == 2 for gap in await stage.gaps())


# --- the selection narrows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compacted", [False, True], ids=["history kept", "compacted"])
async def test_a_selection_narrowed_while_down_is_told_as_left_and_deleted(
    stage: Stage, cluster: FakeCluster, compacted: bool
) -> None:
    """Objects outside the new selection have left, those that are gone are deleted, and no living object is."""
    truth = Truth.of(cluster)
    web, db, gone = (
        cluster.create(config_map(name, labels={"app": app}))["metadata"]["uid"]
        for name, app in (("web", "web"), ("db", "db"), ("gone", "db"))
    )
    leaves = cluster.create(config_map("leaves", labels={"app": "web"}))["metadata"]["uid"]
    with stage.running(stage.collector()):
        await stage.settles(truth, 0)
        await stage.saved(cluster.resource_version)
    cluster.delete("configmaps", "gone")
    cluster.patch("configmaps", "leaves", {"metadata": {"labels": {"app": "db"}}})
    cluster.patch("configmaps", "web", {"data": {"value": "2"}})
    cluster.create(config_map("never", labels={"app": "db"}))
    if compacted:
        cluster.compact()

    async def told() -> set[tuple[str, str]]:
        with suppress(BusError):
            return {(state.uid, state.verb) for state in parse(await stage.ids())} - {
                (uid, "added") for uid in (web, db, gone, leaves)
            }
        return set()

    with stage.running(stage.collector("app=web")):
        expected = {(db, "left"), (leaves, "left"), (gone, "deleted"), (web, "modified")}
        await eventually(lambda: _same(told, expected), timeout=SETTLE_SECONDS, interval=0.1)
        cluster.patch("configmaps", "never", {"metadata": {"labels": {"app": "web"}}})
        never = cluster.get("configmaps", "never")["metadata"]["uid"]
        await eventually(lambda: _same(told, expected | {(never, "added")}), timeout=SETTLE_SECONDS, interval=0.1)
    everything = await stage.ids()
    assert len(everything) == len(set(everything))
    assert any(gap.cause == "selection" for gap in await stage.gaps())


async def _same(told: Callable[[], Awaitable[set[tuple[str, str]]]], expected: set[tuple[str, str]]) -> bool:
    return await told() == expected
