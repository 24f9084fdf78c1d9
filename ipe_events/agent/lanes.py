"""Commands for one object in order, for different objects in parallel, and never more than so many at once.

A lane is a queue that exists only while it has work; one task drains it. The total number of tasks that work at a time is
bounded by a semaphore; how many wait is bounded by whoever submits (the consumer's ``max_ack_pending``).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable

from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

Work = Callable[[], Awaitable[None]]


class Lanes:
    """Runs work by key.

    Args:
        parallel: how many lanes work at a time.
    """

    def __init__(self, parallel: int) -> None:
        self._slots = asyncio.Semaphore(parallel)
        self._queues: dict[Hashable, deque[Work]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many pieces of work have not begun."""
        return sum(map(len, self._queues.values()))

    def submit(self, key: Hashable, work: Work) -> None:
        """Run ``work`` after everything that was submitted with the same key."""
        queue = self._queues.get(key)
        if queue is not None:
            queue.append(work)
            return
        self._queues[key] = deque([work])
        task = asyncio.create_task(self._drain(key), name=f"lane-{key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def clear(self) -> None:
        """Forget what has not begun."""
        for queue in self._queues.values():
            queue.clear()

    async def join(self) -> None:
        """Wait until everything that was submitted is done."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def cancel(self) -> None:
        """End everything, also what is at work."""
        self.clear()
        tasks = set(self._tasks)
        await end(*tasks)

    async def _drain(self, key: Hashable) -> None:
        queue = self._queues[key]
        try:
            while queue:
                async with self._slots:
                    if queue:
                        await self._run(queue.popleft())
        finally:
            del self._queues[key]

    async def _run(self, work: Work) -> None:
        try:
            await work()
        except Exception:  # one piece of work must not stop its lane
            log.exception("work in a lane failed")
