"""Fixtures of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import ensure
from ipe_events.testing.fake.cluster import FakeCluster
from tests.chaos.stage import CLUSTER_NAME, Stage
from tests.nats import NatsServer


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """A simulated cluster with quick bookmarks."""
    async with FakeCluster(CLUSTER_NAME, bookmark_interval=0.3, fresh_timeout=0.2) as fake:
        yield fake


@pytest_asyncio.fixture
async def stage(nats_server: NatsServer, bus: Bus, cluster: FakeCluster, tmp_path: Path) -> Stage:
    """The broker with its streams, and the simulated cluster."""
    await ensure(bus)
    return Stage(tmp_path, nats_server, bus, cluster.kubeconfig(tmp_path / "kubeconfig.yaml"))
