"""Only one agent of a cluster writes: the holder of its ``coordination.k8s.io`` Lease.

The holder renews every third of the Lease's duration. It counts its right to write from the moment at which it **sent** the
last successful renewal, by its own monotonic clock, and gives it up a fifth of the duration before another agent may take over;
a write gets no more time than that. The others do not compare clocks either: a Lease counts as abandoned when its record has
not changed for its full duration while they watched.

An agent that only reads holds nothing; it follows the Lease to know whether somebody else answers commands.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import orjson

from ipe_events.agent.config import LeaseSettings
from ipe_events.clock import SYSTEM, Clock, rfc3339
from ipe_events.errors import KubeConflict, KubeError, KubeForbidden, KubeNotFound
from ipe_events.kube.session import KubeSession
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

_SAFETY = 0.2
"""Part of the duration at whose beginning a holder that could not renew stops writing."""


_WRITER_RETURNS = 120.0
"""Seconds for which a reader leaves a Lease alone that has had a holder before it answers commands itself."""


class Role(StrEnum):
    """What this agent is to the cluster's Lease."""

    HOLDER = "holder"
    """We hold it, and may write."""
    STANDBY = "standby"
    """Another agent holds it."""
    VACANT = "vacant"
    """Nobody holds it, and we may not or do not want to."""
    UNKNOWN = "unknown"
    """It could not be read yet."""


class LeaseKeeper:
    """Holds or follows the Lease of one cluster.

    Args:
        session: of the cluster.
        settings: where the Lease is and how long it lasts.
        identity: of this agent; must differ between agents.
        hold: whether to try to hold it.
        on_role: called when the role changes; may be set later.
        clock: of the process.

    Attributes:
        role: as of the last look.
        problem: why the Lease cannot be held or read; empty when all is well.
        holder: who holds it, as far as known.
    """

    def __init__(
        self,
        session: KubeSession,
        settings: LeaseSettings,
        identity: str,
        *,
        hold: bool = True,
        on_role: Callable[[Role], None] = lambda _role: None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._session = session
        self._settings = settings
        self._identity = identity
        self._hold = hold
        self.on_role = on_role
        self._clock = clock
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._path = f"{self._collection}/{settings.name}"
        self._until = 0.0
        self._seen: tuple[str, float, float] | None = None
        self._free_since: float | None = None
        self.role = Role.UNKNOWN
        self.problem = ""
        self.holder = ""

    def remaining(self) -> float:
        """Seconds for which writing is safe; 0 when we are not the holder (any more)."""
        if self.role is not Role.HOLDER:
            return 0.0
        return max(0.0, self._until - self._clock.monotonic())

    def hopeless(self) -> str:
        """Why nobody holds the Lease and this agent cannot; empty when somebody does, or it is not known."""
        return self.problem if self.role is Role.VACANT else ""

    async def run(self) -> None:
        """Hold or follow the Lease until cancelled; never ends by itself."""
        while True:
            await self.turn()
            pause = self._settings.duration / (3 if self.role is Role.HOLDER else 5)
            if self.role is Role.HOLDER:
                pause = min(pause, max(0.05, self.remaining()))
            await asyncio.sleep(pause)

    async def turn(self) -> None:
        """One look at the Lease, and one attempt to take or renew it."""
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._settings.duration / 3):
                role = await self._attempt(started)
            self.problem = "" if role is not Role.VACANT or not self._hold else self.problem
        except KubeConflict:
            role = self._still_held()  # somebody was faster; the next turn sees who
        except KubeForbidden as error:
            self._complain(f"may not {'hold' if self._hold else 'read'} the Lease: {error.message}")
            # who should write says why it cannot; who only reads cannot know whether somebody else writes, and stays away
            role = self._still_held() if self.role is Role.HOLDER else Role.VACANT if self._hold else Role.STANDBY
        except (KubeError, TimeoutError) as error:
            self._complain(f"cannot reach the Lease: {error}")
            role = self._still_held()
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # whatever answered, it was no Lease
            self._complain(f"the API server answered with something that is no Lease: {error!r}")
            role = self._still_held()
        self._become(role)

    async def release(self) -> None:
        """Let another agent take over at once; on failure it takes over when the Lease has run out."""
        if self.role is not Role.HOLDER:
            return
        self._until = 0.0
        self._become(Role.STANDBY)
        try:
            async with asyncio.timeout(self._settings.duration / 3):
                lease = await self._session.json("GET", self._path)
                if lease.get("spec", {}).get("holderIdentity") == self._identity:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._put(lease)
        except (KubeError, TimeoutError) as error:
            log.warning("the Lease could not be released", cluster=self._session.name, error=str(error))

    async def _attempt(self, started: float) -> Role:
        try:
            lease = await self._session.json("GET", self._path)
        except KubeNotFound:
            self.holder = ""
            if not self._hold:
                return Role.VACANT
            return await self._create(started)
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        free = self.holder == self._identity or self._abandoned(lease, spec)
        if not self._hold:
            return self._followed(free, started)
        if not free:
            return Role.STANDBY
        now = rfc3339(self._clock.now())
        if self.holder != self._identity:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        lease["spec"] = spec | {
            "holderIdentity": self._identity,
            "renewTime": now,
            "leaseDurationSeconds": max(1, round(self._settings.duration)),
        }
        await self._put(lease)
        return self._held(started)

    async def _create(self, started: float) -> Role:
        now = rfc3339(self._clock.now())
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._settings.name, "namespace": self._settings.namespace},
            "spec": {
                "holderIdentity": self._identity,
                "acquireTime": now,
                "renewTime": now,
                "leaseDurationSeconds": max(1, round(self._settings.duration)),
                "leaseTransitions": 0,
            },
        }
        try:
            await self._session.request("POST", self._collection, body=orjson.dumps(lease))
        except KubeNotFound:
            self._complain(
                f"namespace {self._settings.namespace!r} does not exist: "
                f"`kubectl create namespace {self._settings.namespace}`, or set lease.namespace"
            )
            return Role.VACANT
        return self._held(started)

    async def _put(self, lease: dict[str, Any]) -> None:
        await self._session.request("PUT", self._path, body=orjson.dumps(lease))

    def _abandoned(self, lease: dict[str, Any], spec: dict[str, Any]) -> bool:
        """Whether the holder let go, or its record has not changed for its whole duration while we watched."""
        if not spec.get("holderIdentity"):
            return True
        now, version = self._clock.monotonic(), str(lease["metadata"].get("resourceVersion", ""))
        duration = float(spec.get("leaseDurationSeconds") or self._settings.duration)
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now, duration)
            return False
        return now - self._seen[1] >= self._seen[2]

    def _followed(self, free: bool, now: float) -> Role:
        """What a reader makes of the Lease: a writer that restarts leaves it free for a while, which is no reason to step in."""
        if not free:
            self._free_since = None
            return Role.STANDBY
        if self._free_since is None:
            self._free_since = now
        return Role.VACANT if now - self._free_since >= _WRITER_RETURNS else Role.STANDBY

    def _held(self, started: float) -> Role:
        self.holder = self._identity
        self._until = started + self._settings.duration * (1 - _SAFETY)
        return Role.HOLDER

    def _still_held(self) -> Role:
        """After a failed turn: the holder stays one while its last renewal lasts."""
        if self.role is Role.HOLDER:
            return Role.HOLDER if self.remaining() > 0 else Role.STANDBY
        return self.role

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("Lease trouble", cluster=self._session.name, problem=problem)
        self.problem = problem

    def _become(self, role: Role) -> None:
        if role is self.role:
            return
        log.info("Lease role changed", cluster=self._session.name, role=role.value, before=self.role.value, holder=self.holder)
        self.role = role
        self.on_role(role)
