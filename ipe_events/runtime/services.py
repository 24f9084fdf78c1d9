"""``@service``: a function that answers requests, as a NATS micro endpoint."""

import inspect
from collections.abc import AsyncIterator
from typing import Any, Self

from ipe_events.bus.connection import Bus
from ipe_events.bus.services import Endpoint, Reply, Request, ServiceHandle
from ipe_events.clock import SYSTEM
from ipe_events.declaration import Service
from ipe_events.errors import SchemaError, ServiceError
from ipe_events.events import codec
from ipe_events.events.base import Payload
from ipe_events.events.message import Event, Meta
from ipe_events.handler import Reject, Retry, Skip
from ipe_events.runtime.inject import Bound
from ipe_events.runtime.outbox import Call, Outbox
from ipe_events.subjects import SERVICE

_VERSION = "1.0.0"
_BAD_REQUEST, _UNAVAILABLE = 400, 503


class _Asked:
    """A request as an event's source: it lies in no stream."""

    def __init__(self, request: Request) -> None:
        self.subject = request.subject
        self.header_bytes = request.header_bytes
        self.body = request.body
        self.seq = 0
        self.deliveries = 1
        self.stream = ""
        self.time = SYSTEM.now()


class ServiceRunner:
    """Serves one declared function; an async context manager.

    Args:
        bus: where it is served; None when a test only calls ``answer``.
        declared: what the user wrote.
        bound: the function with its parameters.
        outbox: publishes for it.
    """

    def __init__(self, bus: Bus | None, declared: Service, bound: Bound, outbox: Outbox) -> None:
        self._bus = bus
        self._declared = declared
        self._bound = bound
        self._outbox = outbox
        self._handle: ServiceHandle | None = None

    @property
    def subject(self) -> str:
        """Where it listens."""
        declared = self._declared
        scope = None if declared.scope == "*" else declared.scope
        return SERVICE.filter(service=declared.name, scope=scope, verb=declared.verb)

    async def __aenter__(self) -> Self:
        declared = self._declared
        endpoint = Endpoint(
            name=declared.verb,
            subject=self.subject,
            handler=self.stream if declared.streams else self.answer,
            concurrency=declared.concurrency,
            timeout=declared.timeout,
        )
        assert self._bus is not None, "a service is served on a connection"
        self._handle = await self._bus.serve(
            declared.name, _VERSION, [endpoint], description=inspect.getdoc(declared.function) or declared.place
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._handle is not None:
            await self._handle.stop()

    async def answer(self, request: Request) -> Reply:
        """One answer.

        Raises:
            ServiceError: 400 for a request that does not fit, or that the function rejects; 503 for "later".
        """
        call, arguments = self._prepare(request)
        try:
            result = await self._bound(call, *arguments)
        except Reject as error:
            raise ServiceError(error.reason, code=_BAD_REQUEST) from error
        except Retry as error:
            raise ServiceError(error.reason or "try again later", code=_UNAVAILABLE) from error
        except Skip:
            return Reply()
        return _reply(result)

    async def stream(self, request: Request) -> AsyncIterator[Reply]:
        """Several answers.

        Raises:
            ServiceError: as ``answer``.
        """
        call, arguments = self._prepare(request)
        try:
            async for result in self._bound(call, *arguments):
                yield _reply(result)
        except Reject as error:
            raise ServiceError(error.reason, code=_BAD_REQUEST) from error

    def _prepare(self, request: Request) -> tuple[Call, tuple[Any, ...]]:
        declared, meta = self._declared, Meta(_Asked(request))
        call = Call(self._outbox, declared.name, declared.id, meta, dry_run=declared.dry_run)
        if declared.request is None:
            return call, ()
        try:
            payload = codec.decode(declared.request, request.body or b"{}")
        except SchemaError as error:
            raise ServiceError(str(error), code=_BAD_REQUEST) from error
        return call, (Event(payload, meta) if declared.wrapped else payload,)


def _reply(result: object) -> Reply:
    if result is None:
        return Reply()
    if not isinstance(result, Payload):
        raise ServiceError(f"the service returned a {type(result).__name__}", code=500, fix="return a Payload")
    return Reply(body=codec.encode(result), headers={"ce-type": result.ce_type()})
