"""Key-value buckets: streams with one message per key, read by direct gets and written with expected sequences.

Buckets are those of NATS (stream ``KV_<bucket>``, subjects ``$KV.<bucket>.<key>``), so that its own tools read them. A watch goes
by an ordered reader: unlike nats-py's, which notices a restarted server after up to twenty seconds, it goes on as soon as the
connection is back.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from ipe_events.bus import jsapi
from ipe_events.bus.reading import OrderedReader
from ipe_events.errors import BusConflict, BusNotFound, UsageError

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

_BUCKET = re.compile(r"[A-Za-z0-9_=-]+")
_KEY = re.compile(r"[-/_=A-Za-z0-9]+(\.[-/_=A-Za-z0-9]+)*")
_DELETED = {"DEL", "PURGE"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a key.

    Attributes:
        key: its key.
        value: the bytes; empty when deleted.
        revision: the bucket's sequence of this write.
        created: when it was written.
        deleted: whether this entry says that the key is gone (only watches and histories show those).
    """

    key: str
    value: bytes
    revision: int
    created: datetime
    deleted: bool = False


def bucket_config(
    bucket: str, *, ttl: float | None = None, history: int = 1, replicas: int = 1, max_bytes: int = -1, description: str = ""
) -> dict[str, Any]:
    """The stream configuration of a bucket.

    Raises:
        UsageError: a name that NATS does not take.
    """
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"bucket name {bucket!r} holds a character that NATS does not take", fix="use subjects.escape")
    return {
        "name": f"KV_{bucket}",
        "description": description,
        "subjects": [f"$KV.{bucket}.>"],
        "max_msgs_per_subject": history,
        "max_age": int((ttl or 0) * 1e9),
        "max_bytes": max_bytes,
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
    }


def check_key(key: str) -> str:
    """The key, if NATS takes it.

    Raises:
        UsageError: it does not.
    """
    if not _KEY.fullmatch(key):
        raise UsageError(f"key {key!r} holds a character that NATS does not take", fix="escape its parts with subjects.escape")
    return key


def _is_deleted(headers: dict[str, str]) -> bool:
    return headers.get("KV-Operation") in _DELETED or "Nats-Marker-Reason" in headers


async def _replicas(bus: "Bus") -> int:
    """How many copies a bucket made on demand gets: as many as those that ``ipe bus apply`` made."""
    try:
        return int((await bus.stream_info("KV_ipe_handlers"))["config"]["num_replicas"])
    except BusNotFound:
        return 1


class KeyValue:
    """A bucket; made by ``Bus.kv``."""

    def __init__(self, bus: "Bus", bucket: str) -> None:
        self._bus = bus
        self.bucket = bucket
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."

    @classmethod
    async def open(cls, bus: "Bus", bucket: str, *, create: bool, ttl: float | None, history: int) -> Self:
        """Finds the bucket, or makes it when asked to.

        Raises:
            BusNotFound: it is missing and ``create`` is false.
        """
        config = bucket_config(bucket, ttl=ttl, history=history)
        try:
            await bus.stream_info(config["name"])
        except BusNotFound:
            if not create:
                raise BusNotFound(f"bucket {bucket} is missing", fix="create it with `ipe bus apply`") from None
            await bus.js_api(f"STREAM.CREATE.{config['name']}", {**config, "num_replicas": await _replicas(bus)})
        return cls(bus, bucket)

    async def get(self, key: str) -> Entry | None:
        """The key's value, or None."""
        stored = await self._stored(key)
        if stored is None or _is_deleted(stored.headers):
            return None
        return self._entry(stored)

    async def put(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """Writes, whatever is there; returns the revision. ``ttl``: seconds until this value vanishes."""
        return await self._write(key, value, ttl=ttl)

    async def create(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """Writes only if the key has no value; returns the revision.

        Raises:
            BusConflict: it has one.
        """
        try:
            return await self._write(key, value, expected=0, ttl=ttl)
        except BusConflict:
            stored = await self._stored(key)
            if stored is None or not _is_deleted(stored.headers):
                raise BusConflict("the key has a value already", where=f"{self.bucket}/{key}") from None
            return await self._write(key, value, expected=stored.seq, ttl=ttl)

    async def update(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        """Writes only if ``revision`` is the key's last one (0: the key was never written); returns the new one.

        Raises:
            BusConflict: somebody wrote meanwhile.
        """
        return await self._write(key, value, expected=revision, ttl=ttl)

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Marks the key as deleted; with ``revision``, only if that is its last one.

        Raises:
            BusConflict: somebody wrote meanwhile.
        """
        await self._write(key, b"", expected=revision, headers={"KV-Operation": "DEL"})

    async def purge(self, key: str) -> None:
        """Deletes the key with its history."""
        await self._write(key, b"", headers={"KV-Operation": "PURGE", "Nats-Rollup": "sub"})

    async def keys(self, prefix: str = "") -> list[str]:
        """The keys that have a value, those below ``prefix`` (whole tokens) only, in the order of their last write."""
        return [entry.key async for entry in self.entries(prefix, headers_only=True)]

    async def entries(self, prefix: str = "", *, headers_only: bool = False) -> AsyncIterator[Entry]:
        """The current values, then ends."""
        async for entry in self.watch(prefix, headers_only=headers_only):
            if entry is None:
                return
            if not entry.deleted:
                yield entry

    async def watch(self, prefix: str = "", *, headers_only: bool = False) -> AsyncIterator[Entry | None]:
        """The current values, then None once, then every change for ever (deletions too); survives restarts of the server.

        Args:
            prefix: whole tokens (``a.b`` watches ``a.b`` and what is below); wildcards are allowed; empty for all keys.
            headers_only: leave the values out.
        """
        filters = (f"{self._prefix}>",) if not prefix else (f"{self._prefix}{prefix}", f"{self._prefix}{prefix}.>")
        if prefix.endswith((">", "*")):
            filters = (f"{self._prefix}{prefix}",)
        reader = OrderedReader(self._bus, self._stream, filters, start="last_per_subject", headers_only=headers_only)
        async with reader:
            complete = not reader.pending_at_start
            if complete:
                yield None
            while True:
                delivery = await reader.next()
                yield Entry(
                    key=delivery.subject[len(self._prefix) :],
                    value=delivery.body,
                    revision=delivery.seq,
                    created=delivery.time,
                    deleted=_is_deleted(delivery.headers),
                )
                if not complete and delivery.pending == 0:
                    complete = True
                    yield None

    def _entry(self, stored: jsapi.Stored) -> Entry:
        return Entry(key=stored.subject[len(self._prefix) :], value=stored.body, revision=stored.seq, created=stored.time)

    async def _stored(self, key: str) -> jsapi.Stored | None:
        return await jsapi.direct_get(self._bus, self._stream, last_by_subject=self._prefix + check_key(key))

    async def _write(
        self,
        key: str,
        value: bytes,
        *,
        expected: int | None = None,
        ttl: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> int:
        head = dict(headers or {})
        if expected is not None:
            head["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        if ttl is not None:
            head["Nats-TTL"] = f"{max(1, round(ttl))}s"
        ack = await self._bus.publish(self._prefix + check_key(key), value, headers=head)
        return ack.seq
