"""What handlers publish: payloads with deterministic ids, causes and traces.

A ``Call`` is one invocation of a handler. Everything published during it carries an id derived from the handler, the input's id
and the position among the outputs, so a redelivered input publishes the same ids again and the streams drop them. Cause, hop
count and trace follow from the input as well; handlers need not think of any of them.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from ipe_events.bus.cloudevents import headers_for
from ipe_events.clock import Clock
from ipe_events.declaration import injectable
from ipe_events.errors import UsageError
from ipe_events.events.base import Payload
from ipe_events.events.cluster import ClusterEvent
from ipe_events.events.codec import encode
from ipe_events.events.command import Command
from ipe_events.events.finding import Finding
from ipe_events.events.ids import derived_id
from ipe_events.runtime.port import Port
from ipe_events.subjects import CLUSTER, COMMAND, EVENT, FINDING
from ipe_events.telemetry.trace import Trace, child, new_trace, parse_traceparent


class InputMeta(Protocol):
    """What a call knows of its input; ``Meta`` is one."""

    @property
    def id(self) -> str:
        """Of the event."""
        ...

    @property
    def cluster(self) -> str:
        """Where it happened; may be empty."""
        ...

    @property
    def trace(self) -> str:
        """W3C traceparent; may be empty."""
        ...

    @property
    def hops(self) -> int:
        """Commands that led to it."""
        ...


class Call:
    """One invocation of a handler.

    Attributes:
        handler: its name on the bus.
        id: of the declared function.
        meta: of the input.
        dry_run: whether its commands only ask.
        published: how many payloads and commands it has published.
    """

    __slots__ = ("_index", "_trace", "dry_run", "handler", "id", "meta", "outbox", "published")

    def __init__(self, outbox: "Outbox", handler: str, id: str, meta: InputMeta, *, dry_run: bool) -> None:  # noqa: A002 - bus term
        self.outbox = outbox
        self.handler = handler
        self.id = id
        self.meta = meta
        self.dry_run = dry_run
        self.published = 0
        self._index = 0
        self._trace: Trace | None = None

    @property
    def trace(self) -> Trace:
        """This step of the input's trace."""
        if self._trace is None:
            parent = parse_traceparent(self.meta.trace)
            self._trace = child(parent) if parent else new_trace()
        return self._trace

    @trace.setter
    def trace(self, trace: Trace) -> None:
        self._trace = trace

    def next_id(self, *parts: str) -> str:
        """The id of the next output; ``parts`` tell apart what is decided differently at a repetition."""
        index, self._index = self._index, self._index + 1
        return derived_id(self.id, self.meta.id, index, *parts)


class Outbox:
    """Publishes payloads for handlers.

    Args:
        port: the bus.
        clock: dates what is published.
    """

    def __init__(self, port: Port, clock: Clock) -> None:
        self.port = port
        self.clock = clock

    async def publish(self, call: Call, payload: Payload) -> str:
        """Publish one payload as an output of ``call``; returns its id.

        Raises:
            UsageError: a handler may not publish this kind of payload, or in another's name.
            BusError: it is not stored.
        """
        subject = subject_of(call.handler, payload)
        identity = payload.id if isinstance(payload, Command) else call.next_id()
        await self.port.publish(
            subject,
            encode(payload),
            id=identity,
            headers=headers_for(
                payload,
                id=identity,
                source=f"/handlers/{call.handler}",
                subject=about(payload),
                time=self.clock.now(),
                trace=call.trace.traceparent,
                extensions={
                    "cause": call.meta.id,
                    "hops": payload.hops if isinstance(payload, Command) else call.meta.hops or "",
                },
            ),
        )
        call.published += 1
        return identity

    async def publish_result(self, call: Call, result: object) -> None:
        """Publish what a handler returned: a payload, several, or None.

        Raises:
            UsageError: it returned something else.
            BusError: something is not stored.
        """
        if result is None:
            return
        if isinstance(result, Payload):
            await self.publish(call, result)
        elif isinstance(result, Iterable) and not isinstance(result, str | bytes | Mapping):
            for payload in result:
                if not isinstance(payload, Payload):
                    raise UsageError(f"{call.id} returned a {type(payload).__name__} in a list", fix="return payloads only")
                await self.publish(call, payload)
        else:
            raise UsageError(f"{call.id} returned a {type(result).__name__}", fix="return a payload, a list of payloads, or None")


def subject_of(handler: str, payload: Payload) -> str:
    """Where a handler's payload is published.

    Raises:
        UsageError: a handler may not publish it.
    """
    if isinstance(payload, Finding):
        return FINDING.format(
            handler=handler, cluster=payload.cluster, namespace=payload.subject.namespace, type=payload.type_name
        )
    if isinstance(payload, Command):
        if payload.handler != handler:
            raise UsageError(f"{handler} publishes a command in the name of {payload.handler!r}")
        return COMMAND.format(cluster=payload.cluster, handler=handler, verb=payload.action.verb)
    if payload.topic is EVENT:
        return EVENT.format(handler=handler, type=payload.type_name)
    if isinstance(payload, ClusterEvent) and getattr(payload, "handler", "") == handler:
        return CLUSTER.format(cluster=payload.cluster, state=payload.type_name)
    raise UsageError(
        f"{handler} may not publish a {type(payload).__name__}: topic {payload.topic.name} belongs to others",
        fix="derive your payload from Payload or Finding",
    )


def about(payload: Payload) -> str:
    """The object a payload is about, for ``ce-subject``; empty when it is about none."""
    if isinstance(payload, Finding):
        return str(payload.subject)
    return str(payload.target) if isinstance(payload, Command) else ""


@injectable
class Bus:
    """Publishes payloads from inside a handler, for what cannot wait until it returns; injected by type."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def publish(self, payload: Payload) -> str:
        """Publish one payload now; returns its deterministic id.

        Raises:
            UsageError: a handler may not publish this kind of payload.
            BusError: it is not stored.
        """
        return await self._call.outbox.publish(self._call, payload)

    async def batch(self, payloads: Iterable[Payload]) -> list[str]:
        """Publish several, in order; returns their ids.

        Raises:
            UsageError, BusError: as ``publish``; those before the failed one are stored, a repetition stores them once.
        """
        return [await self.publish(payload) for payload in payloads]
