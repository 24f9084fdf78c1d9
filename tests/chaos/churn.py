"""A cluster in use: objects come, change and go, by a seeded die."""

import asyncio
import random
from typing import Any

from ipe_events.testing.fake.cluster import FakeCluster


def config_map(name: str, value: str = "1", **metadata: Any) -> dict[str, Any]:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"value": value}}


class Churn:
    """Changes ConfigMaps of a simulated cluster.

    Args:
        cluster: whose.
        rng: decides.

    Attributes:
        done: changes made.
    """

    def __init__(self, cluster: FakeCluster, rng: random.Random) -> None:
        self.done = 0
        self._cluster = cluster
        self._rng = rng
        self._names: list[str] = []
        self._made = 0

    def step(self) -> None:
        """One change: a new object, a changed one, or one that goes; some names come back with another uid."""
        choice = self._rng.random()
        if len(self._names) < 5 or choice < 0.35:
            self._made += 1
            name = f"map-{self._rng.choice((self._made, self._made % 20))}"
            if name not in self._names:
                self._cluster.create(config_map(name))
                self._names.append(name)
        elif choice < 0.7:
            value = {"data": {"value": str(self.done)}}
            self._cluster.patch("configmaps", self._rng.choice(self._names), value)
        else:
            self._cluster.delete("configmaps", self._names.pop(self._rng.randrange(len(self._names))))
        self.done += 1

    def burst(self, steps: int) -> None:
        """Several at once."""
        for _ in range(steps):
            self.step()

    async def run(self, every: float = 0.002) -> None:
        """One after another until cancelled."""
        while True:
            self.step()
            await asyncio.sleep(every)
