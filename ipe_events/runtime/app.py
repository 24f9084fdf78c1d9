"""A process of handlers: one connection, everything that was declared, health endpoints, a graceful end.

``HandlerApp`` connects, tells the bus what its handlers need (agents collect by that), serves their services, starts their timers
and consumers, and on ``stop`` finishes what is being worked on and hands the rest back. ``run_handlers`` is what
``ipe handlers run`` calls: it lives until SIGTERM or SIGINT.
"""

import asyncio
import gc
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Self

from ipe_events.bus import topology
from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.clock import SYSTEM, Clock
from ipe_events.declaration import Declared, Service, Subscription, Timer
from ipe_events.errors import BusError, UsageError
from ipe_events.events.cluster import Gap
from ipe_events.runtime.announce import announce, unmet_needs
from ipe_events.runtime.consumption import Consumption, located
from ipe_events.runtime.filters import divide
from ipe_events.runtime.inject import Injector
from ipe_events.runtime.loading import SnapshotLoader
from ipe_events.runtime.notices import HandlerPaused, HandlerResumed, Occasion
from ipe_events.runtime.outbox import Call, Outbox
from ipe_events.runtime.policies import PolicyStore
from ipe_events.runtime.port import Port
from ipe_events.runtime.services import Answerer, serve
from ipe_events.runtime.subscriber import Settled, Subscriber
from ipe_events.runtime.timers import TimerRunner
from ipe_events.tasks import end
from ipe_events.telemetry.health import HealthServer
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)


class HandlerApp:
    """Runs declared handlers; an async context manager.

    Args:
        declared: what to run; ids are unique.
        settings: how to reach the bus.
        clock: dates what is published.
        health_port: where to serve health and metrics; None: nowhere, 0: a free port.
        health_host: address of the health endpoints.
        grace: seconds that running calls get at the end.
        create_streams: make streams and buckets that are missing (an embedded or test server).
        port: what handlers publish through instead of the connection itself; the test bus records there.
        on_settled: told how each event ended; for tests.
    """

    def __init__(
        self,
        declared: Sequence[Declared],
        settings: BusSettings,
        *,
        clock: Clock = SYSTEM,
        health_port: int | None = None,
        health_host: str = "127.0.0.1",
        grace: float = 20.0,
        create_streams: bool = False,
        port: Callable[[Bus], Port] | None = None,
        on_settled: Settled | None = None,
    ) -> None:
        check_ids(declared)
        self.declared = tuple(declared)
        self.health: HealthServer | None = None
        self.subscribers: dict[str, Subscriber] = {}
        self._settings = settings
        self._clock = clock
        self._health_port = health_port
        self._health_host = health_host
        self._grace = grace
        self._create_streams = create_streams
        self._port = port
        self._on_settled = on_settled
        self._consumptions: list[Consumption] = []
        self._background: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()
        self._ready = "starting"
        self.bus: Bus

    # --- life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and begin.

        Raises:
            BusError: the bus, a stream or a right is missing.
            DeclarationError: something that a handler asks for cannot be built.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        stack = self._stack
        if self._health_port is not None:
            self.health = HealthServer(self._checks(), port=self._health_port, host=self._health_host)
            await stack.enter_async_context(self.health)
        names = sorted({declared.name for declared in self.declared})
        self.bus = await stack.enter_async_context(await Bus.connect(self._settings, name=f"handlers {' '.join(names)}"))
        if self._create_streams:
            await topology.ensure(self.bus)
        outbox = Outbox(self._port(self.bus) if self._port else self.bus, self._clock)
        policies = PolicyStore(outbox.port)
        injector = Injector(outbox, policies)
        stack.push_async_callback(injector.close)
        for declared in self.declared:
            await injector.provide_for(declared)
        bound = {declared.id: injector.bind(declared) for declared in self.declared}
        stack.push_async_callback(policies.stop)
        await policies.start()
        await announce(self.bus, self.declared, self._clock)
        await self._warn_of_missing()
        for name in names:
            services = [one for one in self.declared if isinstance(one, Service) and one.name == name]
            if services:
                handle = await serve(self.bus, [Answerer(one, bound[one.id], outbox) for one in services])
                stack.push_async_callback(handle.stop)
        for declared in self.declared:
            if isinstance(declared, Timer):
                await stack.enter_async_context(TimerRunner(declared, bound[declared.id], outbox))
        for declared in self.declared:
            if isinstance(declared, Subscription):
                await self._subscribe(declared, bound[declared.id], outbox)
        self._ready = ""
        log.info("handlers are running", handlers=[declared.id for declared in self.declared])

    async def stop(self) -> None:
        """Finish what runs, hand the rest back, disconnect; does nothing the second time."""
        self._ready = "stopping"
        await end(*self._background)
        await asyncio.gather(*(consumption.stop(self._grace) for consumption in self._consumptions))
        self._consumptions.clear()
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    # --- parts -----------------------------------------------------------------------------------------------------------

    async def _subscribe(self, declared: Subscription, bound: Any, outbox: Outbox) -> None:
        filters = await located(self.bus, divide(declared))
        log.info("handler subscribes", handler=declared.id, **filters.describe(), start=str(declared.start))
        subscriber = Subscriber(declared, filters, bound, outbox, on_settled=self._on_settled)
        subscriber.on_pause = lambda paused, error: self._paused(subscriber, outbox, error, paused=paused)
        self.subscribers[declared.id] = subscriber
        consumption = Consumption(
            self.bus, subscriber, lambda stream, first, last: self._gap(declared, outbox, stream, first, last)
        )
        loader = SnapshotLoader(self.bus, subscriber, self._clock) if declared.start == "snapshot" else None
        if loader is not None:
            await loader.prepare(resumed=await consumption.exists())
        self._consumptions.append(consumption)
        await consumption.start()
        if loader is not None:
            self._spawn(loader.run(), f"snapshot-{declared.id}")

    async def _warn_of_missing(self) -> None:
        for declared, unmet in await unmet_needs(self.bus, self.declared):
            log.warning("a handler asks for what it does not get", handler=declared.id, problem=unmet.problem, fix=unmet.fix)

    def _paused(self, subscriber: Subscriber, outbox: Outbox, error: BaseException | None, *, paused: bool) -> None:
        declared = subscriber.declared
        subscriber.figures.paused.set(int(paused))
        if paused:
            log.error("everything fails; handler pauses and probes", handler=declared.id, error=subscriber.last_error)
            notice: Any = HandlerPaused(handler=declared.id, error=type(error).__name__, time=self._clock.now())
        else:
            log.info("handler works again", handler=declared.id)
            notice = HandlerResumed(handler=declared.id, time=self._clock.now())
        self._spawn(self._notify(declared, outbox, notice), "handler-notice")

    def _gap(self, declared: Subscription, outbox: Outbox, stream: str, first: int, last: int) -> None:
        gap = Gap(
            cluster="*",  # the stream holds changes of every cluster
            cause="retention",
            since=str(first),
            until=str(last),
            handler=declared.name,
            detail=f"{stream} dropped sequences {first} to {last} before {declared.id} had read them",
            time=self._clock.now(),
        )
        self._spawn(self._notify(declared, outbox, gap), "handler-gap")

    async def _notify(self, declared: Subscription, outbox: Outbox, notice: Any) -> None:
        call = Call(outbox, declared.name, declared.id, Occasion(f"{declared.id}/{notice.time.isoformat()}"), dry_run=False)
        while True:
            try:
                await outbox.publish(call, notice)
            except BusError as error:
                log.warning("cannot publish a notice yet", handler=declared.id, notice=notice.type_name, error=str(error))
                if not error.retryable:
                    return
                await asyncio.sleep(timedelta(seconds=1).total_seconds())
            else:
                return

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", task=task.get_name(), error=f"{type(error).__name__}: {error}", exc_info=error)

    # --- health ----------------------------------------------------------------------------------------------------------

    def _checks(self) -> dict[str, Callable[[], str]]:
        checks: dict[str, Callable[[], str]] = {"started": lambda: self._ready, "bus": self._bus_check}
        for declared in self.declared:
            if isinstance(declared, Subscription):
                checks[f"handler-{declared.id}"] = self._handler_check(declared.id)
        return checks

    def _bus_check(self) -> str:
        return "" if hasattr(self, "bus") and self.bus.connected else "not connected to NATS"

    def _handler_check(self, identity: str) -> Callable[[], str]:
        def check() -> str:
            subscriber = self.subscribers.get(identity)
            if subscriber is None:
                return "not subscribed yet"
            if subscriber.breaker.paused:
                return f"paused because everything fails; last: {subscriber.last_error}"
            if subscriber.join is not None and subscriber.join.open:
                return f"snapshot of {len(subscriber.join.open)} resources is not complete"
            return ""

        return check


def check_ids(declared: Sequence[Declared]) -> None:
    """Ids name durables and deterministic outputs: two functions of one process cannot share one.

    Raises:
        UsageError: nothing to run, or an id twice.
    """
    if not declared:
        raise UsageError("there is no handler to run", fix="decorate an async function with @handler")
    seen: dict[str, Declared] = {}
    for one in declared:
        other = seen.setdefault(one.id, one)
        if other is not one:
            raise UsageError(f"id {one.id!r} is taken twice: {other.place} and {one.place}", fix="give one of them id=")


async def run_handlers(
    declared: Sequence[Declared],
    settings: BusSettings,
    *,
    health_port: int | None = None,
    health_host: str = "127.0.0.1",
    started: Callable[[HandlerApp], None] = lambda _app: None,
) -> None:
    """Run handlers until SIGTERM or SIGINT, then end gracefully.

    Args:
        declared: what to run.
        settings: how to reach the bus.
        health_port: where to serve health and metrics; None: nowhere.
        health_host: address of the health endpoints.
        started: called when everything runs.

    Raises:
        UsageError: nothing to run, or an id twice.
        BusError: the bus, a stream or a right is missing.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with HandlerApp(declared, settings, health_port=health_port, health_host=health_host) as app:
            started(app)
            # what start-up made lives as long as the process: the collector need not look at it again and again
            gc.collect()
            gc.freeze()
            await stop.wait()
            log.info("handlers are stopping", handlers=[one.id for one in declared])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
