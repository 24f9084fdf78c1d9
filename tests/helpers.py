"""Waiting in tests: for a condition, with a deadline, never for a fixed time."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(probe: Callable[[], Coroutine[Any, Any, T]], timeout: float = 10.0, interval: float = 0.02) -> T: ...
@overload
async def eventually(probe: Callable[[], T], timeout: float = 10.0, interval: float = 0.02) -> T: ...
async def eventually(probe: Callable[[], Any], timeout: float = 10.0, interval: float = 0.02) -> Any:
    """The first true value of ``probe``; fails with its last value when none came within ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        outcome = probe()
        value = await outcome if inspect.isawaitable(outcome) else outcome
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not within {timeout:g} s; last value: {value!r}")
        await asyncio.sleep(interval)
