"""The ledger: which handler owns which field of an object, until when and why.

One document per object in bucket ``ipe_ledger``, written by the cluster's agent alone, from commands that it accepted with a
lease. Handlers look before they decide; the agent refuses a command that touches a field which another handler owns.
"""

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime

from ipe_events.events.base import Model
from ipe_events.events.refs import ObjectRef
from ipe_events.subjects import escape


class LedgerEntry(Model):
    """One owned field.

    Attributes:
        path: JSON pointer; it owns everything below it, and the empty one the whole object.
        handler: the owner.
        command: id of the command that took it.
        until: when ownership ends by itself.
        reason: of that command.
    """

    path: str
    handler: str
    command: str
    until: AwareDatetime
    reason: str = ""


class LedgerRecord(Model):
    """All owned fields of one object.

    Attributes:
        cluster: where the object lives.
        object_ref: the object.
        entries: its owned fields.
        version: of this document.
    """

    cluster: str
    object_ref: ObjectRef
    entries: tuple[LedgerEntry, ...] = ()
    version: Literal[1] = 1

    def current(self, now: datetime) -> tuple[LedgerEntry, ...]:
        """The entries that still hold."""
        return tuple(entry for entry in self.entries if now < entry.until)


def ledger_key(cluster: str, target: ObjectRef) -> str:
    """Key of an object's record: ``<cluster>.<group>.<resource>.<namespace>.<name>``, each part escaped."""
    return ".".join(escape(part) for part in (cluster, target.group, target.resource, target.namespace, target.name))
