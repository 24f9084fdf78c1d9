"""What a chaos test holds in its hands: a simulated cluster, its truth, a broker, processes that die, and the record."""

import asyncio
import itertools
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ipe_events.bus.connection import Bus
from ipe_events.errors import BusError
from ipe_events.events.cluster import Connected, Gap
from ipe_events.events.codec import decode
from ipe_events.events.headers import header
from ipe_events.subjects import CLUSTER
from tests.chaos.churn import Churn
from tests.chaos.truth import Stretch, Truth, complaints, stretches
from tests.controlplane.process import Child
from tests.helpers import eventually
from tests.nats import NatsServer

CLUSTER_NAME = "prod-eu"
COLLECTING = Path(__file__).with_name("collecting.py")
IPE = str(Path(sys.executable).with_name("ipe"))
SETTLE_SECONDS = 30.0


def seeds(*usual: int) -> Sequence[int]:
    """The seeds to try: the usual ones, or those of ``IPE_CHAOS_SEEDS``."""
    chosen = os.environ.get("IPE_CHAOS_SEEDS", "")
    return [int(text) for text in chosen.split(",")] if chosen else usual


@dataclass
class Stage:
    """One cluster, one broker, one record.

    Attributes:
        folder: for logs and kubeconfigs.
        nats: the broker.
        bus: the test's own connection, which only reads.
        kubeconfig: of the cluster.
        cluster: its name on the bus.
    """

    folder: Path
    nats: NatsServer
    bus: Bus
    kubeconfig: Path
    cluster: str = CLUSTER_NAME
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    # --- processes ---------------------------------------------------------------------------------------------------------

    def collector(self, *more: str) -> Child:
        """A collector, not started yet."""
        return self.child("agent", sys.executable, str(COLLECTING), self.nats.url, str(self.kubeconfig), self.cluster, *more)

    def child(self, name: str, *command: str) -> Child:
        """A program that dies with the test; not started yet."""
        return Child(name, command, self.folder / f"{name}-{next(self._numbers)}.log")

    @contextmanager
    def running(self, child: Child) -> Iterator[Child]:
        """A started program, killed at the end of the block."""
        child.start()
        try:
            yield child
        finally:
            child.kill()

    # --- the record --------------------------------------------------------------------------------------------------------

    async def ids(self, stream: str = "IPE_K8S", *subjects: str) -> list[str]:
        """Every id in the stream, in its order."""
        if not await self.messages(stream):
            return []
        return [header(each.header_bytes, b"ce-id") async for each in self.bus.read(stream, subjects)]

    async def messages(self, stream: str = "IPE_K8S") -> int:
        """The stream's last sequence."""
        return int((await self.bus.stream_info(stream))["state"]["last_seq"])

    async def gaps(self) -> list[Gap]:
        """Every gap that was published."""
        subject = CLUSTER.format(cluster=self.cluster, state="gap")
        return [decode(Gap, each.body) async for each in self.bus.read("IPE_GOV", [subject])]

    async def connections(self) -> int:
        """How often the agent said that everything is on the bus."""
        subject = CLUSTER.format(cluster=self.cluster, state=Connected.type_name)
        return len([each async for each in self.bus.read("IPE_GOV", [subject])])

    async def connected(self, before: int) -> None:
        """Wait until the agent has said so more than ``before`` times."""

        async def more() -> bool:
            with suppress(BusError):
                return await self.connections() > before
            return False

        await eventually(more, timeout=SETTLE_SECONDS, interval=0.1)

    async def grown(self, by: int, timeout: float = SETTLE_SECONDS) -> None:
        """Wait until the record has ``by`` more changes than now."""
        goal = 0

        async def reached() -> bool:
            nonlocal goal
            with suppress(BusError):  # the broker may be away just now
                now = await self.messages()
                goal = goal or now + by
                return now >= goal
            return False

        await eventually(reached, timeout=timeout, interval=0.005)

    async def saved(self, version: int, resource: str = "configmaps") -> None:
        """Wait until the resume point of a resource of the core group is at ``version`` or beyond."""
        key = f"{self.cluster}.core.{resource}"

        async def written() -> bool:
            entry = await (await self.bus.kv("ipe_checkpoints", create=True)).get(key)
            return entry is not None and int(json.loads(entry.value)["resource_version"]) >= version

        await eventually(written, timeout=SETTLE_SECONDS)

    async def verdict(self, truth: Truth) -> list[str]:
        """What is wrong with the record now."""
        return complaints(truth, await self.ids(), await self.stretches())

    async def stretches(self) -> list[Stretch]:
        """Every published gap of the ConfigMaps, in numbers."""
        return stretches(await self.gaps())

    async def settles(self, truth: Truth, seed: int) -> None:
        """The record comes to be right; what still is wrong at the end fails the test, with the seed."""

        async def right() -> bool:
            with suppress(BusError):
                return not await self.verdict(truth)
            return False

        with suppress(AssertionError):  # what is wrong says more than "not in time"
            await eventually(right, timeout=SETTLE_SECONDS, interval=0.2)
        wrong = await self.verdict(truth)
        assert not wrong, f"seed {seed}, {len(wrong)} complaints: " + "\n".join(wrong[:12])


@asynccontextmanager
async def churning(churn: Churn, every: float = 0.002) -> AsyncIterator[None]:
    """A load in the background; its own failure fails the test."""
    task = asyncio.create_task(churn.run(every))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def die(seed: int, name: str) -> random.Random:
    """The source of every random choice of one test."""
    return random.Random(f"{name}/{seed}")
