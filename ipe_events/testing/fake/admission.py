"""ResourceQuota: what a create may still take of a namespace's budget, and what is used of it.

``check`` refuses in the real server's words before an object is stored; ``settle`` books the difference afterwards, so that
``status.used`` follows every create, delete and phase change at the cost of one subtraction, whatever the namespace holds.
"""

from typing import Any, Protocol

from ipe_events.testing.fake.kinds import Kind, Registry
from ipe_events.testing.fake.store import ObjectKey, Store

JsonObject = dict[str, Any]


class Writes(Protocol):
    """What quotas need of the operations."""

    store: Store
    registry: Registry

    def commit(self, kind: Kind, key: ObjectKey, before: JsonObject | None, new: JsonObject) -> JsonObject:
        """Store an object as it is."""
        ...


class Quotas:
    """The quotas of one cluster."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes

    def check(self, kind: Kind, key: ObjectKey, new: JsonObject) -> None:
        """Refuse ``new`` when a quota of its namespace has no room."""

    def settle(self, kind: Kind, key: ObjectKey, before: JsonObject | None, after: JsonObject | None) -> None:
        """Book the difference that a write made."""
