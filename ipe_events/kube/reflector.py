"""One resource of one cluster, watched for ever: the I/O around the rules of ``reflector_rules``.

A reflector makes one request after another (list, WatchList, watch), hands what arrives to its sink, and lets the rules decide
what follows from how it ended. Backpressure is the sink's: while it is full nothing is read, TCP slows the server down, and in
the worst case the server closes the watch, which is an ordinary reason to go on from the last resourceVersion.

Silence is measured on bytes: bookmarks come about every 60 seconds, so 70 without a byte mean a dead connection, however slow the
consumer is. Requests ask for a server time-out of five to ten minutes, so that load balancers and upgrades move watches gently.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import NamedTuple, Protocol

from ipe_events.errors import (
    KubeError,
    KubeForbidden,
    KubeGone,
    KubeInvalid,
    KubeNotFound,
    KubeThrottled,
    KubeTimeout,
    KubeUnauthorized,
    KubeUnavailable,
)
from ipe_events.kube.decode import Body, Item, ListSplitter, Wants, WatchDecoder, WatchEvent, parse_bookmark, version_of
from ipe_events.kube.discovery import ApiResource
from ipe_events.kube.reflector_rules import HEALTHY_SECONDS, Cause, Phase, Position, Rung, after, delay, start
from ipe_events.kube.session import KubeSession
from ipe_events.kube.status import CONNECTION_LOST, RV_TOO_LARGE, UNREACHABLE, error_of
from ipe_events.telemetry.metrics import counter

ENDS = counter("ipe_reflector_requests_total", "Lists and watches that ended, by cause.", ("cluster", "resource", "cause"))

PAGE = 500
SILENT_SECONDS = 70.0
WATCH_SECONDS = (300, 600)
_SHORT_SECONDS = 1.0
_ORDERLY = (Cause.SYNCED, Cause.ENDED, Cause.SHORT)
"""Ends after which the history cannot have gone backwards unseen."""
_CHANGES = frozenset(("ADDED", "MODIFIED", "DELETED"))
_ACCEPT = "application/json"
_ACCEPT_DROP = "application/json;drop=metadata.managedFields,application/json"

_CAUSES: tuple[tuple[type[KubeError], Cause], ...] = (
    (KubeThrottled, Cause.THROTTLED),
    (KubeGone, Cause.GONE),
    (KubeForbidden, Cause.REFUSED),
    (KubeNotFound, Cause.REFUSED),
    (KubeInvalid, Cause.UNSUPPORTED),
    # the session has tried fresh credentials already; others may come any time
    (KubeUnauthorized, Cause.SERVER_ERROR),
)


class Sink(Protocol):
    """Who takes what a reflector reads; all calls but ``wait_room`` must not block."""

    @property
    def wants(self) -> Wants:
        """What to decode."""
        ...

    @property
    def full(self) -> bool:
        """Whether to wait."""
        ...

    async def wait_room(self) -> None:
        """Return when there is room."""
        ...

    def chunk(self, data: bytes) -> None:
        """Bytes just read; events that lie in them entirely follow."""
        ...

    def event(self, event: WatchEvent, version: int) -> None:
        """ADDED, MODIFIED or DELETED, with its resourceVersion."""
        ...

    def bookmark(self, version: int) -> None:
        """Everything up to here was handed over."""
        ...

    def begin_list(self) -> None:
        """A whole collection follows."""
        ...

    def item(self, item: Item) -> None:
        """One object of the collection."""
        ...

    def end_list(self, version: int) -> None:
        """The collection is complete."""
        ...

    def abort_list(self) -> None:
        """The collection broke off."""
        ...


class Options(NamedTuple):
    """Settings of a reflector.

    Attributes:
        page: objects per page of a list.
        silent_seconds: without a byte, after which a watch counts as dead.
        watch_seconds: bounds of the server time-out that is asked for.
        watchlist: try WatchLists.
        drop_managed_fields: ask the server to leave them out (servers before 1.37 ignore that).
    """

    page: int = PAGE
    silent_seconds: float = SILENT_SECONDS
    watch_seconds: tuple[int, int] = WATCH_SECONDS
    watchlist: bool = True
    drop_managed_fields: bool = False


class Report(NamedTuple):
    """How a request ended: for status, metrics and the cluster's health.

    Attributes:
        cause: see ``Cause``.
        error: of the server or the connection; None when it ended well.
        position: what follows.
        wait: seconds until then.
    """

    cause: Cause
    error: KubeError | None
    position: Position
    wait: float


class Reflector:
    """One resource, list and watch.

    Args:
        session: of the cluster.
        resource: what to watch.
        sink: who takes it.
        version: resourceVersion to go on from; 0: sync first.
        seen: the highest resourceVersion known otherwise, for a sync; 0: none.
        options: see ``Options``.
        limit: held during lists, so that a start does not ask for everything at once.
        gate: waited for before each request: closed while the cluster is known to be unreachable.
        opened: told when a request was answered well.
        report: told how each request ended.
        rewound: told the highest resourceVersion seen and the lower one of a consistent read, before ``run`` ends: the cluster's
            history went backwards, and everything begins anew.

    Attributes:
        position: where it stands.
    """

    def __init__(
        self,
        session: KubeSession,
        resource: ApiResource,
        sink: Sink,
        *,
        version: int = 0,
        seen: int = 0,
        options: Options | None = None,
        limit: asyncio.Semaphore | None = None,
        gate: asyncio.Event | None = None,
        opened: Callable[[], None] | None = None,
        report: Callable[[Report], None],
        rewound: Callable[[int, int], None],
    ) -> None:
        self.options = options or Options()
        self.position = start(version, seen=seen, watchlist=self.options.watchlist)
        self._session = session
        self._resource = resource
        self._sink = sink
        self._limit = limit
        self._gate = gate
        self._opened = opened
        self._report = report
        self._rewound = rewound
        self._where = f"{session.name}: {resource.ref}"
        self._path = resource.path()
        self._loop = asyncio.get_running_loop()
        self._last_byte = self._loop.time()
        self._waiting = False
        self._unsure = bool(version)
        self._brought = 0
        self._headers = {"Accept": _ACCEPT_DROP if self.options.drop_managed_fields else _ACCEPT}
        self._wake = asyncio.Event()
        self._ends = {cause: ENDS.labels(session.name, str(resource.ref), cause) for cause in Cause}

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last byte; 0 while the reflector itself does not read."""
        return 0.0 if self._waiting else self._loop.time() - self._last_byte

    def retry_now(self) -> None:
        """Cut a wait short, e.g. because rights were granted."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled, or until the cluster's history went backwards."""
        while True:
            if self._gate is not None:
                await self._gate.wait()
            began = self._loop.time()
            self._brought = 0
            error: KubeError | None = None
            try:
                cause = await self._request()
            except KubeError as caught:
                cause, error = cause_of(caught), caught
            if cause is None:
                return
            if self._loop.time() - began >= HEALTHY_SECONDS:
                self.position = replace(self.position, failures=0, relists=0)
            elif cause is Cause.ENDED and not self._brought and self._loop.time() - began < _SHORT_SECONDS:
                cause = Cause.SHORT
            self.position = after(self.position, cause, version=self._brought)
            self._unsure = self._unsure or cause not in _ORDERLY
            self._ends[cause].add()
            wait = delay(self.position, cause, retry_after=getattr(error, "retry_after", 0.0))
            self._report(Report(cause, error, self.position, wait))
            if wait:
                await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _request(self) -> Cause | None:
        """One request; None: the history went backwards and somebody else goes on."""
        position = self.position
        if position.version and (self._unsure or position.rung is Rung.QUORUM):
            # an API server that was restored is silent about a watch from its future, so we look before
            version = await self._newest()
            if version < position.version:
                self._rewound(position.version, version)
                return None
        self._unsure = False
        if position.phase is Phase.WATCH:
            return await self._watch(initial=False)
        self._sink.begin_list()
        complete = False
        try:
            async with self._limit or nullcontext():
                cause = await (self._watch(initial=True) if position.phase is Phase.WATCHLIST else self._list())
            complete = True
            return cause
        finally:
            if not complete:
                self._sink.abort_list()

    # --- lists -----------------------------------------------------------------------------------------------------------

    async def _newest(self) -> int:
        """The resourceVersion of a consistent read."""
        splitter = self._splitter()
        async for chunk in self._read({"limit": "1"}):
            for _ in splitter.feed(chunk):
                pass
        return version_of(splitter.finish().resourceVersion, self._where)

    async def _list(self) -> Cause:
        first = {"limit": str(self.options.page)}
        if self.position.rung is Rung.CACHE:
            first["resourceVersion"] = "0"
        elif self.position.rung is Rung.LAST and self.position.version:
            first |= {"resourceVersion": str(self.position.version), "resourceVersionMatch": "NotOlderThan"}
        params: dict[str, str] | None = first
        version = 0
        while params is not None:
            splitter = self._splitter()
            async with aclosing(self._read(params)) as chunks:
                async for chunk in chunks:
                    for item in splitter.feed(chunk):
                        self._sink.item(item)
                        if self._sink.full:
                            await self._room()
            meta = splitter.finish()
            version = version or version_of(meta.resourceVersion, self._where)
            params = {"limit": first["limit"], "continue": meta.continue_} if meta.continue_ else None
        self._sink.end_list(version)
        self._brought = version
        return Cause.SYNCED

    def _splitter(self) -> ListSplitter:
        return ListSplitter(self._where, self._resource.kind, self._resource.api_version, self._sink.wants)

    async def _read(self, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        async with self._session.stream(self._path, params, headers=self._headers, idle=self.options.silent_seconds) as response:
            self._last_byte = self._loop.time()
            if self._opened is not None:
                self._opened()
            while chunk := await response.content.readany():
                self._last_byte = self._loop.time()
                self._sink.chunk(chunk)
                yield chunk

    # --- watches ---------------------------------------------------------------------------------------------------------

    async def _watch(self, *, initial: bool) -> Cause:
        """Events from the position on, or (``initial``) the whole collection as events and then what follows."""
        seconds = random.randint(*self.options.watch_seconds)  # noqa: S311 - jitter
        params = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        if initial:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        else:
            params["resourceVersion"] = str(self.position.version)
        sink, decoder = self._sink, WatchDecoder(self._where, self._sink.wants)
        last = 0 if initial else self.position.version
        async with aclosing(self._read(params)) as chunks:
            async for chunk in chunks:
                for event in decoder.feed(chunk):
                    kind = event[0]
                    if kind in _CHANGES and not initial:
                        text = event[1].metadata.resourceVersion
                        version = int(text) if text.isdecimal() else version_of(text, self._where)
                        if version < last:
                            return Cause.BACKWARDS
                        sink.event(event, version)
                        self._brought = last = version
                    elif kind == "BOOKMARK":
                        version, synced = self._bookmark(event[2], initial=initial)
                        if version and version < last:
                            return Cause.BACKWARDS
                        if synced:
                            initial = False
                        self._brought = last = version or last
                    else:
                        self._unusual(event)
                    if sink.full:
                        await self._room()
        if initial or decoder.pending:
            raise KubeUnavailable("the watch broke off in the middle", reason=CONNECTION_LOST, where=self._where)
        return Cause.ENDED

    def _bookmark(self, body: Body, *, initial: bool) -> tuple[int, bool]:
        """Its resourceVersion (0: one in the midst of the initial events), and whether it ends them."""
        bookmark = parse_bookmark(body, self._where)
        version = version_of(bookmark.rv, self._where)
        if not initial:
            if version >= self._brought:
                self._sink.bookmark(version)
            return version, False
        if not bookmark.initial_end:
            return 0, False
        self._sink.end_list(version)
        # the same request goes on as a watch
        self.position = after(self.position, Cause.SYNCED, version=version)
        self._ends[Cause.SYNCED].add()
        self._report(Report(Cause.SYNCED, None, self.position, 0.0))
        return version, True

    def _unusual(self, event: WatchEvent) -> None:
        """An initial event, or an error.

        Raises:
            KubeError: what the server says.
        """
        if event[0] == "ERROR":
            raise error_of(0, bytes(event[2]), self._where)
        if event[0] not in _CHANGES:
            raise KubeError(f"the watch delivered an event of type {event[0][:40]!r}", where=self._where)
        self._sink.item(Item(event[1], bytes(event[2])))

    async def _room(self) -> None:
        self._waiting = True
        try:
            await self._sink.wait_room()
        finally:
            self._waiting = False
            self._last_byte = self._loop.time()


def cause_of(error: KubeError) -> Cause:
    """Which rule an error falls under."""
    if error.reason == RV_TOO_LARGE:
        return Cause.AHEAD
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return cause
    if error.reason == UNREACHABLE:
        return Cause.UNREACHABLE
    if error.reason == CONNECTION_LOST:
        return Cause.RESET
    if isinstance(error, KubeTimeout) and not error.status:
        return Cause.SILENT
    return Cause.SERVER_ERROR if error.status >= 500 else Cause.MALFORMED
