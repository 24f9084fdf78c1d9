"""Snapshot, then live: all objects as they are, joined to the changes that happen meanwhile.

The handler's consumer runs first; then the agents are asked for snapshots. An item and a change of the same object can arrive in
either order, so ``Join`` ranks them by resourceVersion: an item that a live change has overtaken is dropped, a deleted object's
tombstone keeps its item from rising again, and a live change that the item already contains is dropped too. When the end marker
of a list at resourceVersion R has come and a live change beyond R was seen, nothing older can follow and the bookkeeping is
forgotten.
"""

from dataclasses import dataclass, field

from ipe_events.errors import SchemaError
from ipe_events.events.change import Change

Scope = tuple[str, str, str]
"""Cluster, group, resource."""

Rank = tuple[int, int, bool]


@dataclass(slots=True)
class _Joining:
    items: dict[str, Rank] = field(default_factory=dict)
    changes: dict[str, Rank] = field(default_factory=dict)
    until: int | None = None


class Join:
    """Pure bookkeeping of one handler's snapshots."""

    def __init__(self) -> None:
        self._joining: dict[Scope, _Joining] = {}

    def begin(self, scope: Scope) -> None:
        """A snapshot of this scope was asked for; live changes are noted from now on."""
        self._joining[scope] = _Joining()

    def item(self, change: Change) -> bool:
        """Whether a snapshot's item is handed on.

        Raises:
            SchemaError: it carries no readable id.
        """
        joining = self._joining.get(scope_of(change))
        if joining is None:
            return False
        rank, uid = _rank(change), change.uid
        if any(known is not None and rank <= known for known in (joining.items.get(uid), joining.changes.get(uid))):
            return False
        joining.items[uid] = rank
        return True

    def live(self, change: Change) -> bool:
        """Whether a live change is handed on.

        Raises:
            SchemaError: it carries no readable id.
        """
        scope = scope_of(change)
        joining = self._joining.get(scope)
        if joining is None:
            return True
        rank, uid = _rank(change), change.uid
        if joining.until is not None and rank[1] > joining.until and not change.synthetic:
            del self._joining[scope]
            return True
        contained = joining.items.get(uid)
        if contained is not None and rank <= contained:
            return False
        # an older change that is delivered again must not hide the newest one
        joining.changes[uid] = max(rank, joining.changes.get(uid, rank))
        return True

    def end(self, scope: Scope, resource_version: str) -> None:
        """The end marker came: the list was made at ``resource_version``."""
        joining = self._joining.get(scope)
        if joining is not None:
            joining.until = int(resource_version) if resource_version.isdecimal() else 0

    @property
    def open(self) -> list[Scope]:
        """Scopes whose end marker has not come."""
        return [scope for scope, joining in self._joining.items() if joining.until is None]


def scope_of(change: Change) -> Scope:
    """Cluster, group and resource of a change."""
    return change.cluster, change.group, change.resource


def _rank(change: Change) -> Rank:
    identity = change.change_id
    if not identity.resource_version.isdecimal():
        raise SchemaError(f"resourceVersion {identity.resource_version!r} cannot be ordered", where=str(change))
    return identity.epoch, int(identity.resource_version), identity.verb == "deleted"
