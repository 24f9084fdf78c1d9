"""What can go wrong between a client and an API server, on request.

A fault is an object: it says which requests it hits (verb, resource, namespace), what it does to them, and afterwards how often
it fired; a test awaits that instead of sleeping::

    fault = cluster.faults.add(Reset(after_bytes=10_000, on="watch", resource="pods"), times=1)
    await fault.wait()

Some faults answer instead of the server (``Gone``, ``TooManyRequests`` …), some damage the bytes of a true answer (``Reset``,
``HalfLine``, ``Stall``), ``Latency`` only delays. Faults are tried in the order in which they were added; each request meets
every fault that matches it until one answers.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ipe_events.errors import UsageError
from ipe_events.testing.fake import status


class Call(Protocol):
    """What faults see of a request."""

    @property
    def verb(self) -> str:
        """The Kubernetes verb: ``list``, ``watch``, ``get`` …; ``discovery`` for everything that is no resource."""
        ...

    @property
    def resource(self) -> str:
        """The plural, ``pods``."""
        ...

    @property
    def namespace(self) -> str:
        """Empty for the cluster scope."""
        ...

    @property
    def token(self) -> str:
        """The bearer token."""
        ...

    @property
    def continue_(self) -> str:
        """The continue token of a list, empty on the first page."""
        ...


class Damage(ABC):
    """What a fault does to the bytes of one answer.

    ``cut`` is given each piece before it is sent, and returns what may pass and, when the moment has come, how it ends:
    ``reset`` (RST), ``close`` (the connection ends in the middle of the body) or ``stall`` (silence until released).
    """

    @abstractmethod
    def cut(self, data: bytes) -> tuple[bytes, str]:
        """(bytes that pass, "" or how it ends)."""


@dataclass(kw_only=True)
class Fault:
    """The base: which requests are hit; ``*`` matches all.

    Attributes:
        on: verb (``list``, ``watch``, ``get``, ``create``, ``update``, ``patch``, ``delete`` …).
        resource: plural, or ``*``.
        namespace: of the request, or ``*``.
        skip: matching requests that pass before the first one is hit.
        fired: how often it has fired.
    """

    on: str = "*"
    resource: str = "*"
    namespace: str = "*"
    skip: int = 0
    fired: int = field(default=0, init=False)
    _left: int | None = field(default=1, init=False, repr=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    def matches(self, call: Call) -> bool:
        """Whether this request is the fault's business."""
        return self.on in ("*", call.verb) and self.resource in ("*", call.resource) and self.namespace in ("*", call.namespace)

    @property
    def exhausted(self) -> bool:
        """Whether it has fired as often as it was meant to."""
        return self._left == 0

    def take(self, call: Call) -> bool:
        """Whether this request is hit; counts ``skip`` down."""
        if self.exhausted or not self.matches(call):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._left is not None:
            self._left -= 1
        return True

    def fire(self) -> None:
        """Count, and wake who waits."""
        self.fired += 1
        self._changed.set()

    async def wait(self, count: int = 1, timeout: float = 10.0) -> None:
        """Return once the fault has fired ``count`` times.

        Raises:
            TimeoutError: it has not within ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout):
            while self.fired < count:
                self._changed.clear()
                await self._changed.wait()

    async def before(self, call: Call) -> None:
        """Act before the server answers: delay, or raise a ``StatusError`` in its place."""

    def damage(self) -> Damage | None:
        """What happens to the bytes of the answer, for one request."""
        return None


AnyFault = TypeVar("AnyFault", bound=Fault)


class Faults:
    """The faults of one cluster."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: AnyFault, *, times: int | None = 1) -> AnyFault:
        """Arm ``fault`` for ``times`` requests (None: until removed) and return it."""
        if times is not None and times < 1:
            raise UsageError(f"times={times} arms nothing", fix="give times=1 or more, or None for every request")
        fault._left = times  # noqa: SLF001 - arming is this class's part of the fault
        self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Disarm ``fault``."""
        if fault in self._faults:
            self._faults.remove(fault)

    def clear(self) -> None:
        """Disarm all."""
        self._faults.clear()

    async def intercept(self, call: Call) -> list[tuple[Fault, Damage]]:
        """Let the armed faults act on a request; returns what is to damage its answer.

        Raises:
            StatusError: a fault answers in the server's place.
        """
        damages: list[tuple[Fault, Damage]] = []
        for fault in list(self._faults):
            if not fault.take(call):
                continue
            damage = fault.damage()
            if damage is not None:
                damages.append((fault, damage))
                continue
            fault.fire()
            await fault.before(call)
        return damages


# --- delays and answers in the server's place ---


@dataclass(kw_only=True)
class Latency(Fault):
    """The answer comes ``seconds`` later."""

    seconds: float

    async def before(self, call: Call) -> None:
        """Wait."""
        await asyncio.sleep(self.seconds)


@dataclass(kw_only=True)
class Gone(Fault):
    """410: by default as HTTP; ``as_event`` on a watch: HTTP 200 and one ERROR event, as the real server does it."""

    as_event: bool = False

    async def before(self, call: Call) -> None:
        """Refuse."""
        error = status.too_old(1, 2)
        if self.as_event:
            raise AsEvent(error)
        raise error


@dataclass(kw_only=True)
class TooManyRequests(Fault):
    """429 with ``Retry-After: retry_after`` (whole seconds)."""

    retry_after: int = 1

    async def before(self, call: Call) -> None:
        """Refuse."""
        raise status.too_many_requests(self.retry_after)


@dataclass(kw_only=True)
class InternalError(Fault):
    """500; ``as_event`` on a watch: one ERROR event."""

    message: str = "etcdserver: request timed out"
    as_event: bool = False

    async def before(self, call: Call) -> None:
        """Refuse."""
        error = status.internal_error(self.message)
        if self.as_event:
            raise AsEvent(error)
        raise error


@dataclass(kw_only=True)
class TooLargeResourceVersion(Fault):
    """504 "Too large resource version", as an API server says whose cache lags behind."""

    requested: int = 2
    current: int = 1

    async def before(self, call: Call) -> None:
        """Refuse."""
        raise status.too_large(self.requested, self.current)


@dataclass(kw_only=True)
class FailPage(Fault):
    """A list that fails with 500 on page ``page`` (the first is 1); earlier pages pass."""

    page: int = 3
    _seen: int = field(default=0, init=False, repr=False)

    def take(self, call: Call) -> bool:
        """Count the pages of one list."""
        if self.exhausted or call.verb != "list" or not self.matches(call):
            return False
        self._seen = self._seen + 1 if call.continue_ else 1
        return self._seen == self.page and super().take(call)

    async def before(self, call: Call) -> None:
        """Refuse."""
        raise status.internal_error(f"page {self.page} of the list failed")


@dataclass(kw_only=True)
class ExpiredToken(Fault):
    """401 for requests that carry ``token``; the client recovers with another token. Arm it with ``times=None``."""

    token: str

    def matches(self, call: Call) -> bool:
        """Only requests with the expired token."""
        return call.token == self.token and super().matches(call)

    async def before(self, call: Call) -> None:
        """Refuse."""
        raise status.unauthorized()


class AsEvent(Exception):
    """A refusal to be sent as an ERROR event of an accepted watch."""

    def __init__(self, error: status.StatusError) -> None:
        super().__init__(str(error))
        self.error = error


# --- damage to the bytes ---


@dataclass
class _CutAfterBytes(Damage):
    left: int
    end: str

    def cut(self, data: bytes) -> tuple[bytes, str]:
        if len(data) < self.left:
            self.left -= len(data)
            return data, ""
        passing, self.left = data[: self.left], 0
        return passing, self.end


@dataclass
class _CutInLine(Damage):
    lines: int

    def cut(self, data: bytes) -> tuple[bytes, str]:
        start = 0
        while self.lines > 0:
            end = data.find(b"\n", start)
            if end < 0:
                return data, ""
            start = end + 1
            self.lines -= 1
        rest = data[start:]
        if not rest:
            return data, ""
        length = rest.find(b"\n") if b"\n" in rest else len(rest)
        return data[: start + max(1, length // 2)], "close"


@dataclass(kw_only=True)
class Reset(Fault):
    """The connection is reset (RST) after ``after_bytes`` bytes of the body, wherever that is in a line."""

    after_bytes: int = 0

    def damage(self) -> Damage:
        """Cut by bytes."""
        return _CutAfterBytes(self.after_bytes, "reset")


@dataclass(kw_only=True)
class HalfLine(Fault):
    """After ``after_lines`` whole lines half of the next one is sent, then the connection is closed."""

    after_lines: int = 0

    def damage(self) -> Damage:
        """Cut in a line."""
        return _CutInLine(self.after_lines)


@dataclass(kw_only=True)
class Stall(Fault):
    """Silence after ``after_bytes`` bytes, the connection stays open: no data, no bookmarks, until the client gives up."""

    after_bytes: int = 0

    def damage(self) -> Damage:
        """Cut by bytes."""
        return _CutAfterBytes(self.after_bytes, "stall")
