"""Everything that is collected from one cluster: connect, identify, watch what is wanted, say how it goes.

A collector never ends by itself and never disturbs another: it has its own HTTP session, publisher (and with it its own memory
budget), breaker and tasks. Its life is a loop of *epochs*. In an epoch it knows the cluster's identity (uid of ``kube-system``)
and runs one supervised ``Watcher`` per resource; when the cluster's history goes backwards (etcd restored) or another cluster
answers at the same place, the epoch ends, that is published, and everything is listed again under new ids.

While the API server does not answer at all, one probe asks for it instead of every watcher. While the bus is gone the publisher
is full, so nothing is read; what was handed over before is kept and sent later.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, NamedTuple

from ipe_events.agent.announcer import Announcer
from ipe_events.agent.checkpoint import Checkpoints, ClusterPoint
from ipe_events.agent.feed import Cause as ChangeCause
from ipe_events.agent.redaction import Redactor
from ipe_events.agent.selecting import CollectSettings
from ipe_events.agent.watcher import Surroundings, Watcher
from ipe_events.bus.connection import Bus
from ipe_events.bus.publisher import Publisher
from ipe_events.clock import SYSTEM, Clock
from ipe_events.errors import BusError, IpeError, KubeError
from ipe_events.events.cluster import ClusterEvent, Connected, Disconnected, Epoch, Gap, Heartbeat, Stale
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import NO_SUCH_RESOURCE, AgentStatus
from ipe_events.kube.discovery import Discovery
from ipe_events.kube.reflector import Report
from ipe_events.kube.reflector_rules import FIRST_DELAY, HEALTHY_SECONDS, LONGEST_DELAY, REFUSED_DELAY, Cause
from ipe_events.kube.session import KubeSession
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import gauge
from ipe_events.telemetry.trace import Trace

__all__ = ["CollectSettings", "Collector"]

_log = get_logger(__name__)

CONNECTED = gauge("ipe_cluster_connected", "1 while the API server answers.", ("cluster",))
SILENT = gauge("ipe_watch_silent_seconds", "Seconds since the last byte of a watch.", ("cluster", "resource"))
OBJECTS = gauge("ipe_index_objects", "Objects in the index.", ("cluster", "resource"))

_LOOK_SECONDS = 0.1
_DISCOVERY_SECONDS = 10.0
"""How often a resource is looked for that the cluster lacks: every event of any watch leads there."""
_LINKS = 10_000
_IDENTITY = "/api/v1/namespaces/kube-system"


class _Running(NamedTuple):
    watcher: Watcher
    task: asyncio.Task[None]


class _EpochEnded(Exception):
    """The cluster's history went backwards, or it is another cluster."""


class Collector:
    """The collection of one cluster; ``run`` it under supervision.

    Args:
        cluster: the operator's name for it.
        session: with its API server; the caller closes it.
        bus: where changes go.
        settings: what is collected.
        clock: of the process.
        agent_id: who says so on the bus.
        on_event: told of each cluster event after it was published.

    Attributes:
        cluster_uid: identity of the cluster; empty before it was reached.
        epoch: of its history; 0 before it was reached.
        discovery: what the API server offers.
        redactor: masks what leaves this cluster.
    """

    def __init__(
        self,
        cluster: str,
        session: KubeSession,
        bus: Bus,
        settings: CollectSettings,
        *,
        clock: Clock = SYSTEM,
        agent_id: str = "",
        on_event: Callable[[ClusterEvent], Awaitable[None] | None] | None = None,
    ) -> None:
        self.cluster = cluster
        self.cluster_uid = ""
        self.epoch = 0
        self.discovery = Discovery()
        self.redactor = Redactor(settings.redaction, settings.redaction_key)
        self._session = session
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._agent_id = agent_id or bus.identity
        self._checkpoints = Checkpoints(bus, cluster)
        self._announcer = Announcer(bus, cluster, self._agent_id, on_event)
        self._wanted: frozenset[ResourceRef] = frozenset()
        self._changed = asyncio.Event()
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._state = "connecting"
        self._running: dict[ResourceRef, _Running] = {}
        self._refused: dict[str, str] = {}
        self._looked_for: tuple[frozenset[ResourceRef], float] = (frozenset(), 0.0)
        self._links: dict[tuple[str, int], ChangeCause] = {}
        self._ended: asyncio.Future[Epoch | None] = asyncio.get_running_loop().create_future()
        self._lost = asyncio.Event()
        self._announced_connected = False
        self._started = False
        self._publisher: Publisher | None = None
        self._connected_gauge = CONNECTED.labels(cluster)

    # --- for others --------------------------------------------------------------------------------------------------------

    def want(self, resources: Collection[ResourceRef]) -> None:
        """What handlers need; what may not or cannot be collected is named in the status."""
        self._wanted = frozenset(resources)
        self._changed.set()

    def written(self, uid: str, resource_version: str, hops: int, command_id: str, trace: Trace) -> None:
        """The agent itself wrote this version of an object: its change carries the command and its trace, if it comes later."""
        if not resource_version.isdecimal():
            return
        while len(self._links) >= _LINKS:
            del self._links[next(iter(self._links))]
        self._links[(uid, int(resource_version))] = ChangeCause(command_id, hops, trace.traceparent)

    def status(self) -> AgentStatus:
        """What is collected, in which state."""
        watchers = [running.watcher for running in self._running.values()]
        return AgentStatus(
            cluster=self.cluster,
            cluster_uid=self.cluster_uid,
            epoch=self.epoch,
            agent=self._agent_id,
            state=self._state,
            server_version=self.discovery.version,
            resources={name: f"refused: {why}" for name, why in self._refused.items()}
            | {watcher.name: watcher.state for watcher in watchers},
            objects={watcher.name: watcher.objects for watcher in watchers},
            time=self._clock.now(),
        )

    @property
    def publisher_error(self) -> BusError | None:
        """Why changes cannot be stored at present; None when they can."""
        return None if self._publisher is None else self._publisher.error

    # --- life ----------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Collect until cancelled."""
        async with Publisher(self._bus, window=self._settings.window, max_bytes=self._settings.max_bytes) as publisher:
            self._publisher = publisher
            announcing = asyncio.create_task(self._announcer.run(), name=f"announcer-{self.cluster}")
            try:
                delay = FIRST_DELAY
                while True:
                    point = await self._persistently(self._identify)
                    began = self._clock.monotonic()
                    with suppress(_EpochEnded):
                        await self._live(point, publisher, announcing)
                    # each epoch lists everything again: a cluster whose history jumps all the time must not make a storm of it
                    delay = FIRST_DELAY if self._clock.monotonic() - began > HEALTHY_SECONDS else min(delay * 2, LONGEST_DELAY)
                    await asyncio.sleep(delay)
            finally:
                self._publisher = None
                await end(announcing)

    async def _persistently(self, step: Callable[[], Awaitable[ClusterPoint]]) -> ClusterPoint:
        """Repeat a step until it succeeds; the cluster counts as disconnected meanwhile."""
        delay = FIRST_DELAY
        while True:
            try:
                return await step()
            except IpeError as error:
                if isinstance(error, KubeError):
                    self._disconnected(error)
                _log.warning("cluster cannot be collected yet", cluster=self.cluster, error=self.redactor.redact_text(str(error)))
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _identify(self) -> ClusterPoint:
        """Whose API answers here, and in which epoch of its history we are."""
        namespace = await self._session.json("GET", _IDENTITY)
        uid = namespace.get("metadata", {}).get("uid") if isinstance(namespace, dict) else None
        if not isinstance(uid, str) or not uid:
            raise KubeError("kube-system has no uid, so the cluster has no identity", where=f"{self.cluster}: GET {_IDENTITY}")
        await self.discovery.load(self._session)
        known = await self._checkpoints.load_cluster()
        if known is None or known.cluster_uid != uid:
            if known is not None:
                detail = f"another cluster answers under this name: {uid} instead of {known.cluster_uid}"
                self._say_gap("", "new-identity", "", "", "", detail)
            known = ClusterPoint(uid, 1)
            await self._checkpoints.save_cluster(known)
        self.cluster_uid, self.epoch = known.cluster_uid, known.epoch
        return known

    async def _live(self, point: ClusterPoint, publisher: Publisher, announcing: asyncio.Task[None]) -> None:
        """One epoch.

        Raises:
            _EpochEnded: the next one begins.
        """
        around = self._surroundings(point, publisher)
        self._ended = asyncio.get_running_loop().create_future()
        self._lost.clear()
        self._announced_connected = self._started = False
        self._state = "syncing"
        self._reachable.set()
        helpers = [
            asyncio.create_task(step(), name=f"{step.__name__.strip('_')}-{self.cluster}")
            for step in (self._probe, self._heartbeat, self._save_all)
        ]
        try:
            await self._supervise(around, [announcing, *helpers])
        except asyncio.CancelledError:
            await end(*(running.task for running in self._running.values()))
            if self._settings.farewell_seconds and self._bus.connected:
                await self.flush(self._settings.farewell_seconds)
            raise
        finally:
            await end(*helpers, *(running.task for running in self._running.values()))
            self._running.clear()

    async def _supervise(self, around: Surroundings, helpers: list[asyncio.Task[None]]) -> None:
        """Run the watchers that are wanted, and those that failed again, until the epoch ends."""
        self._changed.set()
        retry_at: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            changed = asyncio.create_task(self._changed.wait())
            waited: set[asyncio.Future[Any]] = {changed, self._ended, *helpers}
            waited |= {running.task for running in self._running.values()}
            timeout = None if retry_at is None else max(0.0, retry_at - loop.time())
            try:
                await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if self._ended.done():
                event = self._ended.result()
                if event is not None:
                    await self._next_epoch(event)
                raise _EpochEnded
            for helper in helpers:
                if helper.done():
                    helper.result()
            self._changed.clear()
            self._reap()
            missing = await self._start_and_stop(around)
            self._started = True
            retry_at = loop.time() + REFUSED_DELAY if missing else None
            self._look_connected()

    def _reap(self) -> None:
        """Forget watchers that ended; they are started again."""
        for ref, running in list(self._running.items()):
            if running.task.done():
                del self._running[ref]
                error = None if running.task.cancelled() else running.task.exception()
                if error is not None and not isinstance(error, IpeError):
                    _log.error("a watcher failed", cluster=self.cluster, resource=str(ref), exc_info=error)
                elif error is not None:
                    _log.warning("a watcher failed", cluster=self.cluster, resource=str(ref), error=str(error))

    async def _start_and_stop(self, around: Surroundings) -> bool:
        """Bring the watchers in line with what is wanted; returns whether some resource is missing in the cluster."""
        effective: set[ResourceRef] = set()
        self._refused = {}
        unknown = False
        wanted = self._wanted | set(self._settings.always)
        lacking = frozenset(ref for ref in wanted if self.discovery.find(ref) is None and not self._settings.why_not(ref))
        asked, when = self._looked_for
        if lacking and (lacking != asked or self._clock.monotonic() - when >= _DISCOVERY_SECONDS):
            self._looked_for = (lacking, self._clock.monotonic())
            with suppress(KubeError):  # what was known stays; the probe tells when the server is away
                await self.discovery.load(self._session)
        for ref in wanted:
            why = self._settings.why_not(ref)
            found = self.discovery.find(ref)
            if not why and found is None:
                why, unknown = NO_SUCH_RESOURCE, True
            elif not why and found is not None and not {"list", "watch"} <= found.verbs:
                why = "the API server can neither list nor watch it"
            if why:
                self._refused[str(ref)] = why
            else:
                effective.add(ref)
        for ref in set(self._running) - effective:
            await end(self._running.pop(ref).task)
        for ref in sorted(effective - set(self._running), key=str):
            watcher = Watcher(
                around,
                self.discovery.resource(ref),
                self._settings.selection(ref),
                self._settings.options(ref),
                index_seconds=self._settings.index_seconds,
            )
            self._running[ref] = _Running(watcher, asyncio.create_task(_watch(watcher), name=f"watch-{self.cluster}-{ref}"))
        return unknown

    async def _next_epoch(self, event: Epoch) -> None:
        """The history went backwards: remember that before anything is listed again."""
        self.epoch = event.epoch
        await self._persistently(lambda: self._save_epoch(event.epoch))
        self._announcer.say(event)
        self._say_gap(
            "", "restored", event.previous_resource_version, event.resource_version, "", "the cluster's history went backwards"
        )

    async def _save_epoch(self, epoch: int) -> ClusterPoint:
        point = ClusterPoint(self.cluster_uid, epoch)
        await self._checkpoints.save_cluster(point)
        return point

    def _surroundings(self, point: ClusterPoint, publisher: Publisher) -> Surroundings:
        return Surroundings(
            cluster=self.cluster,
            point=point,
            session=self._session,
            publisher=publisher,
            redactor=self.redactor,
            checkpoints=self._checkpoints,
            clock=self._clock,
            lists=asyncio.Semaphore(self._settings.parallel_lists),
            reachable=self._reachable,
            on_gap=self._say_gap,
            on_report=self._on_report,
            on_open=self._on_open,
            on_rewound=self._on_rewound,
            links=self._links,
        )

    # --- what watchers tell --------------------------------------------------------------------------------------------------

    def _on_rewound(self, resource: str, before: int, now: int) -> None:
        if not self._ended.done():
            self._state = "syncing"
            _log.warning("the cluster's history went backwards", cluster=self.cluster, resource=resource, before=before, now=now)
            self._ended.set_result(
                Epoch(
                    cluster=self.cluster,
                    cluster_uid=self.cluster_uid,
                    epoch=self.epoch + 1,
                    time=self._clock.now(),
                    previous_resource_version=str(before),
                    resource_version=str(now),
                )
            )

    def _on_open(self, _watcher: Watcher) -> None:
        if self._state == "disconnected":
            self._state = "syncing"
            self._announced_connected = False
        self._changed.set()

    def _on_report(self, watcher: Watcher, report: Report) -> None:
        if report.cause is Cause.SILENT:
            self._announcer.say(Stale(**self._common(), resource=watcher.name, silent_seconds=self._settings.silent_seconds))
        if report.error is not None and report.cause is not Cause.REFUSED:
            active = [running.watcher for running in self._running.values() if not running.watcher.refusal]
            if report.cause is Cause.UNREACHABLE or (active and not any(each.healthy for each in active)):
                self._disconnected(report.error)
                self._reachable.clear()
                self._lost.set()
        self._changed.set()

    def _disconnected(self, error: KubeError) -> None:
        if self._state == "disconnected":
            return
        self._state = "disconnected"
        self._connected_gauge.set(0)
        self._announcer.say(Disconnected(**self._common(), error=self.redactor.redact_text(str(error))))

    def _look_connected(self) -> None:
        """Announce ``connected`` once everything is synced, refused, or on the bus."""
        watchers = [running.watcher for running in self._running.values()]
        if self._announced_connected or not self._started or not self._reachable.is_set():
            return
        if not all(each.settled for each in watchers):
            return
        self._announced_connected = True
        self._state = "connected"
        self._connected_gauge.set(1)
        refused = self._refused | {each.name: each.refusal for each in watchers if each.refusal}
        collected = tuple(sorted(each.name for each in watchers if not each.refusal))
        self._announcer.say(Connected(**self._common(), version=self.discovery.version, resources=collected, refused=refused))

    def _say_gap(self, resource: str, cause: str, since: str, until: str, subject_object: str, detail: str) -> None:
        self._announcer.say(
            Gap(
                **self._common(),
                resource=resource,
                cause=cause,
                since=since,
                until=until,
                subject_object=subject_object,
                detail=self.redactor.redact_text(detail),
            )
        )

    def _common(self) -> dict[str, Any]:
        return {"cluster": self.cluster, "cluster_uid": self.cluster_uid, "epoch": self.epoch, "time": self._clock.now()}

    # --- helpers that run all the time -----------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        """While the API server does not answer, ask for it in everybody's place; then make sure that it is the same one."""
        while True:
            await self._lost.wait()
            delay = FIRST_DELAY
            while self._lost.is_set():
                try:
                    namespace = await self._session.json("GET", _IDENTITY)
                    self._lost.clear()
                except KubeError as error:
                    if not error.retryable:  # it answers, if only to refuse: the watchers will tell why
                        self._lost.clear()
                        break
                    await asyncio.sleep(delay * random.uniform(1, 2))  # noqa: S311 - jitter
                    delay = min(delay * 2, LONGEST_DELAY)
                else:
                    uid = namespace.get("metadata", {}).get("uid") if isinstance(namespace, dict) else None
                    if uid != self.cluster_uid and not self._ended.done():
                        self._ended.set_result(None)
            self._reachable.set()
            for running in self._running.values():
                running.watcher.retry_now()

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat)
            watchers = [running.watcher for running in self._running.values()]
            for each in watchers:
                SILENT.labels(self.cluster, each.name).set(each.silent_seconds)
                OBJECTS.labels(self.cluster, each.name).set(each.objects)
            if self._state == "connected":
                sequences = {each.name: each.sequence for each in watchers}
                silent = {each.name: round(each.silent_seconds, 1) for each in watchers}
                self._announcer.say(Heartbeat(**self._common(), sequences=sequences, silent_seconds=silent))

    async def _save_all(self) -> None:
        """Write resume points, and notice when the last initial change is acknowledged."""
        loop = asyncio.get_running_loop()
        saved = loop.time()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._look_connected()
            if loop.time() - saved >= self._settings.checkpoint_seconds and self._bus.connected:
                saved = loop.time()
                await self._save(final=False)

    async def _save(self, *, final: bool) -> None:
        for running in list(self._running.values()):
            if self._announcer.waiting:
                return  # a resume point behind a gap that nobody was told of would make it silent for ever
            try:
                await running.watcher.save(final=final)
            except BusError as error:
                _log.warning("resume point not written", cluster=self.cluster, resource=running.watcher.name, error=str(error))

    async def flush(self, timeout: float = 10.0) -> None:
        """Wait until what was read is acknowledged, then write index and resume points for a quick start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                if self._publisher is not None:
                    await self._publisher.drain()
                await self._announcer.drain()
                await self._save(final=True)
                await self._save(final=True)


async def _watch(watcher: Watcher) -> None:
    """A watcher that waits before it fails, so that a broken bus is not asked all the time."""
    try:
        await watcher.run()
    except Exception:
        await asyncio.sleep(FIRST_DELAY * random.uniform(1, 3))  # noqa: S311 - jitter
        raise
