"""The bus in memory, as far as a handler's helpers see it: publish, buckets, questions. It imitates no JetStream."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ipe_events.bus.frames import encode_headers
from ipe_events.clock import Clock
from ipe_events.errors import BusConflict, ServiceError

Answers = Callable[[str, bytes], list[bytes]]
"""Answers a question by its subject and body: one reply, or several."""


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """A value of a bucket."""

    key: str
    value: bytes
    revision: int
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class MemoryReply:
    """An answer."""

    body: bytes


@dataclass
class MemoryBucket:
    """A bucket of keys."""

    values: dict[str, MemoryEntry] = field(default_factory=dict)
    revision: int = 0

    async def get(self, key: str) -> MemoryEntry | None:
        """The key's value, or None."""
        return self.values.get(key)

    async def put(self, key: str, value: bytes) -> int:
        """Write; returns the revision."""
        self.revision += 1
        self.values[key] = MemoryEntry(key, value, self.revision)
        return self.revision

    async def create(self, key: str, value: bytes) -> int:
        """Write if there is no value."""
        if key in self.values:
            raise BusConflict("the key has a value already", where=key)
        return await self.put(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write if ``revision`` is still the last one."""
        known = self.values.get(key)
        if (known.revision if known else 0) != revision:
            raise BusConflict("somebody wrote meanwhile", where=key)
        return await self.put(key, value)

    async def delete(self, key: str) -> None:
        """Forget the key."""
        self.values.pop(key, None)

    async def keys(self, prefix: str = "") -> list[str]:
        """All keys, or those below whole tokens."""
        return [key for key in self.values if not prefix or key == prefix or key.startswith(f"{prefix}.")]

    async def watch(self, prefix: str = "") -> AsyncIterator[MemoryEntry | None]:
        """Current values, then None; what comes later is not told."""
        for key in await self.keys(prefix):
            yield self.values[key]
        yield None


class MemoryPort:
    """Implements ``ipe_events.runtime.port.Port``.

    Args:
        stored: told of every published message: subject, header block, body, id.
        answers: answers questions.
    """

    def __init__(self, stored: Callable[[str, bytes, bytes, str], None], answers: Answers) -> None:
        self._stored = stored
        self._answers = answers
        self.buckets: dict[str, MemoryBucket] = {}

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        id: str | None = None,  # noqa: A002 - the bus's own word
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Hand the message to the test bus."""
        head = encode_headers({**(headers or {}), "Nats-Msg-Id": id or ""})
        self._stored(subject, head, body, id or "")

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> MemoryReply:
        """Ask the test's answers."""
        replies = self._answers(subject, body)
        if not replies:
            raise ServiceError("nobody serves this subject", code=503, where=subject)
        return MemoryReply(replies[0])

    async def request_many(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        until: Callable[[Any], bool] | None = None,
    ) -> AsyncIterator[MemoryReply]:
        """Ask the test's answers."""
        for reply in self._answers(subject, body):
            yield MemoryReply(reply)

    async def kv(self, bucket: str, *, create: bool = False) -> MemoryBucket:
        """A bucket; every bucket exists."""
        return self.buckets.setdefault(bucket, MemoryBucket())


class MemoryDelivery:
    """A message handed to a handler in memory."""

    def __init__(self, subject: str, header_bytes: bytes, body: bytes, *, seq: int, stream: str, clock: Clock) -> None:
        self.subject = subject
        self.header_bytes = header_bytes
        self.body = body
        self.seq = seq
        self.stream = stream
        self.time: datetime = clock.now()
        self.deliveries = 1
        self.settled = ""

    def ack(self) -> None:
        """Done."""
        self.settled = "ack"

    def nak(self, delay: float) -> None:
        """Later."""
        self.settled = f"nak {delay:g}"

    def term(self, reason: str = "") -> None:
        """Never again."""
        self.settled = f"term {reason}"

    def in_progress(self) -> None:
        """Still at work."""
