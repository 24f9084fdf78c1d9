"""Batches: several events at a time, in the order of the stream, for handlers with ``batch=``.

It stands where ``Lanes`` stands for other handlers. One batch is worked on at a time; a batch that must be repeated is repeated
as it was, and what came later waits behind it. When a batch has failed for good, its events are tried one by one, so that one
poisonous event does not take its neighbours with it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ipe_events.declaration import Batch
from ipe_events.runtime.work import UNSETTLED_SECONDS, Work
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

RunBatch = Callable[[Sequence[Work]], Awaitable[float | None]]
"""Does one batch; returns None when all of it is settled, else the seconds to wait before the same batch again."""


class Batches:
    """Collects work and hands it on in batches.

    Args:
        run: does one batch.
        timed_out: what to do with a batch that was cancelled because it took too long; answers like ``run``.
        batch: size and linger.
        alone: whether a batch is to be tried one event at a time.
    """

    def __init__(self, run: RunBatch, timed_out: RunBatch, *, batch: Batch, alone: Callable[[Sequence[Work]], bool]) -> None:
        self._run = run
        self._timed_out = timed_out
        self._batch = batch
        self._alone = alone
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Work] = deque()
        self._current: list[Work] = []
        self._since = 0.0
        self._late = False
        self._busy = False
        self._turns: int | None = None
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._task = asyncio.create_task(self._work(), name="batches")

    @property
    def size(self) -> int:
        """Pieces of work in memory."""
        return len(self._waiting) + len(self._current)

    @property
    def running(self) -> int:
        """Pieces being worked on now."""
        return len(self._current) if self._busy else 0

    def put(self, _key: bytes | str, work: Work) -> bool:
        """Queue a piece; the consumer is held when memory is full, so there is always room."""
        self._waiting.append(work)
        self._changed.set()
        return True

    def resumed(self) -> None:
        """The consumer goes on after it was held; nothing is declined here, so nothing is awaited."""

    async def wait_below(self, size: int) -> None:
        """Return when fewer than ``size`` pieces are in memory."""
        while self.size >= size:
            self._idle.clear()
            await self._idle.wait()

    async def _work(self) -> None:
        while True:
            await self._until(lambda: bool(self._current or self._waiting) and self._turns != 0)
            if not self._current:
                await self._fill()
            if self._turns is not None:
                self._turns -= 1
            whole = self._current
            pieces = [[work] for work in whole] if self._alone(whole) else [whole]
            for piece in pieces:
                delay = await self._once(piece)
                if delay is None:
                    self._current = [work for work in self._current if work not in piece]
                else:
                    await asyncio.sleep(delay)
                    break
            self._idle.set()

    async def _once(self, piece: list[Work]) -> float | None:
        self._busy, self._since = True, self._loop.time()
        try:
            delay = await self._run(piece)
            if self._late:
                self._not_late()
        except asyncio.CancelledError:
            if not self._late:
                raise
            self._not_late()
            # the time is up once: the watchdog must not cut off what settles the batch
            self._since = float("inf")
            return await self._after_timeout(piece)
        except Exception as error:  # noqa: BLE001 - the worker must outlive it
            return self._unsettled(piece, error)
        finally:
            self._busy = False
            self._idle.set()
        return delay

    async def _after_timeout(self, piece: list[Work]) -> float | None:
        try:
            return await self._timed_out(piece)
        except Exception as error:  # noqa: BLE001 - the worker must outlive it
            return self._unsettled(piece, error)

    @staticmethod
    def _unsettled(piece: list[Work], error: Exception) -> float:
        """The worker outlives whatever goes wrong in settling a batch: its events stay, and are tried again."""
        log.error("a batch could not be settled", size=len(piece), retry_seconds=UNSETTLED_SECONDS, exc_info=error)
        return UNSETTLED_SECONDS

    def _not_late(self) -> None:
        self._late = False
        self._task.uncancel()

    async def _fill(self) -> None:
        """Take up to a batch of what waits, lingering for more."""
        deadline = self._loop.time() + self._batch.linger
        while len(self._waiting) < self._batch.size and (left := deadline - self._loop.time()) > 0:
            self._changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
        while self._waiting and len(self._current) < self._batch.size:
            self._current.append(self._waiting.popleft())

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._changed.clear()
            await self._changed.wait()

    # --- control, as of Lanes ----------------------------------------------------------------------------------------------

    def cancel_overdue(self, limit: float) -> None:
        """Cancel a batch that has been worked on for longer than ``limit`` seconds."""
        if self._busy and not self._late and self._loop.time() - self._since > limit:
            self._late = True
            self._task.cancel()

    def freeze(self) -> None:
        """Start nothing more."""
        self._turns = 0

    @property
    def frozen(self) -> bool:
        """Whether nothing more is started."""
        return self._turns == 0

    def probe(self) -> None:
        """While frozen, try the batch once."""
        self._turns = 1
        self._changed.set()

    def thaw(self) -> None:
        """Go on after ``freeze``."""
        self._turns = None
        self._changed.set()

    def works(self) -> list[Work]:
        """Everything in memory."""
        return [*self._current, *self._waiting]

    async def drain(self, grace: float) -> list[Work]:
        """Let a running batch finish for up to ``grace`` seconds; returns what is left undone, oldest first."""
        self.freeze()
        deadline = self._loop.time() + grace
        while self._busy and (left := deadline - self._loop.time()) > 0:
            self._idle.clear()
            try:
                async with asyncio.timeout(left):
                    await self._idle.wait()
            except TimeoutError:
                break
        await end(self._task)
        left_over = self.works()
        self._waiting.clear()
        self._current = []
        return left_over
