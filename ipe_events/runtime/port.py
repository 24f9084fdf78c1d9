"""What the SDK needs of the bus, as a protocol: ``ipe_events.bus.Bus`` fulfils it, the test bus in memory does too.

Everything that handlers are injected with is written against this, so that a unit test runs the same code as production and
importing the SDK does not import NATS.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol


class KvEntry(Protocol):
    """A value of a bucket."""

    @property
    def key(self) -> str:
        """Its key."""
        ...

    @property
    def value(self) -> bytes:
        """The bytes."""
        ...

    @property
    def revision(self) -> int:
        """Grows with every write."""
        ...

    @property
    def deleted(self) -> bool:
        """Whether a watch says that the key is gone."""
        ...


class KvBucket(Protocol):
    """A bucket of keys."""

    async def get(self, key: str) -> KvEntry | None:
        """The key's value, or None."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Write; returns the revision."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Write if there is no value, else ``BusConflict``."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write if ``revision`` is still the last one, else ``BusConflict``."""
        ...

    async def delete(self, key: str) -> None:
        """Forget the key."""
        ...

    async def keys(self, prefix: str = "") -> list[str]:
        """All keys, or those below whole tokens."""
        ...

    def watch(self, prefix: str = "") -> AsyncIterator[KvEntry | None]:
        """Current values, None once, then every change."""
        ...


class ReplyLike(Protocol):
    """An answer to a request."""

    @property
    def body(self) -> bytes:
        """The payload."""
        ...


class Port(Protocol):
    """The bus, as far as handlers' helpers use it."""

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        id: str | None = None,  # noqa: A002 - the bus's own word
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> Any:
        """Store a message in its stream."""
        ...

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> ReplyLike:
        """Ask a service."""
        ...

    def request_many(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        until: Callable[[Any], bool] | None = None,
    ) -> AsyncIterator[ReplyLike]:
        """Ask a service that streams its answer."""
        ...

    async def kv(self, bucket: str, *, create: bool = False) -> KvBucket:
        """A bucket."""
        ...
