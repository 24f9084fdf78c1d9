"""What tests of every kind need: waiting for a condition with a deadline, never for a fixed time, and a free port."""

import asyncio
import inspect
import socket
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


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
