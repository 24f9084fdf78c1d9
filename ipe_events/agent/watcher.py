"""One resource of one cluster from restart to restart: restore, watch, checkpoint.

A watcher first finds out what has been published (``Checkpoints.restore``), says which gaps it sees, then runs a reflector into a
feed. While it runs, ``save`` writes the resume point and, now and then, the index; both only as far as the stream has
acknowledged, and the index never after the resume point that relies on it.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ipe_events.agent.checkpoint import Checkpoints, ClusterPoint, Restored, ResumePoint
from ipe_events.agent.feed import Cause as ChangeCause
from ipe_events.agent.feed import Feed, Identity, resource_filter
from ipe_events.agent.redaction import Redactor
from ipe_events.bus.publisher import Lane, Publisher
from ipe_events.clock import Clock
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.discovery import ApiResource
from ipe_events.kube.reflector import Options, Reflector, Report
from ipe_events.kube.reflector_rules import Cause, Phase
from ipe_events.kube.selection import Selection
from ipe_events.kube.session import KubeSession
from ipe_events.telemetry.log import get_logger

_log = get_logger(__name__)


class Surroundings(NamedTuple):
    """What all watchers of a cluster share.

    Attributes:
        cluster: the operator's name for it.
        point: identity and epoch.
        session: with its API server.
        publisher: of its changes.
        redactor: of its objects.
        checkpoints: of its resources.
        clock: dates changes.
        lists: held while a list runs.
        reachable: set while the API server answers.
        on_gap: told resource, cause, since, until, object and sentence.
        on_report: told how requests end.
        on_open: told that a request was answered.
        on_rewound: told that the history went backwards: resource, highest seen, seen now.
        links: (uid, resourceVersion) → the command of this agent that made it.
    """

    cluster: str
    point: ClusterPoint
    session: KubeSession
    publisher: Publisher
    redactor: Redactor
    checkpoints: Checkpoints
    clock: Clock
    lists: asyncio.Semaphore
    reachable: asyncio.Event
    on_gap: Callable[[str, str, str, str, str, str], None]
    on_report: Callable[["Watcher", Report], None]
    on_open: Callable[["Watcher"], None]
    on_rewound: Callable[[str, int, int], None]
    links: dict[tuple[str, int], ChangeCause]


class _Snapshot(NamedTuple):
    """An index that waits until everything in it is acknowledged."""

    needs: int
    point: ResumePoint
    data: bytes


class Watcher:
    """One resource.

    Args:
        around: what it shares.
        resource: which one.
        selection: which objects count.
        options: of the reflector.
        index_seconds: between two index snapshots.

    Attributes:
        state: ``syncing``, ``watching``, ``refused: …`` or ``failing: …``.
        synced: whether the collection is complete.
    """

    def __init__(
        self, around: Surroundings, resource: ApiResource, selection: Selection, options: Options, *, index_seconds: float
    ) -> None:
        self.resource = resource
        self.name = str(resource.ref)
        self.state = "syncing"
        self.synced = False
        self.refusal = ""
        self.healthy = False
        self._around = around
        self._selection = selection
        self._options = options
        self._index_seconds = index_seconds
        self._loop = asyncio.get_running_loop()
        self._gaps: list[tuple[str, str]] = []
        self._saved: ResumePoint | None = None
        self._snapshot: _Snapshot | None = None
        self._snapshot_at = 0.0
        self._snapshot_sequence = -1
        self._has_snapshot = False
        self._behind = 0
        self._lane: Lane | None = None
        self._feed: Feed | None = None
        self._reflector: Reflector | None = None

    @property
    def ref(self) -> ResourceRef:
        """The resource."""
        return self.resource.ref

    @property
    def objects(self) -> int:
        """Objects in the index."""
        return 0 if self._feed is None else len(self._feed.index)

    @property
    def sequence(self) -> int:
        """Changes published since the epoch began."""
        return 0 if self._feed is None else self._feed.sequence

    @property
    def silent_seconds(self) -> float:
        """Since the last byte of the watch; 0 when none runs."""
        return 0.0 if self._reflector is None else self._reflector.silent_seconds

    @property
    def settled(self) -> bool:
        """Refused, or complete and everything of it acknowledged."""
        return bool(self.refusal) or (self.synced and self._lane is not None and not self._lane.unacked)

    def retry_now(self) -> None:
        """Do not wait any longer for the next request."""
        if self._reflector is not None:
            self._reflector.retry_now()

    async def run(self) -> None:
        """Until cancelled, or until the history went backwards.

        Raises:
            BusError: what was published before cannot be found out.
        """
        around = self._around
        restored = await around.checkpoints.restore(self.ref, around.point, self._selection.digest)
        self._gaps = restored.gaps
        self._build(restored)
        assert self._reflector is not None
        await self._reflector.run()

    def _build(self, restored: Restored) -> None:
        around = self._around
        self._has_snapshot = restored.has_snapshot
        # until the watch has caught up with the stream, its place and the stream's do not belong together
        self._behind = restored.newest
        self._lane = around.publisher.lane(resource_filter(around.cluster, self.ref), after=restored.last_seq)
        self._lane.acked_seq = restored.last_seq
        self._feed = Feed(
            Identity(around.cluster, around.point.cluster_uid, around.point.epoch),
            self.resource,
            index=restored.index,
            redactor=around.redactor,
            selection=self._selection,
            publisher=around.publisher,
            lane=self._lane,
            clock=around.clock,
            drop_managed_fields=self._options.drop_managed_fields,
            on_gap=lambda cause, subject, detail: around.on_gap(self.name, cause, "", "", subject, detail),
            links=around.links,
        )
        self._feed.sequence = restored.sequence
        self.synced = bool(restored.resume)
        self._reflector = Reflector(
            around.session,
            self.resource,
            self._feed,
            version=restored.resume,
            seen=restored.newest,
            options=self._options,
            limit=around.lists,
            gate=around.reachable,
            opened=self._opened,
            report=self._reported,
            rewound=lambda before, now: around.on_rewound(self.name, before, now),
        )

    def _opened(self) -> None:
        self.healthy = True
        self.refusal = ""
        self.state = "watching" if self.synced else "syncing"
        self._around.on_open(self)

    def _reported(self, report: Report) -> None:
        if report.cause is Cause.SYNCED:
            self.synced = True
            self.state = "watching"
            until = str(report.position.version)
            gaps, self._gaps = self._gaps, []
            for cause, since in gaps:
                self._around.on_gap(self.name, cause, since, until, "", _EXPLANATIONS[cause])
        elif report.position.phase is Phase.LIST and self.synced and not self._gaps:
            # whatever makes a watch list again, states between its last and the list are not seen
            cause = "history-expired" if report.cause is Cause.GONE else "relisted"
            self._gaps.append((cause, str(report.position.version)))
        elif report.cause is Cause.REFUSED and report.error is not None:
            why = self._around.redactor.redact_text(report.error.message)
            if not self.refusal:  # asked again every few minutes, told once
                _log.warning("the API server refuses a resource", cluster=self._around.cluster, resource=self.name, error=why)
            self.refusal = why
            self.state = f"refused: {why}"
        elif report.error is not None:
            self.state = f"failing: {self._around.redactor.redact_text(report.error.message)}"
        if report.cause not in (Cause.SYNCED, Cause.ENDED):
            self.healthy = report.position.failures < 2 and report.cause is not Cause.UNREACHABLE
        self._around.on_report(self, report)

    # --- checkpoints -----------------------------------------------------------------------------------------------------

    async def save(self, *, final: bool = False) -> None:
        """Write what has become certain since the last call; ``final``: also the index, if it changed at all.

        Raises:
            BusError: not written; the next call tries again.
        """
        lane = self._lane
        if lane is None or not self.synced or not lane.acked_mark or lane.acked_mark < self._behind:
            return
        point = self._point(lane)  # as it was when the caller saw that nothing stands against it
        await self._save_index(lane, final=final)
        if self._has_snapshot and point != self._saved:
            await self._around.checkpoints.save(self.ref, point)
            self._saved = point

    def _point(self, lane: Lane) -> ResumePoint:
        point = self._around.point
        return ResumePoint(
            cluster_uid=point.cluster_uid,
            epoch=point.epoch,
            resource_version=lane.acked_mark,
            stream=lane.stream,
            seq=lane.acked_seq,
            sequence=self.sequence - lane.unacked,
            selection=self._selection.digest,
        )

    async def _save_index(self, lane: Lane, *, final: bool) -> None:
        assert self._feed is not None
        now = self._loop.time()
        due = not self._has_snapshot or final or now - self._snapshot_at >= self._index_seconds
        if self._snapshot is None and due and self.sequence != self._snapshot_sequence:
            # the index holds changes that are still on their way: it is stored once they are acknowledged, under the sequence
            # from which on the stream must be replayed over it
            self._snapshot_at, self._snapshot_sequence = now, self.sequence
            rows = self._feed.index.copy()
            point = self._point(lane)
            needs = lane.sent
            self._snapshot = _Snapshot(needs, point, await asyncio.to_thread(rows.dump))
        if self._snapshot is not None and lane.acked >= self._snapshot.needs:
            waiting = self._snapshot
            await self._around.checkpoints.save_index(self.ref, waiting.point, waiting.data)
            self._snapshot = None
            self._has_snapshot = True


_EXPLANATIONS = {
    "first-start": "nothing was recorded before",
    "stream-lost": "the stream is shorter than what it had acknowledged",
    "selection": "other objects are selected than before",
    "restored": "the cluster's history went backwards",
    "retention": "the stream no longer holds what the stored index needs",
    "relisted": "the watch could not go on where it was; states in between are unknown",
    "history-expired": "the API server no longer had the history; states in between are unknown",
}
"""What each cause of a gap means, for people."""
