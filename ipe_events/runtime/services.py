"""``@service``: functions that answer requests; those of one handler are the endpoints of one NATS micro service."""

import inspect
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

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
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_-]")
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


async def serve(bus: Bus, answerers: Sequence["Answerer"]) -> ServiceHandle:
    """Serve the functions of one handler as one NATS micro service with an endpoint each; stop the handle to end.

    Raises:
        BusPermissionDenied: the identity may not subscribe to an endpoint's subject.
    """
    first = answerers[0].declared
    words = [inspect.getdoc(answerer.declared.function) or answerer.declared.place for answerer in answerers]
    return await bus.serve(first.name, _VERSION, [answerer.endpoint for answerer in answerers], description="; ".join(words))


class Answerer:
    """One declared function at work.

    Args:
        declared: what the user wrote.
        bound: the function with its parameters.
        outbox: publishes for it.
    """

    def __init__(self, declared: Service, bound: Bound, outbox: Outbox) -> None:
        self.declared = declared
        self._bound = bound
        self._outbox = outbox

    @property
    def endpoint(self) -> Endpoint:
        """Where and how it listens."""
        declared = self.declared
        everyone = declared.scope == "*"
        return Endpoint(
            name=declared.verb if everyone else f"{declared.verb}-{_UNNAMEABLE.sub('-', declared.scope)}",
            subject=SERVICE.filter(service=declared.name, scope=None if everyone else declared.scope, verb=declared.verb),
            handler=self.stream if declared.streams else self.answer,
            concurrency=declared.concurrency,
            timeout=declared.timeout,
        )

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
        declared, meta = self.declared, Meta(_Asked(request))
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
