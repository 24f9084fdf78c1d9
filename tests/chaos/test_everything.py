"""Broker, agent and handler die at random under load, and the cluster's connection fails: nothing is lost or doubled."""

import sys
from collections import Counter
from contextlib import suppress

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.errors import BusError
from ipe_events.events.outcome import Status
from ipe_events.testing.fake.cluster import FakeCluster
from ipe_events.testing.faults import Gone, HalfLine, InternalError, Reset, TooManyRequests
from tests.chaos.churn import Churn
from tests.chaos.stage import IPE, SETTLE_SECONDS, Stage, churning, die, seeds
from tests.chaos.test_acting_killed import AGENT, HANDLER, commands, config, deployment, outcomes
from tests.chaos.truth import Truth
from tests.helpers import eventually

ROUNDS = 4


@pytest.mark.parametrize("seed", seeds(2))
async def test_a_broker_killed_with_acks_outstanding_costs_nothing(
    stage: Stage, bus: Bus, cluster: FakeCluster, seed: int
) -> None:
    """Even a broker that forgets at once which ids it stored: the publisher looks before it sends again."""
    rng = die(seed, "broker")
    stream = (await bus.stream_info("IPE_K8S"))["config"]
    await bus.js_api("STREAM.UPDATE.IPE_K8S", stream | {"duplicate_window": 100_000_000})
    truth, churn = Truth.of(cluster), Churn(cluster, rng)
    with stage.running(stage.collector()):
        churn.burst(20)
        await stage.settles(truth, seed)
        async with churning(churn, every=0.001):
            for _ in range(ROUNDS):
                await stage.grown(rng.randint(5, 150))
                stage.nats.kill()
                stage.nats.start()
        await stage.settles(truth, seed)
    assert [gap.cause for gap in await stage.gaps()] == ["first-start"], f"seed {seed}"


@pytest.mark.parametrize("seed", seeds(1))
async def test_everything_dies_in_turn(
    stage: Stage, bus: Bus, cluster: FakeCluster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = die(seed, "everything")
    monkeypatch.setenv("IPE_NATS_URL", stage.nats.url)
    truth, churn = Truth.of(cluster), Churn(cluster, rng)
    trap = stage.folder / "died"
    trap.touch()  # nobody dies from inside here
    file, starter = stage.folder / "guard.py", stage.folder / "agent.py"
    file.write_text(HANDLER.format(trap=str(trap), arm="", between="pass"))
    starter.write_text(AGENT.format(arm=""))
    agent = stage.child("agent", sys.executable, str(starter), "agent", "run", "--config", config(stage))
    handler = stage.child("handler", IPE, "handlers", "run", str(file))
    made = 0
    with stage.running(agent), stage.running(handler):
        await stage.connected(0)
        async with churning(churn, every=0.005):
            for victim in rng.sample(["agent", "handler", "broker", "agent and broker", "cluster"], 5):
                for _ in range(rng.randint(1, 3)):
                    body = deployment(80)
                    body["metadata"]["name"] = f"web-{made}"
                    cluster.create(body)
                    made += 1
                cluster.faults.add(
                    rng.choice(
                        [
                            Reset(after_bytes=rng.randint(0, 3000), on="watch"),
                            HalfLine(after_lines=rng.randint(0, 5), on="watch"),
                            Gone(on="watch"),
                            InternalError(on="watch"),
                            TooManyRequests(on="watch"),
                        ]
                    )
                )
                await stage.grown(rng.randint(1, 40))
                if "broker" in victim:
                    stage.nats.kill()
                for child in (agent, handler):
                    if child.name in victim:
                        child.kill()
                if victim == "cluster":
                    await cluster.stop()
                churn.burst(rng.randint(1, 20))
                if "broker" in victim:
                    stage.nats.start()
                for child in (agent, handler):
                    if not child.running:
                        child.start()
                if victim == "cluster":
                    await cluster.start()
        cluster.faults.clear()
        await stage.settles(truth, seed)
        await eventually(lambda: _answered(stage, made), timeout=SETTLE_SECONDS, interval=0.2)
    asked, answered = await commands(bus), await outcomes(bus)
    assert [each for each, count in Counter(each.id for each in asked).items() if count > 1] == [], f"seed {seed}"
    assert Counter(each.command for each in answered) == Counter({each.id for each in asked}), f"seed {seed}"
    for number in range(made):
        name = f"web-{number}"
        web = cluster.get("deployments.apps", name)
        (outcome,) = [each for each in answered if each.object_ref is not None and each.object_ref.name == name]
        assert outcome.status in {Status.APPLIED, Status.UNKNOWN}, f"seed {seed}: {outcome}"
        written = web["metadata"]["generation"] - 1
        assert written == 1 if outcome.status is Status.APPLIED else written <= 1, f"seed {seed}: {outcome}"


async def _answered(stage: Stage, made: int) -> bool:
    """Whether every Deployment was asked for, and every command answered."""
    with suppress(BusError):
        asked = {each.id for each in await commands(stage.bus)}
        return len(asked) >= made and asked <= {each.command for each in await outcomes(stage.bus)}
    return False
