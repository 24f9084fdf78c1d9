"""Fixtures of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from ipe_events.bus.connection import Bus
from ipe_events.testing.fake.cluster import FakeCluster
from tests.integration.collect.rig import CLUSTER, Rig, make_rig


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """A simulated cluster with quick bookmarks."""
    async with FakeCluster(CLUSTER, bookmark_interval=0.3, fresh_timeout=0.2) as fake:
        yield fake


@pytest_asyncio.fixture
async def rig(bus: Bus, cluster: FakeCluster, tmp_path: Path) -> Rig:
    """Bus with its topology, cluster, and a way to start collectors."""
    return await make_rig(bus, cluster, tmp_path)
