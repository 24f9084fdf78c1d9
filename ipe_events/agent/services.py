"""Answers handlers' questions about one cluster, over NATS: snapshot, get, list, dryrun, metrics, whoami.

The caller's name is a token of the subject, so the bus' permissions say who asks. What may be seen is what is collected anyway,
plus what the cluster's grants add for that caller; namespaces that are not collected stay unseen. Everything that leaves is
redacted like the stream, the API server's error texts included, and nothing is cut off silently: an object that is too large for
a page becomes a stub that says so.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import orjson
from pydantic import Field

from ipe_events.agent.carrier import Carrier
from ipe_events.agent.claims import digest
from ipe_events.agent.config import Answers
from ipe_events.agent.grants import GrantSet
from ipe_events.agent.guardrails import Addressee
from ipe_events.agent.job import Job, Postponed
from ipe_events.agent.redaction import RedactionError, Redactor
from ipe_events.bus.connection import Bus, Reply
from ipe_events.bus.frames import percent_encode
from ipe_events.bus.services import Endpoint, Request, ServiceHandle
from ipe_events.clock import SYSTEM, Clock, rfc3339
from ipe_events.errors import KubeError, ServiceError, UsageError
from ipe_events.events.base import RequestPart
from ipe_events.events.codec import decode, encode
from ipe_events.events.command import Command
from ipe_events.events.ids import ChangeId
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.decode import Item, ListMeta, ListSplitter, Meta, head_of
from ipe_events.kube.discovery import ApiResource, Discovery
from ipe_events.kube.selection import Selection
from ipe_events.kube.session import KubeSession
from ipe_events.subjects import AGENT_SERVICE, SNAPSHOT
from ipe_events.telemetry.trace import new_trace, parse_traceparent

SNAPSHOT_END = "dev.ipe.snapshot.end.v1"
"""``ce-type`` of the marker that ends a snapshot."""

METRICS = {"pods": "pods", "nodes": "nodes"}
_PUBLISH_BATCH = 64
_HEAD_BYTES = 16 << 10
"""Room for headers in a message of the largest size."""
_STATUS_OF = {400: 400, 403: 403, 404: 404, 422: 400}


class Question(RequestPart):
    """What a caller asks: objects of a resource, in one namespace or all."""

    resource: str = Field(max_length=500)
    namespace: str = Field(default="", max_length=63)


class GetQuestion(Question):
    """One object."""

    name: str = Field(min_length=1, max_length=253)


class ListQuestion(Question):
    """Objects as they are now; ``selector`` is a label selector."""

    selector: str = Field(default="", max_length=2_000)


class SnapshotQuestion(Question):
    """Objects as they are now, published to the caller's own subject; ``request`` tells this snapshot from others."""

    request: str = Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=128)


@dataclass(frozen=True, slots=True)
class View:
    """What the services need to know of the collecting side, asked anew for each question.

    Attributes:
        cluster_uid: of the cluster; empty while it is not known.
        epoch: of the cluster.
        collected: resources that are collected.
        selection: resource → which of its objects count.
        writes: whether this agent holds the Lease.
    """

    cluster_uid: Callable[[], str]
    epoch: Callable[[], int]
    collected: Callable[[], Collection[ResourceRef]]
    selection: Callable[[ResourceRef], Selection]
    writes: Callable[[], bool]


class AgentServices:
    """The answering side of one cluster's agent.

    Args:
        cluster: the operator's name for it.
        agent: identity of this process.
        bus: the connection.
        session: with the cluster.
        discovery: of the cluster.
        redactor: of the cluster.
        grants: what handlers may do and ask.
        carrier: rehearses commands.
        view: of the collecting side.
        limits: of one page.
        clock: of the process.
    """

    def __init__(
        self,
        *,
        cluster: str,
        agent: str,
        bus: Bus,
        session: KubeSession,
        discovery: Discovery,
        redactor: Redactor,
        grants: GrantSet,
        carrier: Carrier,
        view: View,
        limits: Answers,
        clock: Clock = SYSTEM,
    ) -> None:
        self._cluster = cluster
        self._agent = agent
        self._bus = bus
        self._session = session
        self._discovery = discovery
        self._redactor = redactor
        self._grants = grants
        self._carrier = carrier
        self._view = view
        self._limits = limits
        self._clock = clock

    async def start(self) -> ServiceHandle:
        """Begin to answer; ``stop`` the returned handle to end."""
        answers: Mapping[str, tuple[Callable[[Request], Any], float]] = {
            "snapshot": (self._snapshot, 300.0),
            "get": (self._get, 30.0),
            "list": (self._list, 120.0),
            "dryrun": (self._dryrun, 30.0),
            "metrics": (self._metrics, 30.0),
            "whoami": (self._whoami, 5.0),
        }
        endpoints = [
            Endpoint(
                name=verb,
                subject=AGENT_SERVICE.filter(cluster=self._cluster, verb=verb),
                handler=answer,
                concurrency=2 if verb == "snapshot" else self._limits.parallel,
                timeout=timeout,
            )
            for verb, (answer, timeout) in answers.items()
        ]
        return await self._bus.serve(
            "ipe-agent",
            version("ipe-events"),
            endpoints,
            description=f"Questions about cluster {self._cluster}",
            metadata={"cluster": self._cluster, "agent": self._agent},
        )

    # --- answers -------------------------------------------------------------------------------------------------------------

    async def _get(self, request: Request) -> Reply:
        asked = decode(GetQuestion, request.body)
        resource = self._permitted(_caller(request), asked)
        if asked.namespace and not self._selection(_caller(request), resource.ref, namespaces_only=True).everything:
            self._check_namespace(_caller(request), resource.ref, asked.namespace)
        with self._translated():
            answer = await self._session.request("GET", resource.path(asked.namespace, asked.name))
            selection = self._selection(_caller(request), resource.ref)
            head = head_of(answer.body, f"{self._cluster}: {resource.ref}", selection.wants)
        if not selection.everything and not selection.matches(head.metadata, answer.body):
            raise ServiceError(f"{asked.name!r} is not among the {resource.ref} that are collected", code=404)
        return Reply(bytes(self._redactor.redact(resource.ref, answer.body)))

    async def _list(self, request: Request) -> AsyncIterator[Reply]:
        asked = decode(ListQuestion, request.body)
        caller = _caller(request)
        resource = self._permitted(caller, asked)
        selection = self._selection(caller, resource.ref)
        page: list[bytes] = []
        size = 0
        with self._translated():
            async for entry in self._items(resource, asked.namespace, selection, selector=asked.selector):
                if isinstance(entry, ListMeta):
                    yield _page(page, entry.resourceVersion)
                    return
                body = self._shown(resource, entry, self._limits.bytes)
                if page and (len(page) >= self._limits.rows or size + len(body) > self._limits.bytes):
                    yield _page(page, "")
                    page, size = [], 0
                page.append(body)
                size += len(body)

    async def _snapshot(self, request: Request) -> Reply:
        """Publish every object to the caller's subject, then the marker; answer when all is stored."""
        asked = decode(SnapshotQuestion, request.body)
        caller = _caller(request)
        resource = self._permitted(caller, asked)
        if not self._view.cluster_uid():
            raise ServiceError("the cluster has not been reached yet", code=503)
        ref = resource.ref
        subject = SNAPSHOT.format(
            handler=caller, request=asked.request, cluster=self._cluster, group=ref.group, resource=ref.resource
        )
        count, end = 0, ListMeta()
        waiting: list[Item] = []
        with self._translated():
            async for entry in self._items(resource, asked.namespace, self._selection(caller, ref)):
                if isinstance(entry, ListMeta):
                    end = entry
                else:
                    waiting.append(entry)
                if waiting and (isinstance(entry, ListMeta) or len(waiting) == _PUBLISH_BATCH):
                    await asyncio.gather(*(self._publish_item(subject, asked.request, resource, item) for item in waiting))
                    count += len(waiting)
                    waiting.clear()
        summary = {"items": count, "resource_version": end.resourceVersion, "version": 1}
        identity = f"{asked.request}/end"
        headers = self._headers(identity, SNAPSHOT_END)
        await self._bus.publish(subject, orjson.dumps(summary), id=identity, headers=headers, timeout=30)
        return Reply(orjson.dumps(summary))

    async def _dryrun(self, request: Request) -> Reply:
        command = decode(Command, request.body)
        trace = parse_traceparent(request.headers.get("traceparent", "")) or new_trace()
        # the subject of a question names no verb of a command, so the body's counts; handler and cluster must still agree
        addressee = Addressee(self._cluster, _caller(request), command.action.verb)
        try:
            job = Job(command, addressee, digest(request.body), self._clock.monotonic(), trace)
            outcome = await self._carrier.rehearse(job)
        except Postponed as why:
            raise ServiceError(self._redactor.redact_text(str(why)), code=503) from why
        return Reply(encode(outcome))

    async def _metrics(self, request: Request) -> Reply:
        asked = decode(Question, request.body)
        if asked.resource not in METRICS:
            raise ServiceError(f"metrics are of {' or '.join(METRICS)}, not of {asked.resource!r}", code=400)
        caller = _caller(request)
        resource = self._permitted(caller, asked)
        namespace = f"namespaces/{quote(asked.namespace, safe='')}/" if asked.namespace else ""
        with self._translated():
            answer = await self._session.json("GET", f"/apis/metrics.k8s.io/v1beta1/{namespace}{METRICS[asked.resource]}")
        seen = self._selection(caller, resource.ref, namespaces_only=True)
        items = [self._redactor.redact_object(item) for item in answer.get("items") or () if _in_namespaces(seen, item)]
        return Reply(orjson.dumps({"items": items, "version": 1}))

    async def _whoami(self, request: Request) -> Reply:
        caller = _caller(request)
        grants = [grant.model_dump(mode="json") | {"source": grant.source} for grant in self._grants.of(caller)]
        answer = {
            "caller": caller,
            "cluster": self._cluster,
            "cluster_uid": self._view.cluster_uid(),
            "agent": self._agent,
            "writes": self._view.writes(),
            "grants": grants,
            "reads": sorted(map(str, self._view.collected())),
            "version": 1,
        }
        return Reply(orjson.dumps(answer))

    # --- rights --------------------------------------------------------------------------------------------------------------

    def _permitted(self, caller: str, asked: Question) -> ApiResource:
        """The resource, if the caller may see it.

        Raises:
            ServiceError: 400, 403 or 404.
        """
        try:
            ref = ResourceRef.parse(asked.resource)
        except UsageError as error:
            raise ServiceError(error.message, code=400, fix=error.fix) from error
        if not self._grants.may_read(caller, ref, self._view.collected()):
            raise ServiceError(
                f"{caller!r} may not read {ref}: it is not collected in {self._cluster} and no grant names it under `read`",
                code=403,
            )
        resource = self._discovery.find(ref)
        if resource is None:
            raise ServiceError(f"cluster {self._cluster} has no resource {ref}", code=404)
        if asked.namespace and not resource.namespaced:
            raise ServiceError(f"{ref} is cluster-scoped", code=400)
        return resource

    def _selection(self, caller: str, ref: ResourceRef, *, namespaces_only: bool = False) -> Selection:
        """Which objects the caller sees: those that are collected, or those in the namespaces of the grant that adds them."""
        if ref in set(self._view.collected()):
            selection = self._view.selection(ref)
            return Selection(namespaces=selection.namespaces) if namespaces_only else selection
        adding = [grant for grant in self._grants.of(caller) if GrantSet((grant,)).may_read(caller, ref, ())]
        return Selection(namespaces=tuple(sorted({pattern for grant in adding for pattern in grant.namespaces})))

    def _check_namespace(self, caller: str, ref: ResourceRef, namespace: str) -> None:
        if not _in_namespaces(self._selection(caller, ref, namespaces_only=True), {"metadata": {"namespace": namespace}}):
            raise ServiceError(f"namespace {namespace!r} is not collected in {self._cluster}", code=403)

    # --- objects -------------------------------------------------------------------------------------------------------------

    async def _items(
        self, resource: ApiResource, namespace: str, selection: Selection, *, selector: str = ""
    ) -> AsyncIterator[Item | ListMeta]:
        """The selected objects, page by page as the API server sends them; the list's own metadata comes last."""
        params = {"limit": str(self._limits.rows)}
        if selector:
            params["labelSelector"] = selector
        first = ""
        while True:
            splitter = ListSplitter(f"{self._cluster}: {resource.ref}", resource.kind, resource.api_version, selection.wants)
            async with self._session.stream(resource.path(namespace), params, idle=30.0) as response:
                async for chunk in response.content.iter_any():
                    for item in splitter.feed(chunk):
                        if selection.everything or selection.matches(item.head.metadata, item.body):
                            yield item
            meta = splitter.finish()
            first = first or meta.resourceVersion
            if not meta.continue_:
                yield ListMeta(resourceVersion=first)
                return
            params["continue"] = meta.continue_

    def _shown(self, resource: ApiResource, item: Item, limit: int) -> bytes:
        """The redacted object; a stub that says why when it cannot be examined or has more than ``limit`` bytes.

        One such object must not keep all others from whoever asks.
        """
        try:
            body = bytes(self._redactor.redact(resource.ref, item.body))
        except RedactionError as error:
            return _stub(resource, item.head.metadata, {"error": error.message})
        if len(body) <= limit:
            return body
        return _stub(resource, item.head.metadata, {"bytes": len(body), "limit": limit})

    async def _publish_item(self, subject: str, request: str, resource: ApiResource, item: Item) -> None:
        meta, ref = item.head.metadata, resource.ref
        change = ChangeId(
            self._view.cluster_uid(), self._view.epoch(), ref.group, ref.resource, meta.uid, meta.resourceVersion, "added"
        )
        identity = percent_encode(str(change))
        headers = self._headers(identity, "dev.ipe.k8s.added.v1")
        headers |= {"ce-kind": percent_encode(resource.kind), "ce-name": percent_encode(meta.name)}
        body = self._shown(resource, item, self._bus.max_payload - _HEAD_BYTES)
        await self._bus.publish(subject, body, id=f"{request}/{identity}", headers=headers, timeout=30)

    def _headers(self, identity: str, kind: str) -> dict[str, str]:
        return {
            "ce-specversion": "1.0",
            "ce-id": identity,
            "ce-source": f"/clusters/{quote(self._cluster)}",
            "ce-type": kind,
            "ce-time": rfc3339(self._clock.now()),
        }

    def _translated(self) -> "_Translated":
        return _Translated(self._redactor)


class _Translated:
    """Turns the API server's refusals into answers with a code, redacted."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, KubeError):
            code = 503 if error.retryable else _STATUS_OF.get(error.status, 502)
            raise ServiceError(self._redactor.redact_text(error.message), code=code) from error


def _stub(resource: ApiResource, meta: Meta, why: Mapping[str, Any]) -> bytes:
    """An object's identity in place of the object."""
    names = ("name", "namespace", "uid", "resourceVersion")
    metadata = {name: getattr(meta, name) for name in names if getattr(meta, name)}
    return orjson.dumps({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata, "ipeStub": why})


def _caller(request: Request) -> str:
    return AGENT_SERVICE.parse(request.subject)["caller"]


def _page(items: list[bytes], resource_version: str) -> Reply:
    tail = orjson.dumps({"resource_version": resource_version, "version": 1})
    return Reply(b'{"items":[' + b",".join(items) + b"]," + tail[1:])


def _in_namespaces(selection: Selection, item: dict[str, Any]) -> bool:
    metadata = item.get("metadata") or {}
    return selection.matches(Meta(namespace=str(metadata.get("namespace", ""))), b"{}")
