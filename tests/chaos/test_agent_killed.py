"""SIGKILL of the agent at random points of a load, with changes while it is down and history that is compacted meanwhile."""

import pytest

from ipe_events.testing.fake.cluster import FakeCluster
from tests.chaos.churn import Churn
from tests.chaos.stage import Stage, churning, die, seeds
from tests.chaos.truth import Truth

KILLS = 4


@pytest.mark.parametrize("seed", seeds(1))
async def test_an_agent_killed_under_load_leaves_no_hole_and_no_double(stage: Stage, cluster: FakeCluster, seed: int) -> None:
    """History is complete all the time, so no gap may be needed either."""
    rng = die(seed, "agent")
    truth, churn = Truth.of(cluster), Churn(cluster, rng)
    churn.burst(30)
    with stage.running(stage.collector()):
        await stage.connected(0)
        await stage.saved(cluster.resource_version)
        first = await stage.gaps()
    for _ in range(KILLS):
        churn.burst(rng.randint(0, 80))
        with stage.running(stage.collector()):
            async with churning(churn):
                await stage.grown(rng.randint(1, 120))
    with stage.running(stage.collector()):
        await stage.settles(truth, seed)
    assert [gap.cause for gap in first] == ["first-start"]
    assert await stage.gaps() == first, f"seed {seed}: a gap although the history was complete"


@pytest.mark.parametrize("seed", seeds(3))
async def test_an_agent_killed_while_history_is_compacted_says_what_is_missing(
    stage: Stage, cluster: FakeCluster, seed: int
) -> None:
    rng = die(seed, "compacted")
    truth, churn = Truth.of(cluster), Churn(cluster, rng)
    churn.burst(30)
    with stage.running(stage.collector()):
        await stage.saved(cluster.resource_version)
    for _ in range(KILLS):
        churn.burst(rng.randint(0, 60))
        if rng.random() < 0.6:
            cluster.compact()
            churn.burst(rng.randint(0, 20))
        with stage.running(stage.collector()):
            async with churning(churn):
                await stage.grown(rng.randint(1, 100))
                if rng.random() < 0.3:
                    cluster.compact()
    with stage.running(stage.collector()):
        await stage.settles(truth, seed)
