"""A durable consumer that keeps going: through reconnects, server restarts, its own deletion and retention.

``Consumer`` makes (or finds) the durable and feeds a callback through ``ipe_events.bus.pull``. It remembers which delivered
messages are not settled, so that, when somebody deletes the durable, it is made again right after the last message up to which
everything is settled, and says so. JetStream removes messages by age and size without asking who has read them: when the stream's
first sequence has passed our position, the missing stretch is handed to ``on_gap``. Delivery is at least once.
"""

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Self

from ipe_events.bus.delivery import Delivery, Settler, stream_sequence
from ipe_events.bus.pull import Puller
from ipe_events.errors import BusError, BusNotFound, BusPermissionDenied, BusUnavailable, UsageError
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger
from ipe_events.telemetry.metrics import counter

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

__all__ = ["Consumer", "ConsumerEvent", "ConsumerSpec", "Delivery", "Start"]

log = get_logger(__name__)

GAPS = counter("ipe_bus_consumer_gaps_total", "Stretches that retention removed before a consumer read them.", ("consumer",))
RECREATED = counter("ipe_bus_consumer_recreated_total", "Consumers made again after somebody deleted them.", ("consumer",))

Start = Literal["new", "all", "last", "last_per_subject"] | int | datetime
"""Where a new consumer begins: a word, a stream sequence, or a time."""

_NAME = re.compile(r"[A-Za-z0-9_=-]{1,200}")
_START_KEYS = ("deliver_policy", "opt_start_seq", "opt_start_time")
_CHECK_SECONDS = 5.0
_IDLE_TICKS = 6
_VAIN_SECONDS = 5.0
_MAX_DELAY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable consumer as data.

    Attributes:
        stream: its stream.
        name: the durable's name.
        filters: subjects; empty for all.
        start: where it begins when it is made; an existing one keeps its place.
        ack_wait: seconds until an unsettled message is delivered again.
        max_ack_pending: how many unsettled messages the server lets be out; together with ``batch`` it bounds memory.
        max_deliver: attempts per message; -1 for no limit.
        backoff: seconds to wait after each ack time-out (not after a ``nak``); replaces ``ack_wait``.
        batch: how many messages may be under way from the server.
        max_bytes: how many bytes one pull may bring.
        description: for people who list consumers.
    """

    stream: str
    name: str
    filters: tuple[str, ...] = ()
    start: Start = "new"
    ack_wait: float = 30.0
    max_ack_pending: int = 1024
    max_deliver: int = -1
    backoff: tuple[float, ...] = ()
    batch: int = 256
    max_bytes: int = 32 << 20
    description: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"consumer name {self.name!r} holds a character that NATS does not take", fix="use subjects.escape")
        if self.max_ack_pending < 1 or self.batch < 1:
            raise UsageError(f"consumer {self.name}: max_ack_pending and batch must be at least 1")

    def config(self) -> dict[str, Any]:
        """The configuration as JetStream's API takes it."""
        config: dict[str, Any] = {
            "name": self.name,
            "durable_name": self.name,
            "description": self.description,
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait * 1e9),
            "max_deliver": self.max_deliver,
            "max_ack_pending": self.max_ack_pending,
            "replay_policy": "instant",
            **start_config(self.start),
        }
        if self.backoff:
            config["backoff"] = [int(seconds * 1e9) for seconds in self.backoff]
        if self.filters or self.start == "last_per_subject":  # which NATS gives only to filtered consumers
            config["filter_subjects"] = list(self.filters) or [">"]
        return config


@dataclass(frozen=True, slots=True)
class ConsumerEvent:
    """Something that people should hear of.

    Attributes:
        kind: ``recreated`` or ``lost`` (the server forgot us; it is being repaired).
        detail: one sentence.
    """

    kind: Literal["recreated", "lost"]
    detail: str


def start_config(start: Start) -> dict[str, Any]:
    """JetStream's deliver policy for a start."""
    if isinstance(start, datetime):
        return {"deliver_policy": "by_start_time", "opt_start_time": start.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    if isinstance(start, int):
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start)}
    return {"deliver_policy": start}


class Consumer(Settler):
    """A running durable consumer; made by ``Consumer.start``."""

    def __init__(
        self,
        bus: "Bus",
        spec: ConsumerSpec,
        on_message: Callable[[Delivery], None],
        on_gap: Callable[[int, int], None] | None,
        on_event: Callable[[ConsumerEvent], None] | None,
    ) -> None:
        self.bus = bus
        self.spec = spec
        self._on_message = on_message
        self._on_gap = on_gap
        self._on_event = on_event
        self._unsettled: dict[int, None] = {}
        self._position = 0
        self._jumped_from: int | None = None
        self._created = False
        self._may_look = True
        self._stopped = False
        self._vain = 0
        self._restarted = 0.0
        self._stream_created = ""
        self._repair_task: asyncio.Task[None] | None = None
        self._check_task: asyncio.Task[None] | None = None
        self._gaps = GAPS.labels(spec.name)
        self._forget_state = bus.on_state(self._on_state)
        self._puller = Puller(
            bus,
            spec.stream,
            spec.name,
            batch=spec.batch,
            max_bytes=spec.max_bytes,
            on_message=self._receive,
            on_lost=self._repair,
        )

    @classmethod
    async def start(
        cls,
        bus: "Bus",
        spec: ConsumerSpec,
        on_message: Callable[[Delivery], None],
        *,
        on_gap: Callable[[int, int], None] | None = None,
        on_event: Callable[[ConsumerEvent], None] | None = None,
    ) -> Self:
        """Makes the durable, or finds it and brings its settings up to date, and starts to pull.

        Args:
            bus: the connection.
            spec: what to consume.
            on_message: called for each message, in the order of the stream; must not block nor await.
            on_gap: called with the first and last stream sequence of a stretch that retention removed unread; when the stream was
                made anew, both are the sequence that would have come next in the old one.
            on_event: called when the durable had to be repaired.

        Raises:
            BusNotFound: the stream is missing.
            BusPermissionDenied: the identity may neither make nor read this consumer.
        """
        consumer = cls(bus, spec, on_message, on_gap, on_event)
        try:
            await consumer._ensure()
            with bus.watching(consumer._puller.subject, "publish") as call:
                consumer._puller.restart()
                await bus.confirm(call)
        except BaseException:
            await consumer.stop()
            raise
        consumer._check_task = asyncio.create_task(consumer._check_for_ever(), name=f"consumer-check-{spec.name}")
        return consumer

    # --- for whoever uses it -------------------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> int:
        """How many delivered messages are neither acknowledged nor terminated."""
        return len(self._unsettled)

    @property
    def position(self) -> int:
        """The highest stream sequence that was delivered."""
        return self._position

    @property
    def settled_up_to(self) -> int:
        """The stream sequence up to which everything is settled."""
        return min(self._unsettled) - 1 if self._unsettled else self._position

    async def info(self) -> dict[str, Any]:
        """The consumer's state on the server: ``num_pending`` (lag), ``num_ack_pending``, ``num_redelivered``…

        Raises:
            BusNotFound: it was deleted a moment ago.
        """
        return await self.bus.js_api(f"CONSUMER.INFO.{self.spec.stream}.{self.spec.name}")

    def pause(self) -> None:
        """Asks for nothing more; at most ``batch`` messages still arrive."""
        self._puller.pause()

    def resume(self) -> None:
        """Goes on after ``pause``."""
        self._puller.resume()

    async def stop(self) -> None:
        """Stops pulling, gives back what is under way, and sends the acknowledgements that are buffered; the durable stays."""
        self._stopped = True
        self._forget_state()
        tasks = [task for task in (self._repair_task, self._check_task) if task]
        await end(*tasks)
        try:
            await self._puller.give_back()
            await self.bus.flush()
        except BusUnavailable as error:
            log.info("consumer stopped without a connection", consumer=self.spec.name, error=str(error))
            self._puller.stop()

    # --- messages --------------------------------------------------------------------------------------------------------------

    def _receive(self, subject: bytes, reply: bytes, head: bytes, body: bytes) -> None:
        seq = stream_sequence(reply)
        if seq > self._position:
            if seq > self._position + 1 and self._jumped_from is None:
                self._jumped_from = self._position
            self._position = seq
        self._unsettled[seq] = None
        self._on_message(Delivery(self, seq, subject, reply, head, body))

    def settled(self, seq: int) -> None:
        """The message with this stream sequence needs no redelivery."""
        self._unsettled.pop(seq, None)

    # --- repair --------------------------------------------------------------------------------------------------------------

    def _on_state(self, up: bool) -> None:
        if up:
            self._repair("the connection was lost")
        else:
            self._puller.stop()

    def _repair(self, reason: str) -> None:
        if self._stopped or (self._repair_task and not self._repair_task.done()):
            return
        self._tell(ConsumerEvent("lost", reason))
        self._repair_task = asyncio.create_task(self._repair_until_done(reason), name=f"consumer-repair-{self.spec.name}")

    async def _repair_until_done(self, reason: str) -> None:
        log.info("consumer is being repaired", consumer=self.spec.name, stream=self.spec.stream, reason=reason)
        loop = asyncio.get_running_loop()
        # a pull that the server refuses each time must not be repeated in a hot loop
        self._vain = self._vain + 1 if loop.time() - self._restarted < _VAIN_SECONDS else 0
        attempt = self._vain
        if attempt:
            await asyncio.sleep(_delay(attempt))
        while True:
            await self.bus.wait_connected()
            try:
                await self._ensure()
                break
            except (BusError, KeyError, TypeError, ValueError) as error:  # ours, or an answer without what it should hold
                delay = _delay(attempt)
                log.warning(
                    "consumer cannot be repaired yet", consumer=self.spec.name, error=repr(error), retry_seconds=round(delay, 2)
                )
                attempt += 1
                await asyncio.sleep(delay)
        self._restarted = loop.time()
        self._puller.restart()

    async def _ensure(self) -> None:
        """Finds or makes the durable, and looks whether retention has passed it."""
        spec = self.spec
        try:
            info = await self.info()
        except BusNotFound:
            await self._create()
            return
        except BusPermissionDenied:
            if self._may_look:
                log.info(
                    "may not read the consumer; taking it as made by an administrator", consumer=spec.name, stream=spec.stream
                )
            self._may_look = False
            return
        config = info["config"]
        wanted = {key: value for key, value in spec.config().items() if key not in _START_KEYS}
        if _differs(config, wanted):
            info = await self._write_config(wanted | {key: config[key] for key in _START_KEYS if key in config})
        if not self._created:
            self._created = True
            self._position = max(self._position, int(info["delivered"]["stream_seq"]))
        await self._check_retention()

    async def _create(self) -> None:
        config = self.spec.config()
        again = self._created
        if again:
            info = await self.bus.stream_info(self.spec.stream)
            floor, last = self.settled_up_to, int(info["state"]["last_seq"])
            if floor > last or info["created"] != self._stream_created:
                log.warning("stream was made anew; its history is lost", stream=self.spec.stream, consumer=self.spec.name)
                self._gap(floor + 1, floor + 1)
                floor = 0
            config = {key: value for key, value in config.items() if key not in _START_KEYS} | start_config(floor + 1)
            self._unsettled.clear()
            self._position = floor
        info = await self._write_config(config)
        self._created = True
        if again:
            RECREATED.labels(self.spec.name).add(1)
            detail = f"somebody deleted it; made again at stream sequence {self._position + 1}"
            log.warning(
                "consumer was deleted and is made again",
                consumer=self.spec.name,
                stream=self.spec.stream,
                position=self._position + 1,
            )
            self._tell(ConsumerEvent("recreated", detail))
        else:
            self._position = int(info["delivered"]["stream_seq"])
        await self._check_retention()

    async def _write_config(self, config: dict[str, Any]) -> dict[str, Any]:
        spec = self.spec
        verb = f"CONSUMER.CREATE.{spec.stream}.{spec.name}"
        if len(spec.filters) == 1:
            # the filter as part of the subject is what permissions can enforce
            config = {key: value for key, value in config.items() if key != "filter_subjects"} | {
                "filter_subject": spec.filters[0]
            }
            verb = f"{verb}.{spec.filters[0]}"
        return await self.bus.js_api(verb, {"stream_name": spec.stream, "config": config, "action": ""})

    # --- retention -------------------------------------------------------------------------------------------------------------

    async def _check_for_ever(self) -> None:
        tick = 0
        while self._may_look:
            await asyncio.sleep(_CHECK_SECONDS)
            tick += 1
            busy = self._jumped_from is not None or self._unsettled or self._puller.paused
            if self.bus.connected and (busy or tick % _IDLE_TICKS == 0):
                try:
                    await self._check_retention()
                except BusError as error:
                    log.debug("positions cannot be compared now", consumer=self.spec.name, error=str(error))

    async def _check_retention(self) -> None:
        """Compares our position with the stream's first message.

        A jump in the sequence is normal where a filter leaves messages out; it is a gap when the stream no longer holds what
        would come next. While nothing is pending or open, the position follows the stream's end, so that a filter that seldom
        matches does not look left behind.
        """
        try:
            stream = await self.bus.stream_info(self.spec.stream)
            info = await self.info()
        except BusPermissionDenied:
            self._may_look = False
            log.warning("may not read the stream's state: what retention removes unread is not noticed", consumer=self.spec.name)
            return
        state = stream["state"]
        self._stream_created = stream["created"]
        first = int(state["first_seq"])
        jumped, self._jumped_from = self._jumped_from, None
        known = self._position if jumped is None else jumped
        if first > known + 1:
            self._gap(known + 1, first - 1)
            self._position = max(self._position, first - 1)
        elif not (info["num_pending"] or info["num_ack_pending"] or self._unsettled):
            self._position = max(self._position, int(state["last_seq"]))

    def _gap(self, first: int, last: int) -> None:
        self._gaps.add(1)
        log.warning("retention removed messages unread", consumer=self.spec.name, stream=self.spec.stream, first=first, last=last)
        if self._on_gap:
            self._on_gap(first, last)

    def _tell(self, event: ConsumerEvent) -> None:
        if self._on_event:
            self._on_event(event)


def _delay(attempt: int) -> float:
    """Seconds before a repetition: growing, with jitter."""
    return min(_MAX_DELAY_SECONDS, 0.1 * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _differs(config: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a consumer's configuration on the server lacks something wanted; the server leaves empty values out."""
    there = dict(config)
    if "filter_subject" in there:
        there["filter_subjects"] = [there.pop("filter_subject")]
    keys = wanted.keys() | {"filter_subjects", "backoff"}
    return any((there.get(key) or None) != (wanted.get(key) or None) for key in keys)
