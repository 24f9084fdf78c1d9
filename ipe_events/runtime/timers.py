"""``@every``: a function called again and again while the process runs."""

import asyncio
from typing import Self

from ipe_events.clock import rfc3339
from ipe_events.declaration import Timer
from ipe_events.runtime.inject import Bound
from ipe_events.runtime.metrics import Figures
from ipe_events.runtime.notices import Occasion
from ipe_events.runtime.outbox import Call, Outbox
from ipe_events.telemetry import trace
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)


class TimerRunner:
    """Calls one timer's function; an async context manager.

    A call that fails is logged and counted; the next one comes at its time. Calls never overlap, and none is made up for.
    """

    def __init__(self, declared: Timer, bound: Bound, outbox: Outbox) -> None:
        self._declared = declared
        self._bound = bound
        self._outbox = outbox
        self._figures = Figures(declared.id)
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"every-{self._declared.id}")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._task is not None:
            # a call that runs is finished; its own time-out bounds it
            self._stop.set()
            await self._task

    async def _run(self) -> None:
        loop, seconds = asyncio.get_running_loop(), self._declared.seconds
        due = loop.time() + seconds
        while not await self._stopped_within(max(0.0, due - loop.time())):
            try:
                await self.tick()
            except Exception as error:
                self._figures.failed(error).add()
                log.exception("timer failed; it is called again at its time", handler=self._declared.id)
            due = max(due + seconds, loop.time())

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    async def tick(self) -> None:
        """Call the function once and publish what it returns.

        Raises:
            Exception: whatever the function raises; ``TimeoutError`` when it takes too long.
        """
        declared, loop = self._declared, asyncio.get_running_loop()
        started = loop.time()
        meta = Occasion(f"{declared.id}/{rfc3339(self._outbox.clock.now())}")
        call = Call(self._outbox, declared.name, declared.id, meta, dry_run=declared.dry_run)
        with trace.span(f"timer {declared.id}") as place:
            call.trace = place
            async with asyncio.timeout(declared.timeout):
                await self._outbox.publish_result(call, await self._bound(call))
        self._figures.published.add(call.published)
        self._figures.outcomes["acked"].add()
        self._figures.duration.observe(loop.time() - started)
