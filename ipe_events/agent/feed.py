"""One resource's changes on their way to the bus: the hot path of the agent.

What the reflector sees (events, list items) becomes changes by the index's rule, is redacted, wrapped in its CloudEvents
envelope and handed to the publisher's lane. Per change this must stay within a few microseconds, so subjects and everything that
is the same for all changes of one verb and namespace are rendered once, ids for traces are cut from a block of random digits, and
the search for what must be masked runs over whole chunks where the reflector offers them.
"""

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from ipe_events.agent.redaction import RedactionError, Redactor
from ipe_events.bus.frames import percent_encode
from ipe_events.bus.publisher import Lane, Publisher
from ipe_events.clock import Clock, rfc3339
from ipe_events.errors import PayloadTooLarge
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.decode import Body, Item, Meta, Wants, WatchEvent, version_of
from ipe_events.kube.discovery import ApiResource
from ipe_events.kube.index import Entry, Index
from ipe_events.kube.selection import Selection
from ipe_events.subjects import CHANGE, partition
from ipe_events.telemetry.metrics import counter

EVENTS = counter("ipe_ingest_events_total", "Changes published.", ("cluster", "resource"))
STALE = counter("ipe_ingest_stale_total", "Events that brought nothing new (replayed or out of order).", ("cluster", "resource"))
UNSELECTED = counter("ipe_ingest_unselected_total", "Events of objects outside the selection.", ("cluster", "resource"))
STUBBED = counter("ipe_ingest_stubs_total", "Changes published without their object, by cause.", ("cluster", "resource", "cause"))

_SAFE = bytes(byte for byte in range(0x21, 0x7F) if byte not in b'"%')
"""What ``percent_encode`` leaves as it is."""
_LONGEST = 1_500
"""Characters of uid, namespace and name together beyond which no API server is believed (Kubernetes allows some 600). A subject
above 4 KiB ends the connection that all clusters share, and a header block above 64 KiB is refused for ever."""
_SHOWN = 100
_MOST_ROUTES = 20_000
"""Rendered subjects that are kept: clusters that make a namespace for each build must not fill the memory."""
_TRACE = len("0123456789abcdef-0123456789abcdef")
_TRACES = 512


class Cause(NamedTuple):
    """The command that made a change: its id, the length of its chain, and its trace (``traceparent``)."""

    command: str
    hops: int
    traceparent: str


class Identity(NamedTuple):
    """Whose changes these are: the operator's name, the cluster's uid, and its epoch."""

    cluster: str
    uid: str
    epoch: int


class Feed:
    """The changes of one resource; the reflector's sink.

    Args:
        identity: of the cluster.
        resource: which one, in the version that is watched.
        index: what is known; shared with the checkpoint.
        redactor: of the cluster.
        selection: which objects count.
        publisher: of the cluster.
        lane: of this resource.
        clock: dates what is read.
        drop_managed_fields: cut them out.
        on_gap: called with cause, object and sentence when a change is published without its object.
        links: (uid, resourceVersion) → the command of this agent that made it; an entry is taken out when its change comes.

    Attributes:
        sequence: changes published since the epoch began.
    """

    def __init__(
        self,
        identity: Identity,
        resource: ApiResource,
        *,
        index: Index,
        redactor: Redactor,
        selection: Selection,
        publisher: Publisher,
        lane: Lane,
        clock: Clock,
        drop_managed_fields: bool = False,
        on_gap: Callable[[str, str, str], None],
        links: dict[tuple[str, int], Cause],
    ) -> None:
        self.identity = identity
        self.resource = resource
        self.index = index
        self.sequence = 0
        self._redactor = redactor
        self._selection = None if selection.everything else selection
        self._publisher = publisher
        self._lane = lane
        self._clock = clock
        self._drop_managed_fields = drop_managed_fields
        self._on_gap = on_gap
        self._links = links
        self._ref = resource.ref
        self._where = f"{identity.cluster}: {self._ref}"
        self._always_redact = redactor.always(self._ref)
        self._chunk_is_clean = False
        self._routes: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._id_start = f"{identity.uid}/{identity.epoch}/{resource.group}/{resource.resource}/"
        self._time = ""
        self._trace_start = ""
        self._traces = ""
        self._trace_at = 0
        labels = (identity.cluster, str(self._ref))
        self._published, self._stale, self._unselected = EVENTS.labels(*labels), STALE.labels(*labels), UNSELECTED.labels(*labels)

    @property
    def wants(self) -> Wants:
        """What the reflector must decode."""
        labels = self._selection is not None and self._selection.wants.labels
        return Wants(labels=labels, managed_fields=self._drop_managed_fields)

    # --- the reflector's sink ------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the reflector must wait before it goes on."""
        return self._publisher.full

    async def wait_room(self) -> None:
        """Return when there is room."""
        await self._publisher.wait_room()

    def chunk(self, data: bytes) -> None:
        """Bytes that were just read; the events in them follow."""
        self._time = rfc3339(self._clock.now())
        self._chunk_is_clean = not self._always_redact and not self._redactor.suspicious(data)

    def event(self, event: WatchEvent, version: int) -> None:
        """ADDED, MODIFIED or DELETED, with its resourceVersion."""
        kind, head, body, whole = event
        meta = head.metadata
        if _is_unnameable(meta):
            self._leave_out(meta)
            self._lane.mark(version)
            return
        if self._selection is not None:
            body = bytes(body)  # few of many are published: do not hold the whole chunk for them
        if kind == "DELETED":
            if self.index.remove(meta.uid, version):
                self._publish("deleted", meta, version, body, mark=version, clean=whole and self._chunk_is_clean)
            else:
                self._skip(version)
            return
        if self._selection is not None and not self._selection.matches(meta, body):
            self._outside(meta, version, body, mark=version)
            return
        verb = self.index.put(meta.uid, version, meta.namespace, meta.name)
        if verb:
            self._publish(verb, meta, version, body, mark=version, clean=whole and self._chunk_is_clean)
        else:
            self._skip(version)

    def bookmark(self, version: int) -> None:
        """The watch is complete up to here."""
        self._lane.mark(version)

    def begin_list(self) -> None:
        """A complete list begins."""
        self.index.begin_list()

    def abort_list(self) -> None:
        """The list broke off."""
        self.index.abort_list()

    def item(self, item: Item) -> None:
        """An item of a list: published when it is news.

        Raises:
            KubeError: its resourceVersion is no number.
        """
        meta, body = item.head.metadata, item.body
        version = version_of(meta.resourceVersion, self._where)
        if _is_unnameable(meta):
            self._leave_out(meta)
            return
        self.index.mark(meta.uid)
        if self._selection is not None and not self._selection.matches(meta, body):
            self._outside(meta, version, body, mark=0, synthetic=True)
            return
        verb = self.index.put(meta.uid, version, meta.namespace, meta.name)
        if verb:
            self._publish(verb, meta, version, body, synthetic=True)

    def end_list(self, version: int) -> None:
        """The list of this resourceVersion is complete: what it did not contain has been deleted."""
        for uid, entry in self.index.end_list(version):
            self._vanished(uid, entry, version)
        self.index.forget_deletes()
        self._lane.mark(version)

    # --- changes ---------------------------------------------------------------------------------------------------------

    def _leave_out(self, meta: Meta) -> None:
        """An object that no id or subject can name: it stays out of the record, and that is said."""
        STUBBED.labels(self.identity.cluster, str(self._ref), "unnameable").add()
        self._on_gap(
            "unnameable",
            f"{meta.namespace[:_SHOWN]}/{meta.name[:_SHOWN]}",
            f"uid of {len(meta.uid)}, namespace of {len(meta.namespace)}, name of {len(meta.name)} characters",
        )

    def _skip(self, version: int) -> None:
        self._stale.add()
        self._lane.mark(version)

    def _outside(self, meta: Meta, version: int, body: Body, *, mark: int, synthetic: bool = False) -> None:
        """An object that does not match the selection: it may have left it just now."""
        if self.index.remove(meta.uid, version):
            self._publish("left", meta, version, body, mark=mark, synthetic=synthetic)
            return
        self._unselected.add()
        if mark:
            self._lane.mark(mark)

    def _vanished(self, uid: str, entry: Entry, version: int) -> None:
        """A delete that nobody saw: the object's last state is unknown, its metadata is not."""
        _, namespace, name = entry
        meta = Meta(name=name, namespace=namespace, uid=uid, resourceVersion=str(version))
        self._publish("deleted", meta, version, self._stub(meta), synthetic=True, clean=True)

    def _stub(self, meta: Meta) -> bytes:
        """An object's identity without the object."""
        metadata = {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "resourceVersion": meta.resourceVersion}
        if not meta.namespace:
            del metadata["namespace"]
        return msgspec.json.encode({"kind": self.resource.kind, "apiVersion": self.resource.api_version, "metadata": metadata})

    def _publish(
        self, verb: str, meta: Meta, version: int, body: Body, *, mark: int = 0, synthetic: bool = False, clean: bool = False
    ) -> None:
        """One change; ``clean``: nothing in it needs masking."""
        extra = "ce-synthetic: true\r\n" if synthetic else ""
        if not clean:
            try:
                body = self._redactor.redact(self._ref, body)
            except RedactionError as error:
                extra += self._without_object("unexaminable", meta, body, str(error))
                body = self._stub(meta)
        self._send(verb, meta, version, body, extra, mark)

    def _without_object(self, cause: str, meta: Meta, body: Body, detail: str) -> str:
        """Announce that an object stays out of the record; returns the header that says what is missing."""
        STUBBED.labels(self.identity.cluster, str(self._ref), cause).add()
        self._on_gap(cause, f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name, detail)
        return f"ce-stub: sha256:{hashlib.sha256(body).hexdigest()};size={len(body)}\r\n"

    def _send(self, verb: str, meta: Meta, version: int, body: Body, extra: str, mark: int) -> None:
        uid, name = meta.uid, meta.name
        route = self._routes.get((verb, meta.namespace))
        if route is None:
            route = self._route(verb, meta.namespace)
        if (uid + name).encode("utf-8", "surrogatepass").translate(None, _SAFE):
            name, uid = percent_encode(name), percent_encode(uid)
        self.sequence += 1
        at = self._trace_at
        if at >= len(self._traces):
            # the first half of the trace's id is the same for a while; the other, and the span's id, are new for each change
            self._trace_start, self._traces, at = os.urandom(8).hex(), os.urandom(16 * _TRACES).hex("-", 8), 0
        self._trace_at = at + _TRACE + 1
        trace = f"00-{self._trace_start}{self._traces[at : at + _TRACE]}-01"
        if self._links:
            cause = self._links.pop((meta.uid, version), None)
            if cause is not None:
                trace = cause.traceparent or trace
                extra += f"ce-cause: {percent_encode(cause.command)}\r\nce-hops: {cause.hops}\r\n"
        message_id = f"{self._id_start}{uid}/{version}/{verb}"
        head = (
            f"{route[1]}{message_id}\r\nce-id: {message_id}\r\nce-time: {self._time}\r\nce-name: {name}\r\n"
            f"ce-sequence: {self.sequence}\r\n{extra}traceparent: {trace}\r\n\r\n"
        )
        try:
            self._lane.send(route[0], head.encode(), body, mark)
        except PayloadTooLarge as error:
            extra += self._without_object("oversize", meta, body, error.message)
            self.sequence -= 1
            self._send(verb, meta, version, self._stub(meta), extra, mark)
            return
        self._published.value += 1

    def _route(self, verb: str, namespace: str) -> tuple[bytes, str]:
        """Subject and first header lines, the same for every change of this verb and namespace."""
        cluster, resource = self.identity.cluster, self.resource
        subject = CHANGE.format(
            cluster=cluster,
            group=resource.group,
            resource=resource.resource,
            namespace=namespace,
            verb=verb,
            partition=partition(cluster, namespace, resource.resource),
        )
        lines = (
            f"NATS/1.0\r\nce-specversion: 1.0\r\nce-source: /clusters/{percent_encode(cluster)}\r\n"
            f"ce-type: dev.ipe.k8s.{verb}.v1\r\nce-kind: {percent_encode(resource.kind)}\r\nNats-Msg-Id: "
        )
        if len(self._routes) >= _MOST_ROUTES:
            self._routes.clear()
        route = self._routes[(verb, namespace)] = (subject.encode(), lines)
        return route


def _is_unnameable(meta: Meta) -> bool:
    """Whether an object cannot have an id, or a subject that NATS takes."""
    return not meta.uid or "/" in meta.uid or len(meta.uid) + len(meta.namespace) + len(meta.name) > _LONGEST


def resource_filter(cluster: str, ref: ResourceRef) -> str:
    """The subject filter of one resource's changes."""
    return CHANGE.filter(cluster=cluster, group=ref.group, resource=ref.resource)
