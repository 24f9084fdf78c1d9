"""Snapshot, then live: all objects as they are, joined to the changes that happen meanwhile.

The handler's consumer runs first; then the agents are asked for snapshots. An item and a change of the same object can arrive in
either order, so ``Join`` notes which objects changes have told of, and by which resourceVersion items did. An item of an object
that a change has told of is dropped: whatever is newer in it comes as a change too, and a deleted object must not rise again. A
live change that the item already contains is dropped as well. A cluster may begin to report before we know of it, so changes are
noted from the first one on, until the cluster's snapshot is complete. When the end marker of a list at resourceVersion R has come
and a live change beyond R was seen, nothing older can follow and the bookkeeping is forgotten.
"""

from dataclasses import dataclass, field

from ipe_events.errors import SchemaError
from ipe_events.events.change import Change
from ipe_events.events.refs import ResourceRef
from ipe_events.events.registry import AgentStatus

Scope = tuple[str, str, str]
"""Cluster, group, resource."""

Rank = tuple[int, int, bool]


@dataclass(slots=True)
class _Joining:
    asked: bool = False
    items: dict[str, Rank] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    until: int | None = None


class Join:
    """Pure bookkeeping of one handler's snapshots."""

    def __init__(self) -> None:
        self._joining: dict[Scope, _Joining] = {}
        self._complete: set[Scope] = set()

    def begin(self, scope: Scope) -> None:
        """A snapshot of this scope is wanted."""
        if scope not in self._complete:
            self._joining.setdefault(scope, _Joining()).asked = True

    def item(self, change: Change) -> bool:
        """Whether a snapshot's item is handed on.

        Raises:
            SchemaError: it carries no readable id.
        """
        joining = self._joining.get(scope_of(change))
        if joining is None:
            return False
        rank, uid = _rank(change), change.uid
        known = joining.items.get(uid)
        if uid in joining.changed or (known is not None and rank <= known):
            return False
        joining.items[uid] = rank
        return True

    def live(self, change: Change) -> bool:
        """Whether a live change is handed on.

        Raises:
            SchemaError: it carries no readable id.
        """
        scope = scope_of(change)
        if scope in self._complete:
            return True
        joining = self._joining.setdefault(scope, _Joining())
        rank, uid = _rank(change), change.uid
        if joining.until is not None and rank[1] > joining.until and not change.synthetic:
            self.complete(scope)
            return True
        contained = joining.items.get(uid)
        if contained is not None and rank <= contained:
            return False
        joining.changed.add(uid)
        return True

    def end(self, scope: Scope, resource_version: str) -> None:
        """The end marker came: the list was made at ``resource_version``."""
        joining = self._joining.get(scope)
        if joining is not None:
            joining.until = int(resource_version) if resource_version.isdecimal() else 0

    def complete(self, scope: Scope) -> None:
        """Nothing of this scope needs joining: the snapshot is over, or was taken in before."""
        self._joining.pop(scope, None)
        self._complete.add(scope)

    @property
    def open(self) -> list[Scope]:
        """Scopes whose snapshot is wanted and whose end marker has not come."""
        return [scope for scope, joining in self._joining.items() if joining.asked and joining.until is None]


def scope_of(change: Change) -> Scope:
    """Cluster, group and resource of a change."""
    return change.cluster, change.group, change.resource


def can_tell(status: AgentStatus, ref: ResourceRef) -> bool:
    """Whether an agent can make a snapshot: it is there, and what it collects of the resource is complete.

    Before that, everything that it lists comes as changes, and a question would be refused because the agent has not heard of our
    need yet.
    """
    return status.state != "disconnected" and status.resources.get(str(ref)) == "watching"


def _rank(change: Change) -> Rank:
    identity = change.change_id
    if not identity.resource_version.isdecimal():
        raise SchemaError(f"resourceVersion {identity.resource_version!r} cannot be ordered", where=str(change))
    return identity.epoch, int(identity.resource_version), identity.verb == "deleted"
