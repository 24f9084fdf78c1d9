"""Who waits for what: one inbox subscription, many waiting calls.

Each call has a token in the inbox's last place and a bounded queue of answers. A lost connection fails all calls at once, and a
permission violation fails those on its subject (nats-py hands the subject over in lower case, so that is how they are compared).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from ipe_events.errors import BusError, BusTimeout, IpeError

if TYPE_CHECKING:
    from ipe_events.bus.client import Client

Kind = Literal["publish", "subscription"]

MAX_WAITING = 65_536
"""Answers that may wait in one call."""

MAX_WAITING_BYTES = 256 << 20
"""Bytes that may wait in one call."""


class Raw(NamedTuple):
    """An answer as bytes: subject, header block, body."""

    subject: str
    head: bytes
    body: bytes


class Call:
    """One waiting call; a context manager that forgets it at its end."""

    __slots__ = ("_answers", "_bytes", "_calls", "_error", "_waiter", "inbox", "kind", "subject", "token")

    def __init__(self, calls: "Calls", token: bytes, inbox: str, subject: str, kind: Kind) -> None:
        self._calls = calls
        self.token = token
        self.inbox = inbox
        self.subject = subject
        self.kind = kind
        self._answers: deque[Raw] = deque()
        self._bytes = 0
        self._error: IpeError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._calls.forget(self)

    def put(self, raw: Raw) -> None:
        """An answer arrived."""
        self._bytes += len(raw.body) + len(raw.head)
        if len(self._answers) >= MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            self.fail(BusError(f"answers come faster than they are read ({len(self._answers)} wait)", where=self.subject))
            return
        self._answers.append(raw)
        self._wake()

    def fail(self, error: IpeError) -> None:
        """Nothing more will come."""
        self._error = self._error or error
        self._wake()

    def check(self) -> None:
        """Raises what the call failed with, if it did."""
        if self._error:
            raise self._error

    async def next(self, timeout: float) -> Raw:
        """The next answer.

        Raises:
            BusTimeout: none came in ``timeout`` seconds.
            IpeError: what the call failed with.
        """
        if not self._answers and not self._error:
            self._waiter = asyncio.get_running_loop().create_future()
            handle = asyncio.get_running_loop().call_later(timeout, self._wake)
            try:
                await self._waiter
            finally:
                handle.cancel()
                self._waiter = None
        if self._answers:
            raw = self._answers.popleft()
            self._bytes -= len(raw.body) + len(raw.head)
            return raw
        self.check()
        raise BusTimeout(f"no answer in {timeout:g} s", where=self.subject)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class Calls:
    """All waiting calls of one connection."""

    def __init__(self, client: "Client", inbox: str) -> None:
        self._prefix = f"{inbox}."
        self._skip = len(self._prefix)
        self._open: dict[bytes, Call] = {}
        self._next = 0
        self.inbox_error: IpeError | None = None
        client.subscribe_raw(f"{inbox}.*", self._on_answer)

    def open(self, subject: str, *, kind: Kind = "publish") -> Call:
        """A new call that publishes (or subscribes) to ``subject``.

        Raises:
            BusPermissionDenied: the identity may not subscribe to its own inbox, so that no answer could arrive.
        """
        if self.inbox_error:
            raise self.inbox_error
        self._next += 1
        token = f"{self._next:x}"
        call = Call(self, token.encode(), self._prefix + token, subject, kind)
        self._open[call.token] = call
        return call

    def forget(self, call: Call) -> None:
        """The call has ended; later answers to it are dropped."""
        self._open.pop(call.token, None)

    def fail_all(self, error: IpeError) -> None:
        """The connection is gone."""
        for call in list(self._open.values()):
            call.fail(error)

    def deny(self, kind: str, subject: str, error: Callable[[str, str], IpeError]) -> None:
        """A permission violation on a subject (in lower case): fails the calls that it concerns."""
        if kind == "subscription" and subject == f"{self._prefix}*".lower():
            self.inbox_error = error(kind, f"{self._prefix}*")
            self.fail_all(self.inbox_error)
            return
        for call in list(self._open.values()):
            if call.kind == kind and call.subject.lower() == subject:
                call.fail(error(kind, call.subject))

    def _on_answer(self, subject: bytes, _reply: bytes, head: bytes, body: bytes) -> None:
        call = self._open.get(subject[self._skip :])
        if call:
            call.put(Raw(subject.decode(), head, body))
