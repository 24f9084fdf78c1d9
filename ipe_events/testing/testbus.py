"""``TestBus``: call handlers in a test, in process; or, by one argument, over a real nats-server with the same test.

In memory nothing imitates JetStream: ``send`` hands the event to each handler whose subscription matches, through the same code
that decodes, injects, calls and judges outcomes in production, and returns what became of it. With ``server=`` the same handlers
run in a ``HandlerApp`` on that server, ``send`` publishes to it and waits until every matching handler has told how it ended.
What handlers publish is recorded either way, and events that they cause for one another are followed until all is quiet.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from ipe_events.bus.cloudevents import headers_for
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.bus.frames import encode_headers
from ipe_events.bus.services import Request
from ipe_events.clock import Clock
from ipe_events.declaration import Declared, Service, Subscription, Timer, declaration_of
from ipe_events.errors import UsageError
from ipe_events.events import codec
from ipe_events.events.act import Act
from ipe_events.events.base import Payload
from ipe_events.events.change import Change
from ipe_events.events.cluster import ClusterEvent
from ipe_events.events.command import Command
from ipe_events.events.finding import Finding
from ipe_events.events.headers import header
from ipe_events.events.ids import derived_id
from ipe_events.events.outcome import Outcome
from ipe_events.handler import Reject, Retry
from ipe_events.interest import overlaps
from ipe_events.runtime.app import HandlerApp, check_ids
from ipe_events.runtime.filters import divide
from ipe_events.runtime.inject import Bound, Injector
from ipe_events.runtime.outbox import Outbox, subject_of
from ipe_events.runtime.policies import PolicyStore
from ipe_events.runtime.services import Answerer
from ipe_events.runtime.subscriber import Subscriber
from ipe_events.runtime.timers import TimerRunner
from ipe_events.runtime.work import Work
from ipe_events.subjects import ACT, CLUSTER, OUTCOME, SERVICE, topic_of
from ipe_events.telemetry.trace import new_trace
from ipe_events.testing.clocks import FakeClock
from ipe_events.testing.memory import MemoryDelivery, MemoryPort

P = TypeVar("P", bound=Payload)

_SECONDS = 10.0
_CASCADE = 1_000


@dataclass(frozen=True, slots=True)
class Published:
    """A message that a handler published.

    Attributes:
        subject: where.
        id: its deterministic id.
        header_bytes: its headers.
        body: its bytes.
    """

    subject: str
    id: str
    header_bytes: bytes
    body: bytes

    def read(self, model: type[P]) -> P:
        """The payload."""
        return codec.decode(model, self.body)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one event in one handler.

    Attributes:
        handler: id of the declared function.
        event: id of the event.
        outcome: ``acked``, ``skipped``, ``filtered``, ``stale``, ``superseded``, ``retry``, ``failed``, ``rejected`` or ``dead``.
        error: what was raised.
    """

    handler: str
    event: str
    outcome: str
    error: BaseException | None = None


class StartTestBus(Protocol):
    """The fixture ``test_bus``: started with handlers it gives a running ``TestBus``, closed when the test ends."""

    async def __call__(
        self,
        *functions: Callable[..., Any],
        clock: Clock | None = None,
        answers: Mapping[str, Callable[[str, Any], Any]] | None = None,
    ) -> "TestBus":
        """Run these decorated functions; ``clock`` and ``answers`` as ``TestBus`` takes them."""
        ...


class TestBus:
    """Runs handlers for a test; an async context manager.

    Args:
        functions: decorated functions.
        server: a real server (``nats://…`` or settings) to run them on; None: in memory.
        clock: what handlers get as ``Clock``.
        answers: answers of agents by verb: ``{"get": lambda cluster, question: {...}}``; in memory only.
    """

    __test__ = False

    def __init__(
        self,
        *functions: Callable[..., Any],
        server: str | BusSettings | None = None,
        clock: Clock | None = None,
        answers: Mapping[str, Callable[[str, Any], Any]] | None = None,
    ) -> None:
        self.clock: Clock = clock or FakeClock()
        self.published: list[Published] = []
        self.results: list[Result] = []
        self._declared = [_declared(function) for function in functions]
        check_ids(self._declared)
        self._settings = BusSettings(servers=(server,)) if isinstance(server, str) else server
        self._answers = dict(answers or {})
        self._filters = {one.id: divide(one) for one in self._declared if isinstance(one, Subscription)}
        self._subscribers: dict[str, Subscriber] = {}
        self._bound: dict[str, Bound] = {}
        self._expected: set[tuple[str, str]] = set()
        self._seen: set[tuple[str, str]] = set()
        self._queue: deque[Published] = deque()
        self._told = asyncio.Event()
        self._app: HandlerApp | None = None
        self._injector: Injector
        self._outbox: Outbox
        self._seq = 0

    # --- life ------------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._settings is not None:
            self._app = HandlerApp(
                self._declared,
                self._settings,
                clock=self.clock,
                create_streams=True,
                port=lambda bus: _Recorder(bus, self._stored),
                on_settled=self._settled,
            )
            await self._app.start()
            self._outbox = Outbox(_Recorder(self._app.bus, self._stored), self.clock)
        else:
            self._outbox = Outbox(MemoryPort(self._stored, self._answer), self.clock)
        policies = PolicyStore(self._outbox.port)
        self._injector = Injector(self._outbox, policies)
        for declared in self._declared:
            await self._injector.provide_for(declared)
            self._bound[declared.id] = self._injector.bind(declared)
            if isinstance(declared, Subscription) and self._app is None:
                self._subscribers[declared.id] = Subscriber(
                    declared, self._filters[declared.id], self._bound[declared.id], self._outbox, on_settled=self._settled
                )
        await policies.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._app is not None:
            await self._app.stop()
        for subscriber in self._subscribers.values():
            await subscriber.lanes.drain(0)
        await self._injector.close()

    # --- in --------------------------------------------------------------------------------------------------------------

    async def send(
        self,
        event: Change | Payload,
        *,
        handler: str = "test",
        id: str = "",  # noqa: A002 - bus term
        check: bool = True,
    ) -> list[Result]:
        """Publish an event and wait until every handler that it concerns, directly or through others, is done with it.

        Args:
            event: a change (see ``ipe_events.testing.change``) or a payload.
            handler: the author of a finding or payload.
            id: of a payload; by default derived from its content. An id that was sent before is a duplicate and dropped.
            check: raise what a handler raised, unless it was ``Retry``, ``Reject`` or ``Skip``.

        Returns:
            What became of it and of the events that it caused, in the order in which they ended.

        Raises:
            Exception: what a handler raised.
            AssertionError: a handler did not end in time, or handlers cause one another events without end.
        """
        first = len(self.results)
        message = self._message(event, handler, id)
        if self._app is not None:
            await self._send_real(self._app, message)
        else:
            await self._send_in_memory(message)
        results = self.results[first:]
        for result in results:
            if check and result.error is not None and not isinstance(result.error, Retry | Reject):
                raise result.error
        return results

    async def tick(self, function: Callable[..., Any]) -> None:
        """Call an ``@every`` function once, now.

        Raises:
            Exception: what the function raised.
        """
        declared = _declared(function)
        if not isinstance(declared, Timer):
            raise UsageError(f"{declared.place} is no timer", fix="decorate it with @every")
        await TimerRunner(declared, self._bound[declared.id], self._outbox).tick()

    async def ask(self, function: Callable[..., Any], request: Payload | None = None, *, scope: str = "test") -> bytes:
        """Ask a ``@service`` function; returns the answer's body.

        Raises:
            ServiceError: its refusal.
        """
        declared = _declared(function)
        if not isinstance(declared, Service) or declared.streams:
            raise UsageError(f"{declared.place} is no service with one answer")
        subject = SERVICE.format(service=declared.name, scope=scope, verb=declared.verb)
        body = b"" if request is None else codec.encode(request)
        if self._app is not None:
            return (await self._app.bus.request(subject, body)).body
        answerer = Answerer(declared, self._bound[declared.id], self._outbox)
        return (await answerer.answer(Request(subject, "", b"", body))).body

    # --- out -------------------------------------------------------------------------------------------------------------

    def of(self, model: type[P]) -> list[P]:
        """Every published payload of one type, each once."""
        unique = {message.id: message for message in self.published}
        return [message.read(model) for message in unique.values() if _carries(message, model)]

    @property
    def commands(self) -> list[Command]:
        """Every command asked for, each once."""
        return self.of(Command)

    @property
    def findings(self) -> list[Finding]:
        """Every finding, each once, as far as all findings look alike."""
        unique = {message.id: message for message in self.published}
        return [message.read(Finding) for message in unique.values() if message.subject.startswith("ipe.finding.")]

    @property
    def dead(self) -> list[Published]:
        """Dead letters."""
        return [message for message in self.published if message.subject.startswith("ipe.dlq.")]

    # --- how -------------------------------------------------------------------------------------------------------------

    def _message(self, event: Change | Payload, handler: str, identity: str) -> Published:
        if isinstance(event, Change):
            return Published(event.subject, event.id, event.header_bytes, event.body)
        body = codec.encode(event)
        identity = identity or getattr(event, "id", "") or derived_id("test", handler, type(event).__name__, body.decode())
        head = headers_for(
            event,
            id=identity,
            source=f"/handlers/{handler}",
            subject=str(getattr(event, "subject", "") or getattr(event, "object_ref", "") or ""),
            time=self.clock.now(),
            trace=new_trace().traceparent,
            extensions={"hops": getattr(event, "hops", "")},
        )
        return Published(_subject(event, handler), identity, encode_headers(head), body)

    def _interested(self, message: Published) -> list[str]:
        return [
            identity
            for identity, filters in self._filters.items()
            if any(overlaps(pattern, message.subject) for patterns in filters.streams.values() for pattern in patterns)
            and filters.wants(message.subject)
        ]

    async def _send_in_memory(self, message: Published) -> None:
        self._queue.append(message)
        handled = 0
        while self._queue:
            handled += 1
            if handled > _CASCADE:
                raise AssertionError(f"one event caused more than {_CASCADE} others; the last is on {self._queue[0].subject}")
            current = self._queue.popleft()
            for identity in self._interested(current):
                if (identity, current.id) in self._seen:
                    continue
                self._seen.add((identity, current.id))
                subscriber = self._subscribers[identity]
                work = Work(self._delivery(current), 0.0)
                if subscriber.declared.batch is None:
                    await subscriber.handle(work)
                else:
                    await subscriber.handle_batch([work])

    def _delivery(self, message: Published) -> MemoryDelivery:
        self._seq += 1
        return MemoryDelivery(
            message.subject,
            message.header_bytes,
            message.body,
            seq=self._seq,
            stream=topic_of(message.subject).stream,
            clock=self.clock,
        )

    async def _send_real(self, app: HandlerApp, message: Published) -> None:
        self._expect(message)
        headers = codec_headers(message.header_bytes)
        ack = await app.bus.publish(message.subject, message.body, id=message.id, headers=headers)
        if ack.duplicate:
            self._expected.difference_update({(identity, message.id) for identity in self._interested(message)})
        try:
            async with asyncio.timeout(_SECONDS):
                while self._expected:
                    self._told.clear()
                    await self._told.wait()
        except TimeoutError:
            waiting = ", ".join(f"{handler} of {event}" for handler, event in sorted(self._expected))
            raise AssertionError(f"not within {_SECONDS:g} s: {waiting}") from None

    def _expect(self, message: Published) -> None:
        for identity in self._interested(message):
            key = (identity, message.id)
            if key not in self._seen:
                self._seen.add(key)
                self._expected.add(key)

    def _stored(self, subject: str, head: bytes, body: bytes, identity: str) -> None:
        message = Published(subject, header(head, b"ce-id") or identity, head, body)
        self.published.append(message)
        if subject.startswith("ipe.dlq."):
            return
        if self._app is None:
            self._queue.append(message)
        else:
            self._expect(message)

    def _settled(self, subscriber: Subscriber, work: Work, outcome: str, error: BaseException | None) -> None:
        event = header(work.delivery.header_bytes, b"ce-id")
        self.results.append(Result(subscriber.declared.id, event, outcome, error))
        self._expected.discard((subscriber.declared.id, event))
        self._told.set()

    def _answer(self, subject: str, body: bytes) -> list[bytes]:
        values = topic_of(subject).parse(subject)
        answer = self._answers.get(values["verb"])
        if answer is None:
            return []
        found = answer(values.get("cluster", ""), codec.parse(body or b"{}"))
        pages = found if isinstance(found, list) else [found]
        return [codec.encode(page) if isinstance(page, Payload) else _json(page) for page in pages]


class _Recorder:
    """A connection that tells the test bus what is published; everything else is the connection's."""

    def __init__(self, bus: Bus, stored: Callable[[str, bytes, bytes, str], None]) -> None:
        self._bus = bus
        self._stored = stored
        self.request = bus.request
        self.request_many = bus.request_many
        self.kv = bus.kv

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        id: str | None = None,  # noqa: A002 - the bus's own word
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> Any:
        head = encode_headers({**(headers or {}), "Nats-Msg-Id": id or ""})
        self._stored(subject, head, body, id or "")
        return await self._bus.publish(subject, body, id=id, headers=headers, timeout=timeout)


async def assert_idempotent(function: Callable[..., Any], event: Change | Payload, *, clock: Clock | None = None) -> None:
    """Fail unless handling an event twice publishes exactly what handling it once does.

    Raises:
        AssertionError: the second time published something else, or other ids.
    """
    declared = _declared(function)
    runs: list[dict[str, bytes]] = []
    moment = clock or FakeClock()
    for _ in range(2):
        async with TestBus(declared.function, clock=moment) as bus:
            await bus.send(event)
            runs.append({message.id: message.body for message in bus.published})
    once, again = runs
    if once != again:
        new = [again[identity].decode() for identity in again.keys() - once.keys()]
        changed = [identity for identity in once.keys() & again.keys() if once[identity] != again[identity]]
        raise AssertionError(
            f"{declared.place} is not idempotent: a repetition published {len(new)} new and {len(changed)} changed messages: "
            f"{[*new, *changed]}"
        )


def _declared(function: Callable[..., Any]) -> Declared:
    declared = declaration_of(function)
    if declared is None:
        raise UsageError(f"{function!r} is no handler", fix="decorate it with @handler, @every or @service")
    return declared


def _subject(event: Payload, handler: str) -> str:
    if isinstance(event, ClusterEvent):
        return CLUSTER.format(cluster=event.cluster, state=event.type_name)
    if isinstance(event, Outcome):
        return OUTCOME.format(cluster=event.cluster, handler=event.handler, verb=event.verb)
    if isinstance(event, Act):
        return ACT.format(user=event.user, act=event.act)
    return subject_of(event.handler if isinstance(event, Command) else handler, event)


def _carries(message: Published, model: type[Payload]) -> bool:
    return not message.subject.startswith("ipe.dlq.") and header(message.header_bytes, b"ce-type") == model.ce_type()


def codec_headers(block: bytes) -> dict[str, str]:
    """A block's headers as they are written, for publishing them again."""
    lines = (line.partition(b":") for line in block.split(b"\r\n")[1:])
    return {name.decode(): value.strip().decode() for name, colon, value in lines if colon and name != b"Nats-Msg-Id"}


def _json(value: Any) -> bytes:
    import orjson

    return orjson.dumps(value)
