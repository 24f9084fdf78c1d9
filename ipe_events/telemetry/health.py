"""Health endpoints of a service: ``/livez``, ``/readyz``, ``/healthz``, ``/metrics``, ``/debug/tasks``.

A service hands in named checks; each answers with an empty text when all is well and with the reason when not. ``/readyz`` names
every check that fails and answers 503; ``?verbose`` lists all, ``?exclude=NAME`` leaves one out, as in Kubernetes. ``/livez``
only says whether the event loop still turns: what a restart cannot mend must not restart the process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

from aiohttp import web

from ipe_events.errors import ConfigError
from ipe_events.tasks import end
from ipe_events.telemetry.metrics import gauge, render

LOOP_LAG = gauge("ipe_loop_lag_seconds", "How late the event loop ran its last timer.")

Check = Callable[[], str | Awaitable[str]]
"""Empty when all is well, otherwise one sentence."""

_LAG_INTERVAL = 0.5
_CHECK_TIMEOUT = 2.0


class HealthServer:
    """Serves the health endpoints on one port.

    Args:
        checks: readiness checks by name.
        port: TCP port; 0 takes a free one, told by ``port`` after ``start``.
        host: address to listen on; a pod listens on all, a demo on loopback.
        max_lag: seconds the event loop may be late before ``/livez`` fails.
    """

    def __init__(
        self, checks: Mapping[str, Check] | None = None, *, port: int = 0, host: str = "127.0.0.1", max_lag: float = 10.0
    ) -> None:
        self.checks: dict[str, Check] = dict(checks or {})
        self.port = port
        self._host = host
        self._max_lag = max_lag
        self._runner: web.AppRunner | None = None
        self._lag_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port is taken.
        """
        app = web.Application()
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/healthz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/debug/tasks", self._tasks)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self.port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"cannot listen on {self._host}:{self.port}: {error.strerror}", fix="choose another --health-port"
            ) from error
        self.port = runner.addresses[0][1]
        self._runner = runner
        self._lag_task = asyncio.create_task(self._measure_lag(), name="health-loop-lag")

    async def stop(self) -> None:
        """Close the port."""
        if self._lag_task is not None:
            await end(self._lag_task)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def failing(self, exclude: frozenset[str] = frozenset()) -> dict[str, str]:
        """Every check by name with its reason; the reason of a passing one is empty."""
        return {name: await _run(check) for name, check in list(self.checks.items()) if name not in exclude}

    async def _measure_lag(self) -> None:
        loop, cell = asyncio.get_running_loop(), LOOP_LAG.labels()
        while True:
            due = loop.time() + _LAG_INTERVAL
            await asyncio.sleep(_LAG_INTERVAL)
            cell.set(max(0.0, loop.time() - due))

    async def _live(self, _request: web.Request) -> web.Response:
        lag = LOOP_LAG.labels().value
        if lag > self._max_lag:
            return web.Response(status=503, text=f"event loop is {lag:.1f} s late\n")
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        results = await self.failing(frozenset(request.query.getall("exclude", [])))
        bad = {name: reason for name, reason in results.items() if reason}
        lines = [f"[-] {name}: {reason}" for name, reason in bad.items()]
        if "verbose" in request.query:
            lines = [f"[-] {name}: {reason}" if reason else f"[+] {name} ok" for name, reason in results.items()]
        if not bad and "verbose" not in request.query:
            lines = ["ok"]
        return web.Response(status=503 if bad else 200, text="\n".join(lines) + "\n")

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _tasks(self, _request: web.Request) -> web.Response:
        names = sorted(task.get_name() for task in asyncio.all_tasks())
        return web.Response(text="\n".join(names) + "\n")


async def _run(check: Check) -> str:
    try:
        answer = check()
        if isinstance(answer, str):
            return answer
        async with asyncio.timeout(_CHECK_TIMEOUT):
            return await answer
    except TimeoutError:
        return f"the check did not answer within {_CHECK_TIMEOUT:g} s"
    except Exception as error:  # noqa: BLE001 - a check that fails is what the endpoint is there to tell
        return f"{type(error).__name__}: {error}"
