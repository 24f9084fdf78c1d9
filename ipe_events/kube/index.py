"""What is remembered of each object: its resourceVersion, and what a delete needs that nobody saw happen.

Objects themselves are never kept: 100,000 pods are 5 GB as dicts and some 35 MB here. The index turns events, relists and what
the stream already holds into *changes*, by one rule: a change counts when its resourceVersion is above what was last seen of that
object (a delete ranks above anything at or below its own), so replays and relists make nothing twice and resurrect nothing.

A relist is a diff: items are compared as they stream in, only the set of their uids is kept, and what was not in it at the end
has been deleted meanwhile.
"""

import zlib
from collections.abc import Iterator

import msgspec

from ipe_events.errors import SchemaError

FORMAT = 1
"""Version of the serialised form."""


Entry = tuple[int, str, str]
"""One object: its last resourceVersion, namespace and name. A plain tuple: one is made for every change."""


class _Stored(msgspec.Struct, array_like=True):
    format: int
    namespaces: list[str]
    rows: list[tuple[str, int, int, str]]


class Index:
    """The objects of one resource of one cluster; also knows deletes that a replay may bring again."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._deleted: dict[str, int] = {}
        self._seen: set[str] | None = None
        self._namespaces: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, uid: str) -> bool:
        return uid in self._entries

    def get(self, uid: str) -> Entry | None:
        """What is known of an object."""
        return self._entries.get(uid)

    def items(self) -> Iterator[tuple[str, Entry]]:
        """All objects by uid."""
        return iter(self._entries.items())

    # --- changes ---------------------------------------------------------------------------------------------------------

    def put(self, uid: str, version: int, namespace: str, name: str) -> str:
        """An object was seen in this version.

        Returns:
            ``added`` or ``modified``; empty when this (or something later) is known already.
        """
        known = self._entries.get(uid)
        if known is not None:
            if version <= known[0]:
                return ""
            self._entries[uid] = (version, known[1], known[2])
            return "modified"
        if self._deleted and version <= self._deleted.get(uid, -1):
            return ""
        self._entries[uid] = (version, self._namespaces.setdefault(namespace, namespace), name)
        return "added"

    def remove(self, uid: str, version: int) -> bool:
        """An object was deleted (or left the selection) at this version; whether that is news."""
        known = self._entries.get(uid)
        if known is None or version < known[0]:
            return False
        del self._entries[uid]
        return True

    # --- relists ---------------------------------------------------------------------------------------------------------

    def begin_list(self) -> None:
        """A complete list begins; every item is announced by ``mark``."""
        self._seen = set()

    def abort_list(self) -> None:
        """The list broke off: nothing is concluded from what was not in it."""
        self._seen = None

    def mark(self, uid: str) -> None:
        """The list holds this object."""
        if self._seen is not None:
            self._seen.add(uid)

    def end_list(self, version: int) -> list[tuple[str, Entry]]:
        """The list of this resourceVersion is complete: takes out and returns what it did not contain."""
        seen, self._seen = self._seen, None
        if seen is None:
            return []
        # what was added after the list's moment cannot be in it
        gone = [(uid, entry) for uid, entry in self._entries.items() if uid not in seen and entry[0] <= version]
        for uid, _ in gone:
            del self._entries[uid]
        return gone

    # --- restarts --------------------------------------------------------------------------------------------------------

    def replay(self, uid: str, version: int, namespace: str, name: str, *, deleted: bool) -> None:
        """A change that the stream holds already; deletes are remembered until ``forget_deletes``."""
        if deleted:
            self._deleted[uid] = max(version, self._deleted.get(uid, 0))
            self.remove(uid, version)
        else:
            self.put(uid, version, namespace, name)

    def forget_deletes(self) -> None:
        """The watch is past everything that was replayed."""
        self._deleted.clear()

    def forget_versions(self, above: int = -1) -> None:
        """Make everything count as changed whose version is higher than ``above``: the stream may not hold it."""
        for uid, entry in self._entries.items():
            if entry[0] > above:
                self._entries[uid] = (0, entry[1], entry[2])

    def copy(self) -> "Index":
        """The objects as they are now, to be dumped in another thread."""
        index = Index()
        index._entries = dict(self._entries)
        index._namespaces = dict(self._namespaces)
        return index

    def dump(self) -> bytes:
        """A compact form for ``load``; about 50 bytes an object."""
        numbers = {namespace: number for number, namespace in enumerate(self._namespaces)}
        rows = [(uid, entry[0], numbers[entry[1]], entry[2]) for uid, entry in self._entries.items()]
        return zlib.compress(msgspec.msgpack.encode(_Stored(FORMAT, list(numbers), rows)), level=1)

    @classmethod
    def load(cls, data: bytes) -> "Index":
        """The index that ``dump`` wrote.

        Raises:
            SchemaError: it is none, or of a later format.
        """
        try:
            stored = msgspec.msgpack.decode(zlib.decompress(data), type=_Stored)
            if stored.format != FORMAT:
                raise SchemaError(f"the index has format {stored.format}, this agent reads {FORMAT}", fix="upgrade the agent")
            index = cls()
            index._namespaces = {namespace: namespace for namespace in stored.namespaces}
            for uid, version, number, name in stored.rows:
                index._entries[uid] = (version, stored.namespaces[number], name)
        except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            raise SchemaError(f"the stored index is damaged: {error}") from error
        return index
