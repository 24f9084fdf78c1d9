"""Who owns which field: the agent's side of the ledger.

A command with a lease takes the fields that it writes, for its handler, until the lease ends; a later command of the same
handler without a lease gives them back. The record is written before the object, so that no crash leaves a leased change
without an owner; a write that the API server refuses takes its entries out again.
"""

from collections.abc import Callable
from datetime import datetime

from ipe_events.agent.guardrails import overlaps, touched_paths
from ipe_events.bus.connection import Bus
from ipe_events.bus.kv import KeyValue
from ipe_events.errors import BusConflict, SchemaError
from ipe_events.events.codec import decode, encode
from ipe_events.events.command import Command
from ipe_events.events.ledger import LedgerEntry, LedgerRecord, ledger_key

BUCKET = "ipe_ledger"
_ATTEMPTS = 5

Change = Callable[[tuple[LedgerEntry, ...]], tuple[LedgerEntry, ...]]


class LedgerKeeper:
    """Reads and writes the ledger of one cluster; made by ``LedgerKeeper.open``."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv

    @classmethod
    async def open(cls, bus: Bus) -> "LedgerKeeper":
        """The bucket.

        Raises:
            BusNotFound: it is missing.
        """
        return cls(await bus.kv(BUCKET))

    async def owners(self, command: Command, now: datetime) -> tuple[LedgerEntry, ...]:
        """The entries of the command's target that still hold."""
        record, _ = await self._read(command)
        return record.current(now)

    async def enter(self, command: Command, now: datetime) -> tuple[LedgerEntry, ...]:
        """Note what the command takes or gives back; returns the handler's earlier entries that it replaced."""
        return await self._change(command, lambda entries: after(command, entries), now)

    async def withdraw(self, command: Command, now: datetime, replaced: tuple[LedgerEntry, ...]) -> None:
        """Undo ``enter`` for a command that was not carried out."""
        if command.lease is not None or replaced:
            await self._change(
                command, lambda entries: (*(entry for entry in entries if entry.command != command.id), *replaced), now
            )

    async def _change(self, command: Command, change: Change, now: datetime) -> tuple[LedgerEntry, ...]:
        """Write the changed entries unless they are the same; returns those that the change removed."""
        for _ in range(_ATTEMPTS):
            record, revision = await self._read(command)
            before = record.current(now)
            entries = change(before)
            if entries == before:
                return ()
            changed = record.model_copy(update={"entries": entries})
            try:
                await self._kv.update(ledger_key(command.cluster, command.target), encode(changed), revision)
            except BusConflict:
                continue
            return tuple(entry for entry in before if entry not in entries)
        raise BusConflict("the ledger kept changing", where=ledger_key(command.cluster, command.target))

    async def _read(self, command: Command) -> tuple[LedgerRecord, int]:
        key = ledger_key(command.cluster, command.target)
        entry = await self._kv.get(key)
        if entry is None:
            return LedgerRecord(cluster=command.cluster, object_ref=command.target), 0
        try:
            return decode(LedgerRecord, entry.value), entry.revision
        except SchemaError as error:
            raise SchemaError(f"a ledger record cannot be read: {error}", where=f"{BUCKET}/{key}") from error


def after(command: Command, entries: tuple[LedgerEntry, ...]) -> tuple[LedgerEntry, ...]:
    """The entries once the command is accepted: its own fields taken (with a lease) or given back (without)."""
    paths = touched_paths(command)
    kept = tuple(
        entry for entry in entries if entry.handler != command.handler or not any(overlaps(path, entry.path) for path in paths)
    )
    if command.lease is None:
        return kept
    taken = (
        LedgerEntry(path=path, handler=command.handler, command=command.id, until=command.lease, reason=command.reason)
        for path in paths
    )
    return (*kept, *taken)
