"""Ending tasks so that they end.

A cancellation is one exception, thrown once, and whoever swallows it keeps the task alive: Python 3.11's ``asyncio.wait_for``
does when the answer arrives in the same turn of the loop, and libraries that we await use it. A service that waits for such a
task never stops. So what we await of others is wrapped in ``keeping_cancellation``, and ``end`` asks again until tasks are gone.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 15.0
"""Seconds that a task may take to clean up before it is asked again; an agent's farewell takes up to five."""


async def end(*tasks: "asyncio.Task[Any]", patience: float = PATIENCE) -> None:
    """Cancel tasks and return when all have ended, however they ended; their exceptions count as seen.

    Args:
        tasks: those that have ended already are left alone.
        patience: seconds until a task that goes on is cancelled once more.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=patience)
    for task in tasks:
        if not task.cancelled():
            task.exception()


@contextmanager
def keeping_cancellation() -> Iterator[None]:
    """Around an await of somebody else's code: a cancellation that arrives meanwhile is raised here even if it was swallowed.

    Raises:
        asyncio.CancelledError: the task was cancelled inside the block.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task and task.cancelling() > before:
        raise asyncio.CancelledError
