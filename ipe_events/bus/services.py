"""NATS micro services: questions over the bus, answered by several tasks at a time, in one reply or in many.

An endpoint is a subject and an async function. Requests run concurrently up to the endpoint's limit; more wait in a bounded
queue, and what does not fit there is refused with 503 instead of piling up. A handler returns one ``Reply`` or is an async
generator of them; a stream of replies ends with an empty message whose header says how many there were, so that a lost one is
noticed. Errors travel in the headers ``Nats-Service-Error`` and ``-Code``. The verbs PING, INFO and STATS below ``$SRV`` answer
as those of every other NATS service do.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import orjson

from ipe_events.bus.connection import Reply
from ipe_events.bus.frames import encode_headers, parse_headers
from ipe_events.clock import SYSTEM, rfc3339
from ipe_events.errors import IpeError, PayloadTooLarge, ServiceError, UsageError
from ipe_events.telemetry.log import get_logger

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

__all__ = ["END_HEADER", "Endpoint", "Reply", "Request", "ServiceHandle"]

log = get_logger(__name__)

END_HEADER = "Ipe-Stream-End"
"""Header of the empty message that ends a streamed answer; its value is the number of replies."""

QUEUE_GROUP = "q"
"""Queue group in which instances of one service share the requests; NATS micro's default."""

_BACKLOG = 1024
_BACKLOG_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SEMVER = re.compile(r"\d+\.\d+\.\d+([-+].+)?")


class Request:
    """A question.

    Attributes:
        subject: where it was asked; its tokens say who asks for what.
        body: the payload.
        header_bytes: the header block as it came.
    """

    __slots__ = ("__dict__", "body", "header_bytes", "reply", "subject")

    def __init__(self, subject: str, reply: str, head: bytes, body: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.header_bytes = head
        self.body = body

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers, parsed at the first look.

        Raises:
            SchemaError: the block is malformed.
        """
        return parse_headers(self.header_bytes)


Answer = Callable[[Request], Awaitable[Reply | AsyncIterator[Reply]] | AsyncIterator[Reply]]
"""An async function that returns a ``Reply`` or an async iterator of them, or an async generator."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One question that a service answers.

    Attributes:
        name: for people.
        subject: where it listens; wildcards are allowed.
        handler: an async function returning a ``Reply``, or an async generator of them.
        concurrency: how many requests run at once.
        timeout: seconds for one request, streamed replies included; then the caller gets 504.
        metadata: shown by INFO.
        queue: queue group; empty for "every instance answers".
    """

    name: str
    subject: str
    handler: Answer
    concurrency: int = 8
    timeout: float = 30.0
    metadata: Mapping[str, str] = field(default_factory=dict)
    queue: str = QUEUE_GROUP


class _Running:
    """An endpoint at work: its queue, its tasks, its counters."""

    def __init__(self, bus: "Bus", endpoint: Endpoint) -> None:
        self._bus = bus
        self.endpoint = endpoint
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.seconds = 0.0
        self.sid = 0

    def receive(self, subject: bytes, reply: bytes, head: bytes, body: bytes) -> None:
        """A request arrived."""
        self.requests += 1
        request = Request(subject.decode(errors="backslashreplace"), reply.decode(errors="backslashreplace"), head, body)
        if len(self._tasks) < self.endpoint.concurrency:
            self._spawn(request)
        elif len(self._waiting) < _BACKLOG and self._waiting_bytes + len(body) <= _BACKLOG_BYTES:
            self._waiting_bytes += len(body)
            self._waiting.append(request)
        else:
            self._refuse(request, ServiceError(f"{len(self._waiting)} requests wait already; ask again later", code=503))

    @property
    def running(self) -> int:
        """How many requests are being answered."""
        return len(self._tasks)

    async def drain(self) -> None:
        """Lets what runs and waits finish."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, request: Request) -> None:
        task = asyncio.create_task(self._run(request), name=f"endpoint-{self.endpoint.name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if self._waiting:
            request = self._waiting.popleft()
            self._waiting_bytes -= len(request.body)
            self._spawn(request)

    async def _run(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                await self._answer(request)
        except ServiceError as error:
            self._refuse(request, error)
        except TimeoutError:
            self._refuse(request, ServiceError(f"not answered in {self.endpoint.timeout:g} s", code=504))
        except IpeError as error:
            self._refuse(request, ServiceError(str(error), code=_code(error)))
        except Exception as error:  # a bug in one answer must not end the service, nor tell the caller what is inside
            log.exception("service endpoint failed", endpoint=self.endpoint.name, subject=request.subject)
            self._refuse(request, ServiceError(f"internal error ({type(error).__name__}); see the service's log", code=500))
        finally:
            self.seconds += loop.time() - start

    async def _answer(self, request: Request) -> None:
        handled = self.endpoint.handler(request)
        result = handled if isinstance(handled, AsyncIterator) else await handled
        if isinstance(result, Reply):
            self._send(request, result)
            return
        count = 0
        try:
            async for reply in result:
                self._send(request, reply)
                count += 1
                await self._bus.breathe()
        finally:
            if close := getattr(result, "aclose", None):
                await close()
        self._send(request, Reply(headers={END_HEADER: str(count)}))

    def _send(self, request: Request, reply: Reply) -> None:
        if request.reply:
            try:
                frame = self._bus.frame(request.reply, encode_headers(reply.headers or {}), reply.body)
            except PayloadTooLarge as error:
                raise ServiceError(error.message, code=413) from error
            self._bus.client.write(frame)

    def _refuse(self, request: Request, error: ServiceError) -> None:
        self.errors += 1
        # what an error quotes may be anything; a header takes neither NUL nor half a surrogate pair
        text = " ".join(str(error).replace("\0", " ").split()).encode(errors="replace").decode()
        self.last_error = f"{error.code}:{text}"
        self._send(request, Reply(headers={"Nats-Service-Error": text[:1024], "Nats-Service-Error-Code": str(error.code)}))

    def stats(self) -> dict[str, Any]:
        """The endpoint's part of STATS, in NATS micro's field names; times in nanoseconds."""
        elapsed = int(self.seconds * 1e9)
        return {
            "name": self.endpoint.name,
            "subject": self.endpoint.subject,
            "queue_group": self.endpoint.queue,
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": elapsed,
            "average_processing_time": elapsed // max(1, self.requests),
        }


_CODES: tuple[tuple[type[Exception], int], ...] = (
    (PermissionError, 403),
    (LookupError, 404),
    (TimeoutError, 504),
    (ConnectionError, 503),
    (ValueError, 400),
)


def _code(error: IpeError) -> int:
    """The status of an error that a handler let through."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 500)


class ServiceHandle:
    """A running service; made by ``Bus.serve``, ended by ``stop``."""

    def __init__(self, bus: "Bus", name: str, version: str, description: str, metadata: Mapping[str, str]) -> None:
        self._bus = bus
        self.id = bus.client._nuid.next().decode()  # noqa: SLF001 - nats-py's id source
        self._identity = {"name": name, "id": self.id, "version": version, "metadata": dict(metadata)}
        self._description = description
        self._started = rfc3339(SYSTEM.now())
        self._running: list[_Running] = []
        self._sids: list[int] = []

    @classmethod
    async def start(
        cls,
        bus: "Bus",
        name: str,
        version: str,
        endpoints: Sequence[Endpoint],
        *,
        description: str,
        metadata: Mapping[str, str] | None,
    ) -> Self:
        """Subscribes to the endpoints and to the ``$SRV`` verbs.

        Raises:
            BusPermissionDenied: the identity may not subscribe to an endpoint's subject.
            UsageError: a name or version that NATS does not take.
        """
        if not _NAME.fullmatch(name) or not _SEMVER.fullmatch(version):
            raise UsageError(f"service {name!r} {version!r}", fix="name: letters, digits, - and _; version: 1.2.3")
        handle = cls(bus, name, version, description, metadata or {})
        try:
            for endpoint in endpoints:
                running = _Running(bus, endpoint)
                with bus.watching(endpoint.subject, "subscription") as call:
                    running.sid = bus.client.subscribe_raw(endpoint.subject, running.receive, queue=endpoint.queue)
                    handle._running.append(running)
                    await bus.confirm(call)
        except BaseException:
            await handle.stop()
            raise
        for verb, answer in (("PING", handle._ping), ("INFO", handle._info), ("STATS", handle._stats)):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{handle.id}"):
                handle._sids.append(bus.client.subscribe_raw(subject, handle._meta(answer)))
        await bus.flush()
        return handle

    @property
    def running(self) -> int:
        """How many requests are being answered."""
        return sum(running.running for running in self._running)

    async def stop(self) -> None:
        """Takes no more requests, lets those at work finish, and sends their answers."""
        for running in self._running:
            self._bus.client.unsubscribe_raw(running.sid)
        for sid in self._sids:
            self._bus.client.unsubscribe_raw(sid)
        for running in self._running:
            await running.drain()
        if self._bus.connected:
            await self._bus.flush()

    def _meta(self, answer: Callable[[], dict[str, Any]]) -> Callable[[bytes, bytes, bytes, bytes], None]:
        def receive(_subject: bytes, reply: bytes, _head: bytes, _body: bytes) -> None:
            if reply:
                self._bus.send(reply.decode(), orjson.dumps(answer()))

        return receive

    def _ping(self) -> dict[str, Any]:
        return {"type": "io.nats.micro.v1.ping_response", **self._identity}

    def _info(self) -> dict[str, Any]:
        endpoints = [
            {"name": e.name, "subject": e.subject, "queue_group": e.queue, "metadata": dict(e.metadata)}
            for e in (running.endpoint for running in self._running)
        ]
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._identity,
            "description": self._description,
            "endpoints": endpoints,
        }

    def _stats(self) -> dict[str, Any]:
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity,
            "started": self._started,
            "endpoints": [running.stats() for running in self._running],
        }
