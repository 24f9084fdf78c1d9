"""``start="snapshot"`` with real agents: each living object once, nothing resurrected, whoever comes late or dies meanwhile."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_asyncio

from ipe_events import Change, Reject, handler
from ipe_events.agent.app import run_agent
from ipe_events.agent.config import parse_config
from ipe_events.bus import topology
from ipe_events.bus.connection import Bus
from ipe_events.declaration import Declared, declaration_of
from ipe_events.runtime.app import HandlerApp
from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.faults import Call, Fault
from tests.helpers import eventually
from tests.nats import NatsServer

OBJECTS = 130
"""More than two batches of the agent, so that a snapshot can be held in its middle."""


@dataclass(kw_only=True)
class SecondPage(Fault):
    """Holds the second page of a list until it is released."""

    on: str = "list"
    resource: str = "configmaps"
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def matches(self, call: Call) -> bool:
        return bool(call.continue_) and super().matches(call)

    async def before(self, call: Call) -> None:
        await self.released.wait()


def config_map(name: str, value: str = "1") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}


def fill(cluster: FakeCluster, count: int = OBJECTS) -> set[str]:
    names = {f"m{number:03d}" for number in range(count)}
    for name in names:
        cluster.create(config_map(name))
    return names


def agent_config(folder: Path, cluster: FakeCluster, *, always: str = "[configmaps]") -> str:
    file = cluster.kubeconfig(folder / f"{cluster.name}.yaml")
    return (
        "apiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\nheartbeat: 1s\n"
        f"clusters: {{kubeconfig: {file}}}\ncollect: {{always: {always}}}\nanswers: {{rows: 64}}\n"
    )


@dataclass
class Stage:
    """Clusters, their agents and a handler that notes what it sees."""

    server: NatsServer
    bus: Bus
    folder: Path
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    refused: str = ""

    def __post_init__(self) -> None:
        self.gate.set()

    def note(self, change: Change) -> None:
        self.seen.append((change.cluster, change.name, change.verb))

    def names(self, cluster: str, *verbs: str) -> Counter[str]:
        return Counter(name for at, name, verb in self.seen if at == cluster and (not verbs or verb in verbs))

    @asynccontextmanager
    async def agent(self, cluster: FakeCluster, **options: str) -> AsyncIterator[None]:
        """An agent in this process, until its cluster is connected and then for as long as the block lasts."""
        stop = asyncio.Event()
        config = parse_config(agent_config(self.folder, cluster, **options))
        task = asyncio.create_task(run_agent(config, self.server.settings, stop=stop))
        try:
            await eventually(lambda: self.state(cluster.name), timeout=20)
            yield
        finally:
            stop.set()
            await task

    async def state(self, cluster: str) -> bool:
        entry = await (await self.bus.kv("ipe_agents", create=True)).get(cluster)
        return entry is not None and b'"connected"' in entry.value

    @asynccontextmanager
    async def viewer(self, **options: Any) -> AsyncIterator[HandlerApp]:
        @handler(on="configmaps", start="snapshot", clusters="c-*")
        async def viewer(change: Change) -> None:
            await self.gate.wait()
            if change.name == self.refused:
                raise Reject("not this one")
            self.note(change)

        declared = declaration_of(viewer)
        assert isinstance(declared, Declared)
        async with HandlerApp([declared], self.server.settings, **options) as app:
            yield app

    async def taken(self) -> set[str]:
        return {key.split(".")[1] for key in await (await self.bus.kv("ipe_snapshots")).keys()}


@pytest_asyncio.fixture
async def stage(nats_server: NatsServer, bus: Bus, tmp_path: Path) -> Stage:
    await topology.ensure(bus)
    return Stage(nats_server, bus, tmp_path)


def once(names: Iterable[str]) -> Counter[str]:
    return Counter(dict.fromkeys(names, 1))


async def test_living_objects_come_once_and_deleted_ones_stay_dead(stage: Stage):
    async with FakeCluster("c-one") as one, FakeCluster("c-two") as two, stage.agent(one), stage.agent(two):
        names = fill(one)
        fill(two, 70)
        await eventually(lambda: changes_stored(stage.bus, OBJECTS + 70))
        held = one.faults.add(SecondPage())
        async with stage.viewer() as app:
            await held.wait()
            await eventually(lambda: stage.names("c-two") == once(f"m{number:03d}" for number in range(70)), timeout=20)
            one.delete("configmaps", "m129")  # lies in a page that is listed as of before
            one.delete("configmaps", "m000")  # was handed over already
            one.patch("configmaps", "m128", {"data": {"value": "2"}})
            one.create(config_map("new"))
            await eventually(lambda: stage.names("c-one", "deleted") == once(["m000", "m129"]))
            await eventually(lambda: stage.names("c-one", "modified") == once(["m128"]))
            assert app.subscribers["viewer"].join is not None
            assert ("c-one", "", "configmaps") in app.subscribers["viewer"].join.open
            held.released.set()
            await eventually(lambda: taken(stage, {"c-one", "c-two"}), timeout=20)
        assert stage.names("c-one", "added") == once(names - {"m128", "m129"} | {"new"})


async def test_a_cluster_that_reports_later_is_asked_too(stage: Stage):
    async with FakeCluster("c-late") as late, FakeCluster("c-one") as one, FakeCluster("other") as other:
        names = fill(late, 3)
        fill(one, 1)
        async with stage.agent(late):
            await eventually(lambda: changes_stored(stage.bus, 3))
        await (await stage.bus.kv("ipe_agents")).delete("c-late")
        async with stage.agent(one), stage.viewer():
            await eventually(lambda: taken(stage, {"c-one"}))
            async with stage.agent(late), stage.agent(other):
                await eventually(lambda: stage.names("c-late") >= once(names), timeout=20)
                await eventually(lambda: taken(stage, {"c-one", "c-late"}))
    assert stage.names("c-late") == once(names), "nothing had changed, so nothing came live"
    assert not stage.names("other")


async def test_what_an_agent_begins_to_collect_for_the_handler_comes_once(stage: Stage):
    async with FakeCluster("c-one") as one, stage.agent(one, always="[]"):
        names = fill(one)
        async with stage.viewer():
            await eventually(lambda: taken(stage, {"c-one"}), timeout=20)
            one.create(config_map("new"))
            await eventually(lambda: "new" in stage.names("c-one"))
    assert stage.names("c-one", "added") == once(names | {"new"})


async def test_an_agent_killed_in_the_middle_of_a_snapshot_loses_nothing(stage: Stage):
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(FakeCluster("c-one"))
        names = fill(one)
        config = stage.folder / "agent.yaml"
        config.write_text(agent_config(stage.folder, one))
        first = await start_agent(stage, config)
        try:
            await eventually(lambda: stage.state("c-one"), timeout=20)
            held = one.faults.add(SecondPage())
            await stack.enter_async_context(stage.viewer())
            await held.wait()
            await eventually(lambda: len(stage.seen) == 64)
        finally:
            first.send_signal(signal.SIGKILL)
            await first.wait()
        one.delete("configmaps", "m001")
        second = await start_agent(stage, config)
        try:
            await eventually(lambda: taken(stage, {"c-one"}), timeout=30)
            await eventually(lambda: stage.names("c-one", "deleted") == once(["m001"]))
        finally:
            second.send_signal(signal.SIGTERM)
            assert await second.wait() == 0
    assert stage.names("c-one", "added") == once(names)


async def test_a_handler_that_starts_again_is_not_told_everything_again(stage: Stage):
    async with FakeCluster("c-one") as one, stage.agent(one):
        names = fill(one, 3)
        stage.gate.clear()
        async with stage.viewer(grace=0.1) as app:
            await eventually(lambda: app.subscribers["viewer"].join is not None and not app.subscribers["viewer"].join.open)
        assert not stage.seen
        stage.gate.set()
        async with stage.viewer():
            await eventually(lambda: taken(stage, {"c-one"}))
        assert stage.names("c-one") >= once(names), "what the first one had not handled is taken again"
        stage.seen.clear()
        async with stage.viewer():
            one.create(config_map("new"))
            await eventually(lambda: "new" in stage.names("c-one"))
        assert stage.names("c-one") == once(["new"])
        await stage.bus.js_api("CONSUMER.DELETE.IPE_K8S.viewer")
        async with stage.viewer():
            await eventually(lambda: stage.names("c-one") >= once(names), timeout=20)


async def test_a_snapshot_with_a_dead_item_is_taken_again(stage: Stage):
    async with FakeCluster("c-one") as one, stage.agent(one):
        names = fill(one, 3)
        stage.refused = "m001"
        async with stage.viewer() as app:
            figures = app.subscribers["viewer"].figures
            await eventually(lambda: figures.outcomes["rejected"].value and stage.names("c-one") == once(names - {"m001"}))
        stage.refused = ""
        async with stage.viewer():
            await eventually(lambda: stage.names("c-one")["m001"] == 1)
            await eventually(lambda: taken(stage, {"c-one"}))


async def taken(stage: Stage, clusters: set[str]) -> bool:
    return await stage.taken() == clusters


async def changes_stored(bus: Bus, count: int) -> bool:
    return bool((await bus.stream_info("IPE_K8S"))["state"]["messages"] >= count)


async def start_agent(stage: Stage, config: Path) -> asyncio.subprocess.Process:
    environment = {**os.environ, "IPE_NATS_URL": stage.server.url}
    program = str(Path(sys.executable).with_name("ipe"))
    return await asyncio.create_subprocess_exec(program, "agent", "run", "--config", str(config), env=environment)
