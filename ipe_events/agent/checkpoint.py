"""Where a collector goes on after a restart, kept on the bus beside what it describes.

Per cluster and resource there is a *resume point* in KV (resourceVersion, stream sequence, epoch …), written only when everything
up to it is acknowledged, and an *index snapshot* in the object store. The snapshot may be older: what the stream holds behind its
sequence is replayed over it, headers only, so that the index is exactly what has been published. Then a relist is a true diff,
and what was deleted while nobody watched is published as deleted even when the resourceVersion has expired.
"""

from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from ipe_events.agent.feed import resource_filter
from ipe_events.bus.connection import Bus
from ipe_events.bus.tail import stream_of, tail
from ipe_events.errors import BusNotFound, IpeError, SchemaError
from ipe_events.events.headers import REPLAY_OF, header
from ipe_events.events.ids import parse_change_id
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.decode import version_of
from ipe_events.kube.index import Index
from ipe_events.subjects import CHANGE, CORE, escape
from ipe_events.telemetry.log import get_logger

_log = get_logger(__name__)

CHECKPOINTS = "ipe_checkpoints"
INDEXES = "ipe_index"
_GONE = ("deleted", "left")
_REPLAY_OF = REPLAY_OF.encode()

T = TypeVar("T")


class ResumePoint(msgspec.Struct, frozen=True):
    """One resource's resume point.

    Attributes:
        cluster_uid: whose history the rest refers to.
        epoch: of that history.
        resource_version: everything up to here is in the stream.
        stream: that keeps it.
        seq: its sequence of the last message that is covered.
        sequence: changes published since the epoch began.
        selection: digest of the selection.
        version: of this document.
    """

    cluster_uid: str
    epoch: int
    resource_version: int
    stream: str
    seq: int
    sequence: int
    selection: str
    version: int = 1


class ClusterPoint(msgspec.Struct, frozen=True):
    """A cluster's identity and epoch; ``version`` is that of this document."""

    cluster_uid: str
    epoch: int
    version: int = 1


class _SnapshotHead(msgspec.Struct, frozen=True):
    """What an index snapshot covers."""

    cluster_uid: str
    epoch: int
    seq: int
    sequence: int
    selection: str
    version: int = 1


@dataclass
class Restored:
    """What is known of a resource before it is watched.

    Attributes:
        index: exactly what the stream says.
        sequence: changes published so far in this epoch.
        resume: resourceVersion to watch on from; 0: sync first.
        newest: the highest resourceVersion known of this epoch; a watch below it repeats what the stream holds.
        stream: the changes' stream; empty when there is none.
        last_seq: the stream's last sequence.
        gaps: (cause, since) of what the record may miss.
        has_snapshot: whether a snapshot was there.
    """

    index: Index = field(default_factory=Index)
    sequence: int = 0
    resume: int = 0
    newest: int = 0
    stream: str = ""
    last_seq: int = 0
    gaps: list[tuple[str, str]] = field(default_factory=list)
    has_snapshot: bool = False


class Checkpoints:
    """The resume points and index snapshots of one cluster.

    Args:
        bus: the connection.
        cluster: the operator's name for it.
    """

    def __init__(self, bus: Bus, cluster: str) -> None:
        self._bus = bus
        self._cluster = cluster

    def _key(self, ref: ResourceRef) -> str:
        return f"{escape(self._cluster)}.{CORE if not ref.group else escape(ref.group)}.{escape(ref.resource)}"

    # --- the cluster -------------------------------------------------------------------------------------------------------

    async def load_cluster(self) -> ClusterPoint | None:
        """The cluster's last identity and epoch; None at the first start."""
        kv = await self._bus.kv(CHECKPOINTS, create=True)
        entry = await kv.get(escape(self._cluster))
        return None if entry is None else _decode(entry.value, ClusterPoint, f"{CHECKPOINTS}/{escape(self._cluster)}")

    async def save_cluster(self, point: ClusterPoint) -> None:
        """Remember identity and epoch."""
        kv = await self._bus.kv(CHECKPOINTS, create=True)
        await kv.put(escape(self._cluster), msgspec.json.encode(point))

    # --- resources -----------------------------------------------------------------------------------------------------------

    async def save(self, ref: ResourceRef, point: ResumePoint) -> None:
        """Remember a resume point."""
        kv = await self._bus.kv(CHECKPOINTS, create=True)
        await kv.put(self._key(ref), msgspec.json.encode(point))

    async def save_index(self, ref: ResourceRef, point: ResumePoint, data: bytes) -> None:
        """Remember an index (``Index.dump``) of which everything up to ``point.seq`` and more is in the stream."""
        head = _SnapshotHead(point.cluster_uid, point.epoch, point.seq, point.sequence, point.selection)
        store = await self._bus.object_store(INDEXES, create=True)
        await store.put(self._key(ref), msgspec.json.encode(head) + b"\n" + data)

    async def restore(self, ref: ResourceRef, identity: ClusterPoint, selection: str) -> Restored:
        """Everything that is known of a resource before it is watched.

        Raises:
            BusError: the bus does not answer; nothing may be concluded.
        """
        found = Restored()
        point = await self._load_point(ref, identity)
        snapshot = await self._load_snapshot(ref, identity)
        subjects = resource_filter(self._cluster, ref)
        found.stream = await stream_of(self._bus, subjects)
        start = 1
        if snapshot is not None:
            head, found.index = snapshot
            found.has_snapshot = True
            # a snapshot whose resume point was never written is ahead of it: what lies between is replayed as well, so that
            # deletes in it are known when the watch brings their objects again
            start = min(head.seq, head.seq if point is None else point.seq) + 1
            found.sequence = head.sequence
            if head.epoch != identity.epoch:
                found.index.forget_versions()
                found.sequence = 0
        first_seq = 1
        if found.stream:
            state = (await self._bus.stream_info(found.stream))["state"]
            first_seq, found.last_seq = int(state["first_seq"]), int(state["last_seq"])
        lost = point is not None and found.last_seq < point.seq
        newest = await self._replay(found, subjects, 1 if lost else start, identity)
        found.newest = max([newest, *(version for _, (version, _, _) in found.index.items())])
        if point is not None and point.epoch == identity.epoch:
            found.newest = max(found.newest, point.resource_version)
        if point is None:
            found.gaps.append(("first-start", ""))
        elif lost:
            found.gaps.append(("stream-lost", str(newest)))
            found.index.forget_versions(above=newest)
        elif point.selection != selection:
            found.gaps.append(("selection", str(point.resource_version)))
        elif point.epoch != identity.epoch:
            found.gaps.append(("restored", str(point.resource_version)))
        elif snapshot is None or first_seq > start:
            found.gaps.append(("retention", str(point.resource_version)))
        else:
            found.resume = point.resource_version
            found.sequence = max(found.sequence, point.sequence)
        return found

    async def _load_point(self, ref: ResourceRef, identity: ClusterPoint) -> ResumePoint | None:
        kv = await self._bus.kv(CHECKPOINTS, create=True)
        entry = await kv.get(self._key(ref))
        if entry is None:
            return None
        point = _decode(entry.value, ResumePoint, f"{CHECKPOINTS}/{entry.key}")
        return point if point.cluster_uid == identity.cluster_uid else None

    async def _load_snapshot(self, ref: ResourceRef, identity: ClusterPoint) -> tuple[_SnapshotHead, Index] | None:
        store = await self._bus.object_store(INDEXES, create=True)
        try:
            data = await store.get(self._key(ref))
        except BusNotFound:
            data = None
        if data is None:
            return None
        text, _, body = data.partition(b"\n")
        try:
            head = _decode(text, _SnapshotHead, f"{INDEXES}/{self._key(ref)}")
            return (head, Index.load(body)) if head.cluster_uid == identity.cluster_uid else None
        except SchemaError as error:
            # without it everything is listed again, which costs time and loses nothing
            _log.warning("the stored index is unusable", cluster=self._cluster, resource=str(ref), error=str(error))
            return None

    async def _replay(self, found: Restored, subjects: str, start: int, identity: ClusterPoint) -> int:
        """Apply what the stream holds from ``start`` on; returns the highest resourceVersion there in this epoch."""
        newest = 0
        if not found.stream or start > found.last_seq:
            return newest
        async with aclosing(tail(self._bus, found.stream, subjects, start=start)) as stored:
            async for delivery in stored:
                if header(delivery.header_bytes, _REPLAY_OF):
                    continue  # an operator's repetition for a handler: what it says of the object may be long past
                try:
                    change = parse_change_id(header(delivery.header_bytes, b"ce-id"))
                    values = CHANGE.parse(delivery.subject)
                    stored_version = version_of(change.resource_version, delivery.subject)
                except IpeError as error:
                    # somebody else published here; what is no change cannot be part of what we published
                    _log.warning("not a change", cluster=self._cluster, sequence=delivery.seq, error=str(error))
                    continue
                if change.cluster_uid != identity.cluster_uid:
                    continue
                same_epoch = change.epoch == identity.epoch
                version = stored_version if same_epoch else 0
                name = header(delivery.header_bytes, b"ce-name")
                found.index.replay(change.uid, version, values["namespace"], name, deleted=values["verb"] in _GONE)
                if same_epoch:
                    newest = max(newest, version)
                    sequence = header(delivery.header_bytes, b"ce-sequence")
                    found.sequence = max(found.sequence, int(sequence) if sequence.isdecimal() else 0)
        return newest


def _decode(data: bytes, shape: type[T], where: str) -> T:
    try:
        value = msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"is not what this agent writes: {error}", where=where) from error
    if getattr(value, "version", 1) != 1:
        raise SchemaError(f"has version {getattr(value, 'version', 0)}, this agent reads 1", where=where, fix="upgrade the agent")
    return value
