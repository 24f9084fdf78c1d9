"""What the demo plays on: an embedded bus on a store that is thrown away, clusters, their agents, and the handler file.

One agent per cluster, as in real life, each with the configuration file that its cluster's owner would write. ``prod-eu`` lets
the handler act; ``prod-us`` and ``staging`` only let themselves be observed. The clusters are simulated over real HTTP and are
under some load; on your own cluster there is one agent, which observes.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipe_events.bus import topology
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.bus.embedded import EmbeddedServer, EmbeddedSettings
from ipe_events.errors import ConfigError, IpeError
from ipe_events.tasks import end
from ipe_events.testing.fake import FakeCluster
from ipe_events.testing.load import LoadGenerator, churn

ENFORCING = "prod-eu"
OBSERVING = "prod-us"
SIMULATED = (ENFORCING, OBSERVING, "staging")
NAMESPACE, DEPLOYMENT = "shop", "payments"

_PODS = 60
_DEPLOYMENTS = 20
_RATE = 15.0
_END_SECONDS = 5.0


@dataclass(slots=True)
class Stage:
    """What is there when the curtain rises.

    Attributes:
        bus: a connection of the demo's own.
        settings: how to reach the bus.
        folder: where kubeconfigs and agent configurations are.
        clusters: the simulated ones, by name; empty on a user's cluster.
        troubles: what agents, load and handler failed with, if they did.
        over: set at the end; agents then end in good order.
    """

    bus: Bus
    settings: BusSettings
    folder: Path
    clusters: dict[str, FakeCluster] = field(default_factory=dict)
    troubles: list[BaseException] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Run something until the end of the demo; what it fails with is a trouble."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.troubles.append(error)

    async def clear(self) -> None:
        """End the agents in good order (or, if they do not end, by cancelling them)."""
        self.over.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END_SECONDS)
        await cancelled(self._tasks)


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """The bus, with all streams, on a store below ``folder``."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(EmbeddedSettings(store=str(folder / "nats"))))
        bus = await stack.enter_async_context(await Bus.connect(server.settings, name="ipe-demo"))
        await topology.ensure(bus)
        stage = Stage(bus, server.settings, folder)
        stack.push_async_callback(stage.clear)
        yield stage


@asynccontextmanager
async def simulated(stage: Stage) -> AsyncIterator[None]:
    """Three simulated clusters, filled and under load."""
    load: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        for number, name in enumerate(SIMULATED):
            cluster = await stack.enter_async_context(FakeCluster(name=name, token=f"demo-{name}"))
            generator = LoadGenerator(seed=number, namespaces=6)
            generator.populate(cluster, pods=_PODS, deployments=_DEPLOYMENTS)
            for namespace in (NAMESPACE, "ipe-system"):
                cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            cluster.create(_payments())
            cluster.kubeconfig(stage.folder / f"{name}.kubeconfig")
            stage.clusters[name] = cluster
            load.append(asyncio.create_task(_load(cluster, generator), name=f"load-{name}"))
        stack.push_async_callback(cancelled, load)
        yield


async def cancelled(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Cancel tasks and wait for their end; what they failed with was said already."""
    await end(*tasks)


async def _load(cluster: FakeCluster, generator: LoadGenerator) -> None:
    """Change pods for ever, round after round."""
    while True:
        await churn(cluster, generator, pods=_PODS, rate=_RATE, events=_PODS)


def _payments() -> dict[str, Any]:
    labels = {"app": DEPLOYMENT}
    container = {"name": "app", "image": "registry.example.com/payments:1.4.0"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": DEPLOYMENT, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def write_agent_config(stage: Stage, name: str, *, kubeconfig: Path, handler: str, mode: str, writes: bool) -> Path:
    """Write the configuration of one cluster's agent, as its owner would; returns the file.

    Args:
        stage: where.
        name: of the agent.
        kubeconfig: its current context is the cluster.
        handler: gets a grant to patch deployments.
        mode: of the grant: ``enforce`` lets the handler act, ``observe`` does not.
        writes: whether the agent may write at all.
    """
    import yaml

    grant = {
        "handler": handler,
        "mode": mode,
        "verbs": ["patch"],
        "resources": ["deployments.apps"],
    }
    config = {
        "apiVersion": "ipe.dev/v1alpha1",
        "kind": "AgentConfig",
        "agent": f"agent-{name}",
        "heartbeat": "5s",
        "clusters": {"kubeconfig": str(kubeconfig)},
        "collect": {"always": ["deployments.apps", "pods"]},
        "act": {"writes": writes},
        "grants": [grant],
    }
    file = stage.folder / f"agent-{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


def start_agent(stage: Stage, config_file: Path) -> None:
    """Run an agent with this configuration until the end of the demo."""
    from ipe_events.agent.app import run_agent
    from ipe_events.agent.config import load_config

    stage.spawn(run_agent(load_config(config_file), stage.settings, stop=stage.over), config_file.stem)


def example_file() -> Path:
    """The example handler: in a checkout below ``handlers/``, in an installed package beside it.

    Raises:
        ConfigError: it was not shipped.
    """
    package = Path(__file__).resolve().parent.parent
    for file in (package.parent / "handlers" / "examples" / "scale_guard.py", package / "examples" / "scale_guard.py"):
        if file.is_file():
            return file
    raise ConfigError("the example handler scale_guard.py was not installed", fix="install ipe-events from its wheel")


def first_trouble(stage: Stage) -> IpeError | None:
    """Why the stage no longer stands, if something failed behind it."""
    for trouble in stage.troubles:
        if isinstance(trouble, IpeError):
            return trouble
    if stage.troubles:
        return IpeError(f"{type(stage.troubles[0]).__name__}: {stage.troubles[0]}", where="behind the stage")
    return None
