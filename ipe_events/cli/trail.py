"""Causes and effects of one event, from the record.

Findings, commands and outcomes name their cause by id; an outcome's (uid, resourceVersion) is the join to the change that it
caused, and a change has no other way to know. ``Trail`` holds entries under both keys and answers with the tree around one of
them. It is pure: whoever reads the bus feeds it and asks ``wanted`` which objects' changes are still missing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ipe_events.cli.record import Entry
from ipe_events.errors import SchemaError
from ipe_events.events.ids import ChangeId, parse_change_id
from ipe_events.subjects import CHANGE, OUTCOME

MAX_DEPTH = 100
"""Longest chain that is walked; agents refuse commands long before."""


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a tree and how deep it stands; ``how`` says what joins it to the one above."""

    entry: Entry
    depth: int
    how: str


@dataclass(slots=True)
class Trail:
    """Entries by id, by cause, and by (uid, resourceVersion)."""

    by_id: dict[str, Entry] = field(default_factory=dict)
    by_cause: dict[str, list[Entry]] = field(default_factory=dict)
    changes: dict[tuple[str, str], Entry] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take an entry in; one that is known is not taken twice."""
        if not entry.id or entry.id in self.by_id:
            return
        self.by_id[entry.id] = entry
        key = (entry.uid, entry.resource_version)
        if entry.topic == CHANGE.name:
            self.changes.setdefault(key, entry)
            return
        if entry.cause:
            self.by_cause.setdefault(entry.cause, []).append(entry)
        if entry.topic == OUTCOME.name and all(key):
            self.outcomes.setdefault(key, entry)

    def find(self, text: str) -> Entry | None:
        """The entry with this id or ref, or the one whose id begins so, when only one does."""
        if text in self.by_id:
            return self.by_id[text]
        found = [entry for entry in self.by_id.values() if entry.ref == text]
        if not found and len(text) >= 6:
            found = [entry for key, entry in self.by_id.items() if key.startswith(text)]
        return found[0] if len(found) == 1 else None

    def cause_of(self, entry: Entry) -> Entry | None:
        """What led to an entry: the cause it names, or the outcome whose write it is."""
        if entry.topic == CHANGE.name:
            return self.outcomes.get((entry.uid, entry.resource_version))
        return self.by_id.get(entry.cause)

    def effects_of(self, entry: Entry) -> list[tuple[str, Entry]]:
        """What an entry led to, oldest first, each with the join that shows it."""
        found = [("cause", effect) for effect in self.by_cause.get(entry.id, ())]
        if entry.topic == OUTCOME.name:
            change = self.changes.get((entry.uid, entry.resource_version))
            if change is not None:
                found.append(("uid and resourceVersion", change))
        return sorted(found, key=lambda pair: pair[1].time)

    def root_of(self, entry: Entry) -> Entry:
        """The first cause that the record still holds."""
        seen = {entry.id}
        while (above := self.cause_of(entry)) is not None and above.id not in seen and len(seen) < MAX_DEPTH:
            seen.add(above.id)
            entry = above
        return entry

    def tree(self, root: Entry) -> list[Step]:
        """The root and everything it led to, depth first; each entry once, whatever loops a peer may write."""
        seen: set[str] = set()

        def walk(entry: Entry, depth: int, how: str) -> Iterator[Step]:
            if entry.id in seen or depth > MAX_DEPTH:
                return
            seen.add(entry.id)
            yield Step(entry, depth, how)
            for join, effect in self.effects_of(entry):
                yield from walk(effect, depth + 1, join)

        return list(walk(root, 0, ""))

    def wanted(self, entries: Iterable[Entry]) -> tuple[list[ChangeId], list[Entry]]:
        """What is missing around these entries: changes named as causes, and outcomes whose change is not here yet."""
        ids: list[ChangeId] = []
        writes: list[Entry] = []
        for entry in entries:
            if entry.topic == OUTCOME.name and entry.status == "applied" and entry.uid and entry.resource_version:
                if (entry.uid, entry.resource_version) not in self.changes:
                    writes.append(entry)
            elif entry.cause and entry.cause not in self.by_id:
                try:
                    ids.append(parse_change_id(entry.cause))
                except SchemaError:
                    continue  # not a change: a cause that the record no longer holds, or another peer's id
        return ids, writes
