"""One ``@handler`` at work: from the consumer's message through its lane to the acknowledgement.

``receive`` is called for each message: what the client's filters do not want is acknowledged at once, the rest goes to its lane.
``handle`` does one piece of work: decode, call, publish what was returned, acknowledge; and turns whatever was raised into one of
the outcomes of ``ipe_events.handler``. Both are written for tens of thousands of events per second: headers stay bytes, and
nothing is built that the handler does not ask for.

When the bus itself does not answer, that is nobody's failure: the work waits and no attempt is counted.
"""

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ipe_events.declaration import Subscription
from ipe_events.errors import BusTimeout, BusUnavailable, IpeError, SchemaError
from ipe_events.events import codec
from ipe_events.events.base import Payload
from ipe_events.events.change import Change
from ipe_events.events.headers import REPLAY_HANDLER, header
from ipe_events.events.message import Event, Message, Meta
from ipe_events.handler import Reject, Retry, Skip
from ipe_events.interest import FAMILY_ROOTS
from ipe_events.runtime.batches import Batches
from ipe_events.runtime.breaker import Breaker
from ipe_events.runtime.dead import bury
from ipe_events.runtime.filters import Filters, matches_any
from ipe_events.runtime.inject import Bound
from ipe_events.runtime.lanes import Lanes
from ipe_events.runtime.metrics import Figures
from ipe_events.runtime.outbox import Call, Outbox
from ipe_events.runtime.snapshot import Join
from ipe_events.runtime.work import Deliverable, Work
from ipe_events.telemetry import trace
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

CAPACITY = 4_096
"""Pieces of work in memory at which the consumer is paused; it goes on at half."""

DECLINE_SECONDS = 1.0
"""After which the server offers again what a full lane declined."""

_BUS_SECONDS = 1.0
_REFUSED_SECONDS = 30.0
_REMEMBERED = 100_000
_UNKNOWN_TYPE = "no payload type of this handler"
_REPLAY_HANDLER = REPLAY_HANDLER.encode()

Settled = Callable[["Subscriber", Work, str, BaseException | None], None]
"""Told how a piece of work ended (or ``retry``, ``failed``), for tests."""


class Subscriber:
    """One subscription at work.

    Args:
        declared: what the user wrote.
        filters: what is left to the client.
        bound: the function with its parameters.
        outbox: publishes what it returns.
        on_settled: told how each piece of work ended.
    """

    def __init__(
        self,
        declared: Subscription,
        filters: Filters,
        bound: Bound,
        outbox: Outbox,
        *,
        on_settled: Settled | None = None,
    ) -> None:
        self.declared = declared
        self.filters = filters
        self.figures = Figures(declared.id)
        self.breaker = Breaker()
        self.join: Join | None = None
        self.last_error = ""
        self.on_full: Callable[[], None] = lambda: None
        """Called when memory holds as much as it may."""
        self.on_pause: Callable[[bool, BaseException | None], None] = lambda _paused, _error: None
        """Called with True when the handler pauses and with False when it goes on."""
        self._bound = bound
        self._outbox = outbox
        self._on_settled = on_settled
        self._on_client = filters.on_client
        self._passes: dict[str, bool] = {}
        self._last: Deliverable | None = None
        self._decode = _decoder(declared)
        self._changes = issubclass(declared.payloads[0], Change)
        self._newest: OrderedDict[bytes | str, tuple[int, int, bool]] = OrderedDict()
        self._declines: dict[tuple[str, int], int] = {}
        self._loop = asyncio.get_running_loop()
        self.lanes: Lanes | Batches = (
            Batches(self.handle_batch, self._batch_timed_out, batch=declared.batch, alone=self._exhausted)
            if declared.batch
            else Lanes(
                self.handle,
                self._timed_out,
                concurrency=declared.concurrency,
                latest=declared.latest,
                superseded=self._superseded,
            )
        )

    # --- in --------------------------------------------------------------------------------------------------------------

    def receive(self, delivery: Deliverable) -> None:
        """A message arrived; called by the consumer, in the order of the stream."""
        self.figures.received.value += 1
        self._last = delivery
        work = Work(delivery, self._loop.time())
        if (self._on_client and not self._passes_client(delivery.subject)) or (
            _REPLAY_HANDLER in delivery.header_bytes and not self._is_addressed(delivery.header_bytes)
        ):
            self._settle(work, "filtered")
            return
        key = lane_key(delivery.header_bytes) or delivery.subject
        if self._changes and (self.declared.latest or self.join is not None) and self._stale(key, delivery):
            self._settle(work, "stale")
            return
        if self._declines:
            # what a full lane declined was delivered, but not tried
            work.tries = -self._declines.pop((delivery.stream, delivery.seq), 0)
        if not self.lanes.put(key, work):
            self._decline(work)
        elif self.lanes.size >= CAPACITY:
            self.on_full()

    def _decline(self, work: Work) -> None:
        delivery = work.delivery
        if len(self._declines) >= _REMEMBERED:
            self._declines.clear()
        self._declines[delivery.stream, delivery.seq] = 1 - work.tries
        delivery.nak(DECLINE_SECONDS)

    def receive_item(self, delivery: Deliverable) -> None:
        """A snapshot's item arrived; what live changes have overtaken is dropped."""
        change = Change(delivery.subject, delivery.header_bytes, delivery.body)
        key = lane_key(delivery.header_bytes) or delivery.subject
        self.figures.received.value += 1
        work = Work(delivery, self._loop.time())
        if self.join is None or not self.join.item(change) or not self._wanted_item(change):
            self._settle(work, "stale")
            return
        self.lanes.put(key, work)

    def _wanted_item(self, change: Change) -> bool:
        wanted = self.declared
        return matches_any(change.cluster, wanted.clusters) and matches_any(change.namespace, wanted.namespaces)

    def _is_addressed(self, head: bytes) -> bool:
        """Whether a replayed message is for this handler; its namesakes on the subject have handled it already."""
        return header(head, _REPLAY_HANDLER) in {"", self.declared.id}

    def _passes_client(self, subject: str) -> bool:
        passes = self._passes.get(subject)
        if passes is None:
            if len(self._passes) >= _REMEMBERED:
                self._passes.clear()
            passes = self._passes[subject] = self.filters.wants(subject)
        return passes

    def _stale(self, key: bytes | str, delivery: Deliverable) -> bool:
        """Whether a newer state of the object was handled or is queued already."""
        change = Change(delivery.subject, delivery.header_bytes, delivery.body)
        try:
            rank = rank_of(change)
            overtaken = self.join is not None and not self.join.live(change)
        except SchemaError:
            return False
        if overtaken or not self.declared.latest or rank is None:
            return overtaken
        known = self._newest.get(key)
        if known is not None and rank < known:
            return True
        self._newest[key] = rank
        self._newest.move_to_end(key)
        if len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)
        return False

    # --- one piece of work -----------------------------------------------------------------------------------------------

    async def handle(self, work: Work) -> float | None:
        """Call the handler once; None when the work is settled, else the seconds to wait."""
        delivery = work.delivery
        loop_time = self._loop.time
        started = loop_time()
        try:
            payload = self._decode(delivery)
            where = self.declared.where
            if where is not None and not where(payload):
                self._settle(work, "filtered")
                return None
            if self._bound.needs_call or self.declared.outputs or trace.recording():
                await self._called(work, payload)
            else:
                first = Event(payload, Meta(delivery, work.tries)) if self.declared.wrapped else payload
                result = await self._bound(None, first)
                if result is not None:
                    await self._publish(self._call(work), result)
        except asyncio.CancelledError:
            if _cancelled():
                raise
            return await self._raised(work, RuntimeError("the handler awaited something that was cancelled"))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises becomes an outcome
            return await self._raised(work, error)
        self._settle(work, "acked")
        self.figures.duration.observe(loop_time() - started)
        return None

    async def handle_batch(self, works: Sequence[Work]) -> float | None:
        """Call the handler with several events; what one of them raises concerns all."""
        started = self._loop.time()
        wanted: list[Work] = []
        try:
            events = []
            for work in works:
                payload = self._decode(work.delivery)
                if self.declared.where is None or self.declared.where(payload):
                    wanted.append(work)
                    events.append(Event(payload, Meta(work.delivery, work.tries)) if self.declared.wrapped else payload)
            if wanted:
                # outputs of a batch are those of its first event: the same batch derives the same ids
                call = self._call(wanted[0])
                with self._span(call, wanted[1:]):
                    await self._publish(call, await self._bound(call, events))
        except asyncio.CancelledError:
            if _cancelled():
                raise
            return await self._batch_raised(works, RuntimeError("the handler awaited something that was cancelled"))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises becomes an outcome
            return await self._batch_raised(works, error)
        for work in works:
            self._settle(work, "acked" if work in wanted else "filtered")
        self.figures.duration.observe(self._loop.time() - started)
        return None

    async def _batch_raised(self, works: Sequence[Work], error: Exception) -> float | None:
        """One event alone has the outcomes of any event; several are repeated together, or in the end one by one."""
        if len(works) == 1:
            return await self._raised(works[0], error)
        if isinstance(error, Skip):
            for work in works:
                self._settle(work, "skipped")
            return None
        if isinstance(error, Retry | BusUnavailable | BusTimeout):
            delays = [await self._raised(work, error) for work in works]
            return max(delay for delay in delays if delay is not None)
        self.figures.failed(error).add()
        self.last_error = f"{type(error).__name__}: {error}"
        log.warning("handler failed on a batch", handler=self.declared.id, size=len(works), error=self.last_error, exc_info=error)
        for work in works:
            work.tries += 1
            self._tell(work, "failed", error)
        return 0.0 if self._exhausted(works) else self._backoff(works[0])

    async def _batch_timed_out(self, works: Sequence[Work]) -> float | None:
        return await self._batch_raised(works, TimeoutError(f"the handler took longer than {self.declared.timeout:g} s"))

    def _exhausted(self, works: Sequence[Work]) -> bool:
        """Whether a batch has failed so often that its events are tried one by one."""
        return len(works) > 1 and works[0].attempt >= self.declared.retry.attempts

    async def _called(self, work: Work, payload: Any) -> None:
        meta = Meta(work.delivery, work.tries)
        call = self._call(work, meta)
        first = Event(payload, meta) if self.declared.wrapped else payload
        with self._span(call):
            await self._publish(call, await self._bound(call, first))

    @contextmanager
    def _span(self, call: Call, others: Sequence[Work] = ()) -> Iterator[None]:
        """The call as a step of its event's trace, linked to those of the other events of its batch."""
        if not trace.recording():
            yield
            return
        parent = trace.parse_traceparent(call.meta.trace)
        places = [trace.parse_traceparent(Meta(work.delivery, work.tries).trace) for work in others]
        links = [place for place in places if place is not None]
        with trace.span(f"handler {self.declared.id}", parent, links=links, attributes={"event_id": call.meta.id}) as place:
            call.trace = place
            yield

    def _call(self, work: Work, meta: Meta | None = None) -> Call:
        declared = self.declared
        meta = meta or Meta(work.delivery, work.tries)
        return Call(self._outbox, declared.name, declared.id, meta, dry_run=declared.dry_run)

    async def _publish(self, call: Call, result: object) -> None:
        if result is not None:
            await self._outbox.publish_result(call, result)
        self.figures.published.add(call.published)

    async def _raised(self, work: Work, error: Exception) -> float | None:
        if isinstance(error, Skip):
            self._settle(work, "skipped")
            return None
        if isinstance(error, Retry):
            self.figures.retried.add()
            work.tries += 1
            self._tell(work, "retry", error)
            return self._backoff(work) if error.delay is None else error.delay
        if isinstance(error, Reject):
            return await self._bury(work, error, "rejected")
        if isinstance(error, BusUnavailable | BusTimeout):
            self._tell(work, "retry", error)
            return _BUS_SECONDS
        return await self._failed(work, error)

    async def _timed_out(self, work: Work) -> float | None:
        return await self._failed(work, TimeoutError(f"the handler took longer than {self.declared.timeout:g} s"))

    async def _failed(self, work: Work, error: Exception) -> float | None:
        """An exception: again after a back-off, in the end a dead letter; unless everything fails."""
        self.figures.failed(error).add()
        self.last_error = f"{type(error).__name__}: {error}"
        if isinstance(error, SchemaError):  # the event is broken, not the handler: no reason to pause, nor to try again
            return await self._bury(work, error, "dead")
        key = lane_key(work.delivery.header_bytes) or work.delivery.subject
        newly_paused = self.breaker.failed(key)
        log.warning(
            "handler failed",
            handler=self.declared.id,
            event_id=header(work.delivery.header_bytes, b"ce-id"),
            subject=work.delivery.subject,
            attempt=work.attempt,
            error=self.last_error,
            exc_info=error,
        )
        if newly_paused:
            self.lanes.freeze()
            self.on_pause(True, error)
        if self.breaker.paused:
            self._tell(work, "failed", error)
            return self.breaker.probe_after
        if work.attempt >= self.declared.retry.attempts:
            return await self._bury(work, error, "dead")
        work.tries += 1
        self._tell(work, "failed", error)
        return self._backoff(work)

    async def _bury(self, work: Work, error: Exception, outcome: str) -> float | None:
        declared = self.declared
        try:
            await bury(self._outbox.port, self._outbox.clock, handler=declared.name, identity=declared.id, work=work, error=error)
        except (BusUnavailable, BusTimeout) as lost:
            self._tell(work, "retry", lost)
            return _BUS_SECONDS
        except IpeError as refused:  # no such stream, no right to it: until somebody mends that, the event stays
            log.error("a dead letter cannot be stored", handler=declared.id, error=str(refused), retry_seconds=_REFUSED_SECONDS)  # noqa: TRY400 - the error says it all
            self._tell(work, "retry", refused)
            return _REFUSED_SECONDS
        work.delivery.term(outcome)
        self.figures.outcomes[outcome].add()
        log.error(
            "event became a dead letter",
            handler=declared.id,
            event_id=header(work.delivery.header_bytes, b"ce-id"),
            attempts=work.attempt,
            outcome=outcome,
            error=f"{type(error).__name__}: {error}",
        )
        self._tell(work, outcome, error)
        return None

    def _backoff(self, work: Work) -> float:
        return self.declared.retry.delay(max(1, work.attempt - 1), random.random())  # noqa: S311 - jitter

    def measure(self) -> None:
        """Keep the gauges; called by the heartbeat."""
        self.figures.waiting.set(self.lanes.size)
        last, self._last = self._last, None
        age = (self._outbox.clock.now() - last.time).total_seconds() if last is not None else 0.0
        self.figures.lag.set(max(0.0, age))

    # --- out -------------------------------------------------------------------------------------------------------------

    def _settle(self, work: Work, outcome: str) -> None:
        work.delivery.ack()
        self.figures.outcomes[outcome].value += 1
        if outcome in {"acked", "skipped"} and self.breaker.succeeded():
            self.lanes.thaw()
            self.on_pause(False, None)
        if self._on_settled is not None:
            self._on_settled(self, work, outcome, None)

    def _superseded(self, work: Work) -> None:
        self._settle(work, "superseded")

    def _tell(self, work: Work, outcome: str, error: BaseException) -> None:
        if self._on_settled is not None:
            self._on_settled(self, work, outcome, error)


def lane_key(head: bytes) -> bytes:
    """The object a message is about, read from its raw headers: a change's uid, else ``ce-source`` and ``ce-subject``.

    Empty when the headers name none; the subject then is the lane.
    """
    start = head.find(b"\r\nce-id:")
    if start < 0:
        return b""
    end = head.find(b"\r\n", start + 8)
    parts = head[start + 8 : end].split(b"/")
    if len(parts) == 7:
        return parts[4]
    start = head.find(b"\r\nce-subject:")
    if start < 0:
        return b""
    return head[start + 13 : head.find(b"\r\n", start + 13)].strip()


def rank_of(change: Change) -> tuple[int, int, bool] | None:
    """What orders two changes of one object: epoch, resourceVersion, a delete last; None when they cannot be compared."""
    identity = change.change_id
    if not identity.resource_version.isdecimal():
        return None
    return identity.epoch, int(identity.resource_version), identity.verb == "deleted"


def _decoder(declared: Subscription) -> Callable[[Deliverable], Any]:
    first: type = declared.payloads[0]
    if issubclass(first, Message):
        # a delivery has everything that a message is made of
        return first.of
    models: dict[str, type[Payload]] = {
        payload.ce_type(): payload for payload in declared.payloads if issubclass(payload, Payload)
    }
    only = next(iter(models.values())) if len(models) == 1 else None

    def decode(delivery: Deliverable) -> Payload:
        found = header(delivery.header_bytes, b"ce-type")
        model = only or models.get(found)
        if model is None:
            raise Skip(_UNKNOWN_TYPE)
        # a family's root (Finding, ClusterEvent) reads what all its types have in common
        return codec.decode(model, delivery.body, ce_type=None if model in FAMILY_ROOTS else found or None)

    return decode


def _cancelled() -> bool:
    """Whether it is us who are cancelled, not something that the handler awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
