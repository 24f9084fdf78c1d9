"""Tasks end although somebody below them swallows a cancellation."""

import asyncio

import pytest

from ipe_events.tasks import end, keeping_cancellation


async def swallow(started: asyncio.Event) -> None:
    """What `asyncio.wait_for` of Python 3.11 does when the answer and the cancellation come in the same turn."""
    started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def test_end_asks_again_until_a_task_has_ended():
    started, swallowed = asyncio.Event(), []

    async def stubborn() -> None:
        while True:
            await swallow(started)
            swallowed.append(True)
            if len(swallowed) > 1:
                return

    task = asyncio.create_task(stubborn())
    await started.wait()
    async with asyncio.timeout(10):
        await end(task, patience=0.01)
    assert len(swallowed) == 2


async def test_end_takes_tasks_that_failed_and_that_were_done():
    async def fail() -> None:
        raise ValueError("seen")

    failed, waiting = asyncio.create_task(fail()), asyncio.create_task(asyncio.Event().wait())
    await asyncio.wait([failed])
    await end(failed, waiting)
    assert waiting.cancelled()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_swallowed_cancellation_is_raised_again(fails: bool):
    started = asyncio.Event()

    async def work() -> None:
        with keeping_cancellation():
            await swallow(started)
            if fails:
                raise ValueError("instead of the cancellation")
        raise AssertionError("went on after it was cancelled")

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_before_does_not_count():
    """Cleaning up after a cancellation may await things."""
    started, cleaned = asyncio.Event(), []

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            with keeping_cancellation():
                await asyncio.sleep(0)
            cleaned.append(True)

    task = asyncio.create_task(work())
    await started.wait()
    await end(task)
    assert cleaned == [True]
