"""Lanes: the events of one object one after the other, different objects side by side.

A consumer's messages arrive in the order of the stream. Each goes to the lane of its object; a few workers take lanes in turn and
do *one* piece of work at a time, so that an object with a thousand events waits behind everybody else's first. Work that must be
repeated stays at the head of its lane, and the lane sleeps: what came later for that object waits, nobody else does.

Memory is bounded: a lane holds at most ``LANE_LIMIT`` pieces. What does not fit is declined, handed back to the server with a
delay, and taken again in its old order: a lane remembers the sequences that it declined and lets nothing pass them. One that
stays away although the lane has run empty was removed from the stream, and is forgotten.

Workers are tasks that run the handler's coroutine directly: a handler that does not wait costs no task and no trip through the
event loop. Time-outs are enforced by a watchdog rather than by a timer per event, for the same reason.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ipe_events.runtime.work import UNSETTLED_SECONDS, Work
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

LANE_LIMIT = 128
"""Pieces of work that one lane holds in memory."""

GONE_SECONDS = 30.0
"""After which a declined piece that was not offered again is taken for removed from the stream."""

_SLICE = 0.005
"""Seconds a worker may go on before it lets the event loop breathe."""

Run = Callable[[Work], Awaitable[float | None]]
"""Does one piece of work; returns None when it is settled, else the seconds to wait before the same piece again."""


class Lane:
    """One object's waiting work, oldest first."""

    __slots__ = ("declined", "head", "key", "rest", "running")

    def __init__(self, key: bytes | str, head: Work) -> None:
        self.key = key
        self.head: Work | None = head
        self.rest: deque[Work] | None = None
        self.declined: dict[int, float] | None = None
        self.running = False


class _Worker:
    __slots__ = ("late", "since", "task", "work")

    def __init__(self) -> None:
        self.task: asyncio.Task[None]
        self.work: Work | None = None
        self.since = 0.0
        self.late = False


class Lanes:
    """A set of lanes with their workers.

    Args:
        run: does one piece of work.
        timed_out: what to do with a piece that was cancelled because it took too long; answers like ``run``.
        concurrency: number of workers.
        latest: keep only the newest waiting piece per lane.
        superseded: told of a piece that a newer one replaced.
    """

    def __init__(self, run: Run, timed_out: Run, *, concurrency: int, latest: bool, superseded: Callable[[Work], None]) -> None:
        self._run = run
        self._timed_out = timed_out
        self._concurrency = concurrency
        self._latest = latest
        self._superseded = superseded
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[bytes | str, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._workers: list[_Worker] = []
        self._resting: list[asyncio.Future[None]] = []
        self._waking = False
        self._turns: int | None = None
        self._sleeping: dict[Lane, asyncio.TimerHandle] = {}
        self._settled = asyncio.Event()
        self.size = 0
        """Pieces of work in memory."""

    # --- in --------------------------------------------------------------------------------------------------------------

    def put(self, key: bytes | str, work: Work) -> bool:
        """Queue a piece; False when its lane is full or waits for an older piece: hand it back to the server."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, work)
            self.size += 1
            self._ready.append(lane)
            if not self._waking:
                self._wake()
            return True
        if self._latest:
            self._replace(lane, work)
            return True
        return self._append(lane, work)

    def _replace(self, lane: Lane, work: Work) -> None:
        waiting = None if lane.running else lane.head
        newest = lane.rest[-1] if lane.rest else waiting
        # a snapshot's items count downwards from 0 and come in their own order
        if newest is not None and 0 < work.delivery.seq <= newest.delivery.seq:
            if work.delivery.seq < newest.delivery.seq:
                self.size += 1
                self._drop(work)
            return
        self.size += 1
        if lane.running:
            if lane.rest:
                self._drop(lane.rest.pop())
            lane.rest = deque((work,))
        else:
            old, lane.head = lane.head, work
            if old is not None:
                self._drop(old)

    def _drop(self, work: Work) -> None:
        self.size -= 1
        self._superseded(work)

    def _append(self, lane: Lane, work: Work) -> bool:
        seq = work.delivery.seq
        if any(known.delivery.seq == seq for known in (lane.head, *(lane.rest or ())) if known is not None):
            # redelivered while it waits here: what is settled by the older copy is settled for both
            return True
        if lane.rest is None:
            lane.rest = deque()
        if self._awaits_older(lane, seq) or len(lane.rest) + 1 >= LANE_LIMIT:
            if lane.declined is None:
                lane.declined = {}
            lane.declined[seq] = self._loop.time()
            return False
        if lane.declined:
            lane.declined.pop(seq, None)
        self.size += 1
        if lane.head is None:
            lane.head = work
            self._ready.append(lane)
            if not self._waking:
                self._wake()
        else:
            lane.rest.append(work)
        return True

    def _awaits_older(self, lane: Lane, seq: int) -> bool:
        """Whether the lane declined an older piece, which must come first."""
        declined = lane.declined
        if not declined:
            return False
        if lane.head is None:
            offered_since = self._loop.time() - GONE_SECONDS
            for gone in [old for old, moment in declined.items() if moment < offered_since]:
                del declined[gone]
        return bool(declined) and min(declined) < seq

    def resumed(self) -> None:
        """The consumer goes on after it was held: what was declined could not come back before."""
        now = self._loop.time()
        for lane in self._lanes.values():
            if lane.declined:
                lane.declined = dict.fromkeys(lane.declined, now)

    async def wait_below(self, size: int) -> None:
        """Return when fewer than ``size`` pieces are in memory."""
        while self.size >= size:
            self._settled.clear()
            await self._settled.wait()

    # --- workers ---------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._turns == 0:
            return
        if self._resting:
            self._waking = True
            future = self._resting.pop()
            if not future.done():
                future.set_result(None)
        elif len(self._workers) < self._concurrency:
            self._waking = True
            worker = _Worker()
            self._workers.append(worker)
            worker.task = self._loop.create_task(self._work(worker), name=f"lane-worker-{len(self._workers)}")

    async def _work(self, worker: _Worker) -> None:
        loop = self._loop
        pause_at = loop.time() + _SLICE
        self._waking = False
        while True:
            while not self._ready or self._turns == 0:
                future: asyncio.Future[None] = loop.create_future()
                self._resting.append(future)
                await future
                self._waking = False
                pause_at = loop.time() + _SLICE
            lane = self._ready.popleft()
            if self._turns is not None:
                self._turns -= 1
            elif self._ready and not self._waking:
                self._wake()
            worker.since = now = loop.time()
            if now > pause_at:
                await asyncio.sleep(0)
                worker.since = now = loop.time()
                pause_at = now + _SLICE
            work = lane.head
            if work is None:
                continue
            lane.running = True
            worker.work = work
            try:
                delay = await self._run(work)
                if worker.late:
                    self._not_late(worker)
            except asyncio.CancelledError:
                if not worker.late:
                    raise
                self._not_late(worker)
                # the time is up once: the watchdog must not cut off what settles the piece
                worker.since = float("inf")
                delay = await self._after_timeout(work)
            except Exception as error:  # noqa: BLE001 - the worker must outlive it
                delay = self._unsettled(work, error)
            finally:
                worker.work = None
                lane.running = False
                self._settled.set()
            self._after(lane, delay)

    async def _after_timeout(self, work: Work) -> float | None:
        try:
            return await self._timed_out(work)
        except Exception as error:  # noqa: BLE001 - the worker must outlive it
            return self._unsettled(work, error)

    @staticmethod
    def _unsettled(work: Work, error: Exception) -> float:
        """A worker outlives whatever goes wrong in settling its event: the event stays, and is tried again."""
        log.error("an event could not be settled", subject=work.delivery.subject, retry_seconds=UNSETTLED_SECONDS, exc_info=error)
        return UNSETTLED_SECONDS

    @staticmethod
    def _not_late(worker: _Worker) -> None:
        worker.late = False
        worker.task.uncancel()

    def _after(self, lane: Lane, delay: float | None) -> None:
        rest = lane.rest
        if delay is not None:
            if self._latest and rest and lane.head is not None:
                old, lane.head = lane.head, rest.popleft()
                self._drop(old)
            self._sleeping[lane] = self._loop.call_later(delay, self._awake, lane)
            return
        self.size -= 1
        if rest:
            lane.head = rest.popleft()
            self._ready.append(lane)
        elif lane.declined:
            lane.head = None
        else:
            del self._lanes[lane.key]

    def _awake(self, lane: Lane) -> None:
        self._sleeping.pop(lane, None)
        self._ready.append(lane)
        if not self._waking:
            self._wake()

    # --- control ---------------------------------------------------------------------------------------------------------

    def cancel_overdue(self, limit: float) -> None:
        """Cancel every piece that has been worked on for longer than ``limit`` seconds."""
        now = self._loop.time()
        for worker in self._workers:
            if worker.work is not None and not worker.late and now - worker.since > limit:
                worker.late = True
                worker.task.cancel()

    def freeze(self) -> None:
        """Start nothing more; what runs goes on."""
        self._turns = 0

    @property
    def frozen(self) -> bool:
        """Whether nothing more is started."""
        return self._turns == 0

    def probe(self) -> None:
        """While frozen, do a single piece of work, of the lane that has waited longest."""
        if self._turns != 0:
            return
        if not self._ready and self._sleeping:
            lane = next(iter(self._sleeping))
            self._sleeping.pop(lane).cancel()
            self._ready.append(lane)
        if self._ready:
            self._turns = 1
            self._wake()

    def thaw(self) -> None:
        """Go on after ``freeze``; lanes that sleep are woken."""
        self._turns = None
        for lane, timer in list(self._sleeping.items()):
            timer.cancel()
            self._ready.append(lane)
        self._sleeping.clear()
        if self._ready and not self._waking:
            self._wake()

    @property
    def running(self) -> int:
        """Pieces being worked on now."""
        return sum(worker.work is not None for worker in self._workers)

    def works(self) -> list[Work]:
        """Everything in memory, in no particular order between lanes."""
        return [work for lane in self._lanes.values() for work in (lane.head, *(lane.rest or ())) if work is not None]

    async def drain(self, grace: float) -> list[Work]:
        """Let what runs finish for up to ``grace`` seconds, then cancel it; returns what is left undone, oldest first."""
        self.freeze()
        for timer in self._sleeping.values():
            timer.cancel()
        self._sleeping.clear()
        deadline = self._loop.time() + grace
        while self.running and (left := deadline - self._loop.time()) > 0:
            self._settled.clear()
            try:
                async with asyncio.timeout(left):
                    await self._settled.wait()
            except TimeoutError:
                break
        await end(*(worker.task for worker in self._workers))
        self._workers.clear()
        self._resting.clear()
        left_over = sorted(self.works(), key=lambda work: work.delivery.seq)
        self._lanes.clear()
        self._ready.clear()
        self.size = 0
        return left_over
