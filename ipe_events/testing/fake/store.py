"""The fake's etcd: objects by key, one counter of revisions, a bounded history per resource. No HTTP, no admission.

Every write takes the next resourceVersion, serialises the object once and appends one ``Change``; lists and all watchers share
those bytes. An object in the store is never mutated afterwards, so a list at an earlier resourceVersion (a continue token, an
exact list) is the present state with the later changes rolled back, and costs nothing until somebody asks.

History ends at a resource's ``floor``: what lies before was compacted, by ``compact()`` or by the bound, and asking for it is a
``Compacted`` error, which the layers above turn into 410 in whichever words the request calls for.
"""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

JsonObject = dict[str, Any]
GroupResource = tuple[str, str]
ObjectKey = tuple[str, str]
"""(namespace, name); the namespace is empty for cluster-scoped objects."""
Subscriber = Callable[["Change"], None]

MAX_SNAPSHOTS = 16


class Compacted(Exception):
    """The history at the requested resourceVersion is gone; ``floor`` is the oldest one that can still be asked for."""

    def __init__(self, requested: int, floor: int) -> None:
        super().__init__(f"resourceVersion {requested} is compacted, the oldest is {floor}")
        self.requested = requested
        self.floor = floor


class Item:
    """One state of one object: the dict (never mutate it) and its JSON as a watch or a get sends it."""

    __slots__ = ("_partial", "obj", "raw", "rv")

    def __init__(self, obj: JsonObject) -> None:
        self.obj = {"kind": obj["kind"], "apiVersion": obj["apiVersion"], **obj}
        self.raw = orjson.dumps(self.obj)
        self.rv = int(obj["metadata"]["resourceVersion"])
        self._partial: bytes | None = None

    @property
    def listed(self) -> bytes:
        """The JSON as an item of a list of built-in objects: without ``kind`` and ``apiVersion``, which come first."""
        head = orjson.dumps({"kind": self.obj["kind"], "apiVersion": self.obj["apiVersion"]})
        return b"{" + self.raw[len(head) :]

    @property
    def partial(self) -> bytes:
        """The JSON of the PartialObjectMetadata."""
        if self._partial is None:
            head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            self._partial = orjson.dumps(head | {"metadata": self.obj["metadata"]})
        return self._partial


@dataclass(slots=True, eq=False)
class Change:
    """One write. ``item`` is the new state (for a delete the last state, with the delete's resourceVersion)."""

    rv: int
    verb: str
    group_resource: GroupResource
    key: ObjectKey
    item: Item
    previous: Item | None
    line: bytes | None = None
    """The watch line, rendered once by the first watcher that needs it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A backup: what ``restore`` goes back to."""

    rv: int
    tables: dict[GroupResource, dict[ObjectKey, Item]]


class Store:
    """Objects, revisions and history.

    Args:
        history: changes kept per resource; older ones are compacted.
        first_rv: the counter's start.
    """

    def __init__(self, *, history: int = 10_000, first_rv: int = 1) -> None:
        self.rv = first_rv
        self._history_size = history
        self._floor = 0
        self._tables: dict[GroupResource, dict[ObjectKey, Item]] = defaultdict(dict)
        self._history: dict[GroupResource, deque[Change]] = defaultdict(deque)
        self._floors: dict[GroupResource, int] = defaultdict(int)
        self._subscribers: dict[GroupResource, list[Subscriber]] = defaultdict(list)
        self._on_restore: list[Callable[[], None]] = []
        self._past: OrderedDict[tuple[GroupResource, int], list[tuple[ObjectKey, Item]]] = OrderedDict()

    # --- reading ---

    def get(self, group_resource: GroupResource, key: ObjectKey) -> Item | None:
        """The present state, or None."""
        return self._tables[group_resource].get(key)

    def items(self, group_resource: GroupResource, namespace: str = "") -> list[tuple[ObjectKey, Item]]:
        """The present state in key order, of one namespace or of all."""
        table = self._tables[group_resource]
        if namespace:
            return sorted((key, item) for key, item in table.items() if key[0] == namespace)
        return sorted(table.items(), key=lambda pair: pair[0])

    def items_at(self, group_resource: GroupResource, rv: int) -> list[tuple[ObjectKey, Item]]:
        """The state as it was at ``rv``, in key order.

        Raises:
            Compacted: ``rv`` is before the floor.
        """
        if rv < self.floor(group_resource):
            raise Compacted(rv, self.floor(group_resource))
        cached = self._past.get((group_resource, rv))
        if cached is not None:
            self._past.move_to_end((group_resource, rv))
            return cached
        table = dict(self._tables[group_resource])
        for change in reversed(self._history[group_resource]):
            if change.rv <= rv:
                break
            if change.previous is None:
                table.pop(change.key, None)
            else:
                table[change.key] = change.previous
        past = sorted(table.items(), key=lambda pair: pair[0])
        self._past[group_resource, rv] = past
        if len(self._past) > MAX_SNAPSHOTS:
            self._past.popitem(last=False)
        return past

    def changes_after(self, group_resource: GroupResource, rv: int) -> list[Change]:
        """The changes with a resourceVersion above ``rv``, oldest first.

        Raises:
            Compacted: some of them are gone.
        """
        if rv < self.floor(group_resource):
            raise Compacted(rv, self.floor(group_resource))
        newer: list[Change] = []
        for change in reversed(self._history[group_resource]):
            if change.rv <= rv:
                break
            newer.append(change)
        newer.reverse()
        return newer

    def floor(self, group_resource: GroupResource) -> int:
        """The oldest resourceVersion that a watch of this resource can start from."""
        return max(self._floor, self._floors[group_resource])

    # --- writing ---

    def put(self, group_resource: GroupResource, key: ObjectKey, obj: JsonObject) -> Item:
        """Write ``obj`` under the next resourceVersion (set in its metadata); the caller gives the dict away."""
        previous = self._tables[group_resource].get(key)
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        item = Item(obj)
        self._tables[group_resource][key] = item
        self._record(Change(self.rv, "ADDED" if previous is None else "MODIFIED", group_resource, key, item, previous))
        return item

    def remove(self, group_resource: GroupResource, key: ObjectKey, last: JsonObject | None = None) -> Item:
        """Delete the object; returns its last state (``last``, or what was stored) with the delete's resourceVersion."""
        previous = self._tables[group_resource].pop(key)
        last = last or previous.obj
        self.rv += 1
        gone = Item(last | {"metadata": last["metadata"] | {"resourceVersion": str(self.rv)}})
        self._record(Change(self.rv, "DELETED", group_resource, key, gone, previous))
        return gone

    def _record(self, change: Change) -> None:
        history = self._history[change.group_resource]
        history.append(change)
        if len(history) > self._history_size:
            self._floors[change.group_resource] = history.popleft().rv
        for subscriber in list(self._subscribers[change.group_resource]):
            subscriber(change)

    # --- following ---

    def subscribe(self, group_resource: GroupResource, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` with every later change of the resource; returns the function that ends it."""
        self._subscribers[group_resource].append(subscriber)
        return lambda: self._subscribers[group_resource].remove(subscriber)

    def on_restore(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after every restore."""
        self._on_restore.append(callback)

    # --- history ---

    def compact(self) -> int:
        """Forget all history: from now on any older resourceVersion is 410. Returns the present resourceVersion."""
        self._floor = self.rv
        self._history.clear()
        self._past.clear()
        return self.rv

    def snapshot(self) -> Snapshot:
        """A backup of the present state."""
        return Snapshot(self.rv, {resource: dict(table) for resource, table in self._tables.items()})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to ``snapshot``: objects and the revision counter, as an etcd restored from a backup does."""
        self.rv = snapshot.rv
        self._tables.clear()
        self._tables.update({resource: dict(table) for resource, table in snapshot.tables.items()})
        self._floors.clear()
        self.compact()
        for callback in self._on_restore:
            callback()
