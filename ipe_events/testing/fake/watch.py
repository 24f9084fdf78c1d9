"""Watches: from a resourceVersion, or from the present state, to lines of JSON for as long as the client reads.

Each watcher owns a bounded queue that the store fills; a line is rendered once per change and shared. A watcher that does not
drain its queue is closed, as the real server closes it, and its client resumes from the last resourceVersion it saw. A label
selector makes an object that stops matching DELETED (with its last matching state and the new resourceVersion) although it
lives on: the real server does that too, and clients have to know. A watch from the future is silent, without even a bookmark,
until the versions have passed the one it starts from.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import orjson

from ipe_events.testing.fake import status
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.listing import parse_rv
from ipe_events.testing.fake.selectors import Predicate
from ipe_events.testing.fake.store import Change, Compacted, Item, Store

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
BOOKMARK_BEFORE_END = 2.0
"""Seconds before a watch's time-out."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The options of one watch; ``timeout`` in seconds, ``rv`` as the client wrote it."""

    namespace: str = ""
    selects: Predicate | None = None
    rv: str = ""
    match: str = ""
    bookmarks: bool = False
    send_initial: bool | None = None
    timeout: float = 1800.0
    partial: bool = False


def check(options: WatchOptions) -> None:
    """Refuse options that contradict each other.

    Raises:
        StatusError: 400 or 422.
    """
    if options.rv:
        parse_rv(options.rv)
    if options.send_initial is not None and options.match != "NotOlderThan":
        raise status.bad_options(
            "resourceVersionMatch", "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        )
    if options.send_initial is None and options.match:
        raise status.bad_options(
            "resourceVersionMatch", "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        )


class Watcher:
    """One watch of one client.

    Args:
        store: what to watch.
        kind: the resource.
        options: checked already.
        bookmark_interval: seconds between bookmarks of a quiet watch.
        buffer: changes that may wait for the client before the watch is closed.
    """

    def __init__(self, store: Store, kind: Kind, options: WatchOptions, *, bookmark_interval: float, buffer: int) -> None:
        self._store = store
        self._kind = kind
        self._options = options
        self._start = parse_rv(options.rv) if options.rv else 0
        self._interval = bookmark_interval
        self._buffer = buffer
        self._queue: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.closed = False
        self.overflowed = False
        self._unsubscribe: Callable[[], None] = store.subscribe(kind.group_resource, self._on_change)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the watch: the stream finishes after what it already took."""
        if not self.closed:
            self.closed = True
            self._unsubscribe()
        self._wake.set()

    # --- what is sent ---

    def _open(self) -> None:
        options = self._options
        from_state = options.send_initial is True or (self._start == 0 and options.send_initial is None)
        if from_state:
            for _, item in self._store.items(self._kind.group_resource, options.namespace):
                if self._selected(item):
                    self._queue.append(self._line("ADDED", item))
            if options.send_initial and options.bookmarks:
                self._queue.append(self._bookmark(self._store.rv, initial_end=True))
        elif self._start:
            try:
                missed = self._store.changes_after(self._kind.group_resource, self._start)
            except Compacted as error:
                gone = status.too_old(error.requested, error.floor)
                self._queue.append(error_line(gone))
                self.close()
                return
            for change in missed:
                self._push(change)

    def _on_change(self, change: Change) -> None:
        self._push(change)
        if len(self._queue) > self._buffer:
            self._queue.clear()
            self.overflowed = True
            self.close()
        self._wake.set()

    def _push(self, change: Change) -> None:
        if change.rv <= self._start:
            return
        if self._options.namespace and change.key[0] != self._options.namespace:
            return
        selects = self._options.selects
        if selects is None:
            self._queue.append(self._shared_line(change))
            return
        now = change.verb != "DELETED" and selects(change.item.obj)
        before = change.previous is not None and selects(change.previous.obj)
        if now:
            self._queue.append(self._line("MODIFIED" if before else "ADDED", change.item))
        elif before and change.previous is not None:
            last = change.item.obj if change.verb == "DELETED" else change.previous.obj
            metadata = last["metadata"] | {"resourceVersion": str(change.rv)}
            self._queue.append(self._line("DELETED", Item(last | {"metadata": metadata})))

    def _shared_line(self, change: Change) -> bytes:
        if self._options.partial:
            return self._line(change.verb, change.item)
        if change.line is None:
            change.line = self._line(change.verb, change.item)
        return change.line

    def _line(self, verb: str, item: Item) -> bytes:
        body = item.partial if self._options.partial else item.raw
        return b'{"type":"%b","object":%b}\n' % (verb.encode(), body)

    def _selected(self, item: Item) -> bool:
        return self._options.selects is None or self._options.selects(item.obj)

    def _bookmark(self, rv: int, *, initial_end: bool = False) -> bytes:
        metadata: dict[str, object] = {"resourceVersion": str(rv)}
        if initial_end:
            metadata["annotations"] = {INITIAL_EVENTS_END: "true"}
        kind = {"kind": self._kind.kind, "apiVersion": self._kind.group_version}
        if self._options.partial:
            kind = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
        return orjson.dumps({"type": "BOOKMARK", "object": kind | {"metadata": metadata}}) + b"\n"

    # --- the stream ---

    async def stream(self) -> AsyncIterator[bytes]:
        """Batches of whole lines until the time-out, ``close()``, or the client's end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.timeout
        # One bookmark comes shortly before the end, so that the client resumes from near the present.
        next_bookmark = min(loop.time() + self._interval, max(loop.time(), end - BOOKMARK_BEFORE_END))
        try:
            while True:
                while self._queue:
                    yield self._take()
                if self.closed or loop.time() >= end:
                    return
                if self._options.bookmarks and loop.time() >= next_bookmark:
                    next_bookmark = loop.time() + self._interval
                    if self._store.rv >= self._start:
                        yield self._bookmark(self._store.rv)
                    continue
                self._wake.clear()
                try:
                    async with asyncio.timeout_at(min(end, next_bookmark) if self._options.bookmarks else end):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            self.close()

    def _take(self, most: int = 1 << 20) -> bytes:
        lines: list[bytes] = []
        size = 0
        while self._queue and size < most:
            line = self._queue.popleft()
            lines.append(line)
            size += len(line)
        return b"".join(lines)


def error_line(error: status.StatusError) -> bytes:
    """An ERROR event that carries the Status."""
    return orjson.dumps({"type": "ERROR", "object": error.body()}) + b"\n"
