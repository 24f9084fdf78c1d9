"""The assembled agent: several clusters on one connection, what handlers want, health, and mistakes said at the start."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from ipe_events.agent.app import run_agent
from ipe_events.agent.config import AgentConfig, parse_config
from ipe_events.agent.lease import LeaseKeeper, Role
from ipe_events.agent.wants import BUCKET, Wants, wanted
from ipe_events.bus.topology import TopologySettings, apply, desired, plan
from ipe_events.clock import SYSTEM
from ipe_events.errors import BusNotFound, ConfigError
from ipe_events.events.codec import decode, encode
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import AgentStatus, HandlerDeclaration
from ipe_events.tasks import end
from ipe_events.testing.fake import FakeCluster
from tests.helpers import eventually
from tests.integration.act.support import a_job, make_carrier

HEAD = "apiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\nheartbeat: 1s\n"


@asynccontextmanager
async def running(config: AgentConfig, nats_server):
    stop = asyncio.Event()
    task = asyncio.create_task(run_agent(config, nats_server.settings, stop=stop))
    try:
        yield task
    finally:
        stop.set()
        await task


async def statuses(bus) -> dict[str, AgentStatus]:
    bucket = await bus.kv("ipe_agents")
    return {entry.key: decode(AgentStatus, entry.value) async for entry in bucket.entries()}


def join(tmp_path, clusters) -> str:
    merged: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "",
        "clusters": [],
        "users": [],
        "contexts": [],
    }
    for cluster in clusters:
        part = yaml.safe_load(cluster.kubeconfig(tmp_path / f"{cluster.name}.yaml").read_text())
        for section in ("clusters", "users", "contexts"):
            merged[section] += part[section]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(merged))
    return str(tmp_path / "all.yaml")


async def test_one_dead_cluster_does_not_slow_another(nats_server, bus, tmp_path):
    await apply(bus, await plan(bus, desired(TopologySettings())))
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(FakeCluster(name)) for name in ("alive", "dead")]
        file = join(tmp_path, clusters)
        await clusters[1].stop()
        config = parse_config(HEAD + f"clusters: {{kubeconfig: {file}, contexts: ['*']}}\ncollect: {{always: [pods]}}\n")
        async with running(config, nats_server):

            async def state(name: str, wanted_state: str) -> bool:
                found = await statuses(bus)
                return name in found and found[name].state == wanted_state

            await eventually(lambda: state("alive", "connected"))
            await eventually(lambda: state("dead", "disconnected"))
            declaration = HandlerDeclaration(handler="h", resources=("configmaps",), clusters=("al*",), time=SYSTEM.now())
            await (await bus.kv("ipe_handlers", create=True)).put("h", encode(declaration))

            async def collects() -> bool:
                return (await statuses(bus))["alive"].resources.get("configmaps") == "watching"

            await eventually(collects)
            await clusters[1].start()
            await eventually(lambda: state("dead", "connected"), timeout=30)
            assert "configmaps" not in (await statuses(bus))["dead"].resources


async def test_a_bus_that_is_not_prepared_is_said_at_the_start(nats_server, bus, tmp_path):
    async with FakeCluster("c1") as cluster:
        config = parse_config(HEAD + f"clusters: {{kubeconfig: {cluster.kubeconfig(tmp_path / 'k.yaml')}}}\n")
        with pytest.raises(BusNotFound, match=r"bucket ipe_claims is missing \(fix: prepare the bus with `ipe bus apply`\)"):
            await run_agent(config, nats_server.settings, stop=asyncio.Event())


async def test_a_malformed_kubeconfig_is_said_at_the_start(nats_server, tmp_path):
    (tmp_path / "k.yaml").write_text("[1]")
    config = parse_config(HEAD + f"clusters: {{kubeconfig: {tmp_path / 'k.yaml'}}}\n")
    with pytest.raises(ConfigError, match=r"k\.yaml: holds list, not a mapping"):
        await run_agent(config, nats_server.settings, stop=asyncio.Event())


def test_what_handlers_want_is_joined_per_cluster():
    def declares(handler: str, *resources: str, clusters: tuple[str, ...] = ()) -> HandlerDeclaration:
        return HandlerDeclaration(handler=handler, resources=resources, clusters=clusters, time=SYSTEM.now())

    declarations = [declares("a", "pods"), declares("b", "pods", "jobs.batch", clusters=("prod-*",)), declares("c", "No.Such")]
    assert wanted("prod-eu", declarations) == {ResourceRef.parse("pods"), ResourceRef.parse("jobs.batch")}
    assert wanted("dev", declarations) == {ResourceRef.parse("pods")}


async def test_what_is_declared_under_anothers_key_is_not_wanted(bus):
    def declares(*resources: str) -> bytes:
        return encode(HandlerDeclaration(handler="a", resources=resources, time=SYSTEM.now()))

    handlers = await bus.kv(BUCKET, create=True)
    await handlers.put("a", declares("pods"))
    await handlers.put("b", declares("secrets"))
    told: list[frozenset[ResourceRef]] = []
    wants = Wants(bus)
    wants.follow("prod-eu", told.append)
    with capture_logs() as said:
        task = asyncio.create_task(wants.run())
        await eventually(lambda: told)
        await handlers.put("a", declares("pods", "jobs.batch"))
        await eventually(lambda: len(told) == 2)
        await end(task)
    assert told == [{ResourceRef.parse("pods")}, {ResourceRef.parse("pods"), ResourceRef.parse("jobs.batch")}]
    (warning,) = [entry for entry in said if entry["log_level"] == "warning"]
    assert (warning["key"], "it declares another handler, 'a'" in warning["error"]) == ("b", True)


async def test_a_lease_that_nobody_can_hold_is_a_reason_and_not_a_wait(fake_place, streams):
    fake_place.deployment()
    settings = AgentConfig().lease  # its namespace does not exist in the simulated cluster
    keeper = LeaseKeeper(fake_place.session, settings, "agent-1")
    await keeper.turn()
    assert keeper.role is Role.VACANT
    carrier = await make_carrier(fake_place, streams, "c1", write_seconds=keeper.remaining, no_lease=keeper.hopeless)
    await carrier.carry(a_job(fake_place, {"verb": "scale", "replicas": 5}))
    (delivery,) = [each async for each in streams.read("IPE_GOV", ["ipe.outcome.>"])]
    assert b'"guardrail":"lease"' in delivery.body
    assert b"namespace 'ipe-system' does not exist" in delivery.body


class StoppedClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now(self):
        return SYSTEM.now()

    def monotonic(self) -> float:
        return self.seconds


async def test_an_agent_that_only_reads_follows_the_lease(fake_place):
    """It answers (by refusing) where nobody writes, but not while a writer merely restarts."""
    settings = AgentConfig().lease.model_copy(update={"namespace": "default", "duration": 1.0})
    clock = StoppedClock()
    reader = LeaseKeeper(fake_place.session, settings, "reader", hold=False, clock=clock)
    await reader.turn()
    assert (reader.role, reader.hopeless()) == (Role.VACANT, "")
    holder = LeaseKeeper(fake_place.session, settings, "holder")
    await holder.turn()
    await reader.turn()
    assert (holder.role, reader.role, reader.holder, reader.remaining()) == (Role.HOLDER, Role.STANDBY, "holder", 0.0)
    await holder.release()
    await reader.turn()
    assert (holder.role, reader.role) == (Role.STANDBY, Role.STANDBY)
    clock.seconds += 130
    await reader.turn()
    assert reader.role is Role.VACANT


async def test_a_holder_stops_before_another_can_take_over(fake_place):
    """Its own clock decides, from the moment the last renewal was sent; the standby needs the whole duration of silence."""
    settings = AgentConfig().lease.model_copy(update={"namespace": "default", "duration": 10.0})
    clocks = [StoppedClock(), StoppedClock()]
    one = LeaseKeeper(fake_place.session, settings, "one", clock=clocks[0])
    two = LeaseKeeper(fake_place.session, settings, "two", clock=clocks[1])
    await one.turn()
    await two.turn()
    assert (one.role, two.role, one.remaining()) == (Role.HOLDER, Role.STANDBY, 8.0)
    for clock in clocks:
        clock.seconds += 8.0
    await two.turn()
    assert (one.remaining(), two.role) == (0.0, Role.STANDBY)
    for clock in clocks:
        clock.seconds += 2.0
    await two.turn()
    assert (one.remaining(), two.role) == (0.0, Role.HOLDER)
    await one.turn()
    assert one.role is Role.STANDBY
