"""``State``: a handler's own keys and values; ``Ledger``: who owns which field of an object.

State lives in the bucket ``ipe_state_<handler>`` and survives the process; all functions of one handler share it. Values are
JSON. ``update`` is a compare-and-set: functions of one handler run side by side and may be replicated.
"""

from collections.abc import Callable
from typing import Any

import orjson

from ipe_events.clock import Clock
from ipe_events.declaration import injectable
from ipe_events.errors import BusConflict, SchemaError, UsageError
from ipe_events.events.codec import decode
from ipe_events.events.ledger import LedgerEntry, LedgerRecord, ledger_key
from ipe_events.events.refs import ObjectRef
from ipe_events.runtime.port import KvBucket, Port
from ipe_events.subjects import escape, unescape

LEDGER_BUCKET = "ipe_ledger"
_VERSION = 1
_TRIES = 20


@injectable
class State:
    """Keys and JSON values of one handler; injected by type.

    Raises (all methods):
        BusUnavailable, BusTimeout: the bus does not answer.
        SchemaError: a value was written by a newer version.
    """

    def __init__(self, port: Port, handler: str) -> None:
        self._port = port
        self._name = f"ipe_state_{escape(handler).replace('=', '_')}"
        self._opened: KvBucket | None = None

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        entry = await (await self._bucket()).get(escape(key))
        return default if entry is None else self._read(key, entry.value)

    async def put(self, key: str, value: Any) -> None:
        """Write a value, whatever was there."""
        await (await self._bucket()).put(escape(key), _written(key, value))

    async def update(self, key: str, change: Callable[[Any], Any], default: Any = None) -> Any:
        """Write ``change(old value)`` if nobody wrote meanwhile, else try again with the newer value; returns what was written.

        Args:
            key: which.
            change: pure function of the old value; it may be called several times.
            default: the old value when there is none.

        Raises:
            BusConflict: others kept writing.
        """
        bucket, name = await self._bucket(), escape(key)
        for _ in range(_TRIES):
            entry = await bucket.get(name)
            value = change(default if entry is None else self._read(key, entry.value))
            try:
                if entry is None:
                    await bucket.create(name, _written(key, value))
                else:
                    await bucket.update(name, _written(key, value), entry.revision)
            except BusConflict:
                continue
            return value
        raise BusConflict(f"key {key!r} was written by others {_TRIES} times in a row", where=self._name)

    async def delete(self, key: str) -> None:
        """Forget a key."""
        await (await self._bucket()).delete(escape(key))

    async def keys(self) -> list[str]:
        """All keys."""
        return [unescape(key) for key in await (await self._bucket()).keys()]

    async def _bucket(self) -> KvBucket:
        if self._opened is None:
            self._opened = await self._port.kv(self._name, create=True)
        return self._opened

    def _read(self, key: str, body: bytes) -> Any:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise SchemaError(f"the value is not JSON: {error}", where=f"{self._name}/{key}") from error
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise SchemaError(
                "the value was not written by this version", where=f"{self._name}/{key}", fix="upgrade, or delete it"
            )
        return document.get("value")


def _written(key: str, value: Any) -> bytes:
    try:
        return orjson.dumps({"version": _VERSION, "value": value})
    except TypeError as error:
        raise UsageError(f"the value of {key!r} is not JSON: {error}") from error


@injectable
class Ledger:
    """Who owns which fields of an object; read it before deciding. Injected by type."""

    def __init__(self, port: Port, clock: Clock) -> None:
        self._port = port
        self._clock = clock

    async def entries(self, cluster: str, target: ObjectRef) -> tuple[LedgerEntry, ...]:
        """What is owned of an object now.

        Raises:
            SchemaError: the record cannot be read.
            BusUnavailable, BusTimeout: the bus does not answer.
        """
        bucket = await self._port.kv(LEDGER_BUCKET, create=True)
        key = ledger_key(cluster, target)
        entry = await bucket.get(key)
        if entry is None:
            return ()
        record = decode(LedgerRecord, entry.value)
        return record.current(self._clock.now())

    async def owner(self, cluster: str, target: ObjectRef, path: str) -> LedgerEntry | None:
        """Who owns the field at a JSON pointer (or something above it); None when nobody does."""
        for entry in await self.entries(cluster, target):
            if path == entry.path or path.startswith(f"{entry.path}/") or entry.path == "":
                return entry
        return None
